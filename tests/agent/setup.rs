//! `vhost-agent setup`: what it writes is what the agent then goes by.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::access::ask;
use crate::support::Place;
use crate::support::certificates::{Authority, Signed};
use crate::support::http::call;
use crate::support::network::{FAR, Far, alone, call_on};

const FILE: &str = "config.d/10-access.toml";

fn setup<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["setup", "--controller"][..], more].concat()
}

#[test]
fn a_controller_that_was_set_up_may_call_and_nobody_else() {
    alone(async || {
        let far = Far::new();
        let place = Place::on("two-node").env("VHOST_AGENT_LISTEN", "[::]:0");
        let file = place.folder().join(FILE);
        let planned = place.run(&setup(&[FAR, "--dry-run"])).await;
        assert_eq!(planned.code, Some(3), "{planned:?}");
        assert!(
            planned.out.contains("allow = [\"10.8.0.2/32\"]") && !file.exists(),
            "{}",
            planned.out
        );
        let done = place.run(&setup(&[FAR, "--controller-images"])).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        for expected in [
            "who may call: [::]:0: wants an address in 10.8.0.2/32, no TLS",
            "http://ADDRESS-OF-THIS-NODE",
            "systemctl restart vhost-agent",
        ] {
            assert!(done.out.contains(expected), "{expected}: {}", done.out);
        }
        let written = fs::read_to_string(&file).unwrap();
        assert!(
            written.contains("image_urls = [\"http://10.8.0.2:8080/zstack/static/zbs-vhost/\"]")
        );
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        let image = place
            .run(&setup(&[
                FAR,
                "--controller-images",
                "--image",
                "10.8.0.2:5000/zbs-vhost-*",
                "--dry-run",
            ]))
            .await;
        assert!(
            image.out.contains("\"zbs-vhost\", \"zbs-vhost-*\", \"10.8.0.2:5000/zbs-vhost-*\""),
            "{}",
            image.out
        );
        let again = place.run(&setup(&[FAR, "--controller-images"])).await;
        assert!(again.code == Some(0) && again.out.starts_with("holds already"), "{}", again.out);
        let agent = place.ready().await;
        let stream = far.connect(agent.address.port()).await;
        assert_eq!(call_on(stream, "POST", "/host/ping", &[], "{}").await.status, 200);
        drop(agent);
        let dropped = place.run(&setup(&["10.8.0.9"])).await;
        assert!(dropped.code == Some(2) && dropped.err.contains("say --drop"), "{dropped:?}");
        assert_eq!(place.run(&setup(&["10.8.0.9", "--drop"])).await.code, Some(0));
        assert!(!fs::read_to_string(&file).unwrap().contains("image_urls"));
        let agent = place.ready().await;
        let stream = far.connect(agent.address.port()).await;
        let refused = call_on(stream, "POST", "/host/ping", &[], "{}").await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "address-not-allowed"));
    });
}

#[tokio::test]
async fn a_token_is_shown_once_works_and_stays_when_it_is_set_up_again() {
    let place = Place::on("two-node");
    let options = ["127.0.0.1", "--token", "controller:deploy", "--output", "json"];
    let done = place.run(&setup(&options)).await.json();
    let token = done["tokens"][0]["token"].as_str().unwrap().to_string();
    let again = place.run(&setup(&options)).await.json();
    assert_eq!((&again["outcome"], &again["tokens"]), (&"holds".into(), &serde_json::json!([])));
    let dropped = place.run(&setup(&["127.0.0.1"])).await;
    assert!(dropped.code == Some(2) && dropped.err.contains("access.token"), "{dropped:?}");
    let all = fs::read_to_string(place.folder().join(FILE)).unwrap();
    assert!(!all.contains(&token) && all.contains("role = \"deploy\""), "{all}");
    let agent = place.ready().await;
    let header = format!("Bearer {token}");
    let ask = async |headers: &[(&str, &str)]| {
        call(agent.address, "POST", "/host/ping", headers, "{}").await.status
    };
    assert_eq!(ask(&[("Authorization", &header)]).await, 200);
    assert_eq!(ask(&[]).await, 401);
}

#[tokio::test]
async fn certificates_that_were_set_up_let_in_whom_they_name() {
    let place = Place::on("two-node");
    let authority = Authority::new();
    let own = authority.sign("127.0.0.1");
    let at = |name: &str, text: &str| {
        let path = place.folder().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let (certificate, key) = (at("node.pem", &own.pem), at("node.key", &own.key));
    let (ca, crl) = (at("ca.pem", &authority.pem), at("crl.pem", &authority.revoked(&[7])));
    let args = [
        "127.0.0.1",
        "--certificate",
        &certificate,
        "--key",
        &key,
        "--client-ca",
        &ca,
        "--client-crl",
        &crl,
        "--client-name",
        "mn-*:deploy",
    ];
    let done = place.run(&setup(&args)).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    for expected in ["https://ADDRESS-OF-THIS-NODE", "one of the authority in --client-ca"] {
        assert!(done.out.contains(expected), "{expected}: {}", done.out);
    }
    assert!(place.run(&setup(&args)).await.out.starts_with("holds already"));
    let agent = place.ready().await;
    let call = async |shown: Signed| ask(&authority.client(Some(&shown)), &agent).await;
    assert_eq!(call(authority.sign("mn-1")).await.unwrap().status, 200);
    call(authority.sign("node-2")).await.unwrap().must_be_problem(403, "certificate-unknown");
    assert!(call(authority.sign_as("mn-1", 7)).await.is_none(), "it is revoked");
}

#[tokio::test]
async fn what_other_files_list_stays_listed() {
    let place = Place::on("two-node");
    let before = fs::read_to_string(place.config()).unwrap();
    let own = "[access]\nallow = [\"192.0.2.0/24\"]\n\
               [target]\nimage_urls = [\"http://192.0.2.1/\"]\nallowed_images = [\"own\"]\n";
    fs::write(place.config(), before + own).unwrap();
    let images = ["10.0.0.5", "--controller-images", "--image", "more"];
    assert_eq!(place.run(&setup(&images)).await.code, Some(0));
    let written = fs::read_to_string(place.folder().join(FILE)).unwrap();
    for expected in [
        "allow = [\"192.0.2.0/24\", \"10.0.0.5/32\"]",
        "\"http://192.0.2.1/\", \"http://10.0.0.5:8080/zstack/static/zbs-vhost/\"",
        "allowed_images = [\"own\", \"more\"]",
    ] {
        assert!(written.contains(expected), "{expected}: {written}");
    }
    // A file that comes after it has the last word.
    let place = place.settings("[access]\nallow = [\"192.0.2.0/24\"]\n");
    let ended = place.run(&setup(&images)).await;
    assert!(ended.code == Some(1) && ended.err.contains("comes after"), "{ended:?}");
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_and_nothing_is_written() {
    let place = Place::on("two-node");
    let file = place.folder().join(FILE);
    let (own, other) = (Authority::new().sign("node"), Authority::new().sign("node"));
    let at = |name: &str, text: &str| {
        let path = place.folder().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let (certificate, key) = (at("node.pem", &own.pem), at("other.key", &other.key));
    for (options, code, expected) in [
        (vec!["mn.example"], 2, "names are not taken"),
        (vec!["10.0.0.5", "--token", "a"], 2, "'a' is no NAME:ROLE"),
        (vec!["10.0.0.5", "--token", "a b:read"], 2, "'a b' is no name"),
        (
            vec!["10.0.0.5", "--certificate", &certificate, "--key", &key],
            1,
            "cannot be used together",
        ),
        (vec!["10.0.0.5", "--certificate", "/none", "--key", &key], 1, "/none"),
    ] {
        let ended = place.run(&setup(&options)).await;
        assert_eq!(ended.code, Some(code), "{options:?} {ended:?}");
        assert!(ended.err.contains(expected), "{options:?} {}", ended.err);
        assert!(!file.exists(), "{options:?}");
    }
}
