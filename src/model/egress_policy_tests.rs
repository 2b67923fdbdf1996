//! Authorization of addresses, over a table.

use super::*;

fn authorize(reach: &Reach, address: &str) -> Result<(), String> {
    reach.authorize(address.parse().unwrap()).map_err(|refused| refused.to_string())
}

fn at(address: &str) -> Option<Caller> {
    Some(address.parse().unwrap())
}

/// Every way to write loopback, and what a cloud or a link answers at.
const LOOPBACK: [&str; 8] = [
    "127.0.0.1",
    "127.255.255.254",
    "::1",
    "::ffff:127.0.0.1",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "2002:7f00:1::",
];
const SPECIAL: [(&str, &str); 27] = [
    ("169.254.169.254", "link-local"),
    ("169.254.0.1", "link-local"),
    ("fe80::1", "link-local"),
    ("febf::1", "link-local"),
    ("::ffff:169.254.169.254", "link-local"),
    ("::169.254.169.254", "link-local"),
    ("64:ff9b::169.254.169.254", "link-local"),
    ("64:ff9b:1::169.254.169.254", "link-local"),
    ("2002:a9fe:a9fe::1", "link-local"),
    ("fe80::a9fe:a9fe", "link-local"),
    ("fd00:ec2::254", "a cloud tells"),
    ("fd00:ec2::23", "a cloud tells"),
    ("fd20:ce::254", "a cloud tells"),
    ("fd00:42::42", "a cloud tells"),
    ("100.100.100.200", "a cloud tells"),
    ("168.63.129.16", "a cloud tells"),
    ("192.0.0.192", "a cloud tells"),
    ("::ffff:100.100.100.200", "a cloud tells"),
    ("64:ff9b::168.63.129.16", "a cloud tells"),
    ("0.0.0.0", "no address of a machine"),
    ("0.1.2.3", "no address of a machine"),
    ("::", "no address of a machine"),
    ("::ffff:0.0.0.0", "no address of a machine"),
    ("255.255.255.255", "no address of a machine"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.250", "multicast"),
    ("ff02::1", "multicast"),
];
const COMMON: [&str; 12] = [
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "198.51.100.1",
    "168.63.129.17",
    "2001:db8::1",
    "fd00::1",
    "fd00:ec2::253",
    "64:ff9b::10.0.0.1",
    "::ffff:10.0.0.1",
    "fec0::1",
];

#[test]
fn any_refuses_what_is_the_nodes_or_its_clouds_own_in_every_form() {
    let remote = EgressPolicy::Any.reach(at("10.0.0.9"), None);
    let local = EgressPolicy::Any.reach(Some(Caller::Here), None);
    for address in COMMON {
        assert_eq!((authorize(&remote, address), authorize(&local, address)), (Ok(()), Ok(())));
    }
    for (address, why) in SPECIAL {
        for reach in [&remote, &local] {
            let error = authorize(reach, address).unwrap_err();
            assert!(error.contains(why) && error.contains("outgoing.to"), "{address}: {error}");
        }
        let error = authorize(&Reach::Images { loopback: true }, address).unwrap_err();
        assert!(error.contains(why) && !error.contains("outgoing.to"), "{address}: {error}");
        assert_eq!(authorize(&Reach::Anywhere, address), Ok(()));
    }
}

#[test]
fn loopback_is_for_who_is_on_the_node_and_nobody_whose_place_is_not_known() {
    let controller = at("127.0.0.1");
    for address in LOOPBACK {
        for caller in [at("10.0.0.9"), at("fd00::9"), None] {
            for policy in [EgressPolicy::Any, EgressPolicy::Callers] {
                let reach = policy.reach(caller, controller);
                assert!(authorize(&reach, address).is_err(), "{address} {caller:?} {policy:?}");
            }
        }
        for caller in [Some(Caller::Here), at("127.0.0.1"), at("::1")] {
            for policy in [EgressPolicy::Any, EgressPolicy::Callers] {
                assert_eq!(authorize(&policy.reach(caller, None), address), Ok(()), "{address}");
            }
        }
        assert_eq!(authorize(&Reach::Images { loopback: true }, address), Ok(()));
        let error = authorize(&Reach::Images { loopback: false }, address).unwrap_err();
        assert!(error.contains("the node's own loopback"), "{error}");
    }
}

#[test]
fn callers_reach_themselves_and_the_controller_alone() {
    let reach = EgressPolicy::Callers.reach(at("10.0.0.9"), at("fd00::7"));
    for address in ["10.0.0.9", "::ffff:10.0.0.9", "fd00::7"] {
        assert_eq!(authorize(&reach, address), Ok(()), "{address}");
    }
    for address in ["10.0.0.8", "fd00::8", "169.254.169.254", "0.0.0.0", "::10.0.0.9"] {
        let error = authorize(&reach, address).unwrap_err();
        assert!(error.contains("neither who called nor the controller"), "{error}");
    }
    let nobody = EgressPolicy::Callers.reach(None, None);
    assert!(COMMON.iter().all(|address| authorize(&nobody, address).is_err()));
    let here = EgressPolicy::Callers.reach(Some(Caller::Here), at("fd00::7"));
    assert!(authorize(&here, "fd00::7").is_ok() && authorize(&here, "10.0.0.9").is_err());
}

#[test]
fn a_list_is_the_operators_word_whatever_it_names() {
    let networks = ["10.0.0.0/8", "169.254.0.0/16", "127.0.0.0/8"].map(|n| n.parse().unwrap());
    let reach = EgressPolicy::To(networks.into()).reach(at("192.0.2.1"), at("192.0.2.2"));
    for address in ["10.1.2.3", "::ffff:10.1.2.3", "169.254.169.254", "127.0.0.1"] {
        assert_eq!(authorize(&reach, address), Ok(()), "{address}");
    }
    for address in ["192.0.2.1", "192.0.2.2", "::1", "fd00::1"] {
        let error = authorize(&reach, address).unwrap_err();
        assert!(error.contains("none of the networks that outgoing.to lists"), "{error}");
    }
}

#[test]
fn an_address_that_is_no_name_is_judged_however_it_is_written() {
    let reach = EgressPolicy::Any.reach(at("10.0.0.9"), None);
    for url in [
        "http://127.0.0.1:80/x",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "https://[::1]:8443/x",
        "http://[::ffff:169.254.169.254]/latest",
        "http://%31%32%37.0.0.1/",
    ] {
        assert!(reach.authorize_literal(url).is_err(), "{url}");
    }
    for url in ["http://10.0.0.1:8080/x", "http://[fd00::1]/", "http://localhost/x", "no address"] {
        assert_eq!(reach.authorize_literal(url), Ok(()), "{url}");
    }
}

#[test]
fn the_setting_is_read_and_written_and_what_is_wrong_is_named() {
    let read = |text: &str| serde_json::from_str::<EgressPolicy>(text).map_err(|e| e.to_string());
    for text in ["\"any\"", "\"callers\"", "[\"10.0.0.0/8\",\"fd00::/8\"]"] {
        assert_eq!(serde_json::to_string(&read(text).unwrap()).unwrap(), text);
    }
    for (text, why) in [
        ("\"all\"", "'all' is neither \"any\" nor \"callers\""),
        ("\"10.0.0.0/8\"", "networks stand in a list"),
        ("[]", "names no network"),
        ("[\"10.0.0.1/8\"]", "behind its mask"),
        ("[\"controller\"]", "'controller' is no network"),
        ("7", "expected \"any\", \"callers\" or a list"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}
