//! Findings on networks of the engine that hide an address which the node needs (field note 26, moby#36153).

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

use crate::model::code::Code;
use crate::model::daemon_json::BRIDGE;
use crate::model::engine::{EngineApi, EngineSeen};
use crate::model::engine_options::EngineOptions;
use crate::model::fault::Finding;
use crate::model::network::{Network, NodeRoute};

/// Interfaces of the engine's own bridges, and the beginning of those of its other networks, which goes on with 12 digits
/// of their ids.
const OWN_BRIDGES: [&str; 2] = ["docker0", "docker_gwbridge"];
const OTHER_BRIDGES: &str = "br-";
/// Second bytes of the engine's default networks, 172.17.0.0/16 to 172.31.0.0/16, in the order in which it tries them.
const DEFAULTS: std::ops::RangeInclusive<u8> = 17..=31;

/// Findings on the networks of the engine, of now or of its next start, that hide addresses the node needs: one for each
/// such network, which names the first address.
pub(super) fn overlaps(seen: &EngineSeen) -> Vec<Finding> {
    let networks = match (&seen.process, &seen.api) {
        (None, EngineApi::Absent) => of_next_start(seen).into_iter().collect(),
        _ => of_running(&seen.network.routes),
    };
    let needed = needed(seen);
    let overlap = |network: &Network| {
        let has_own_route = |address: IpAddr| {
            let leads_there = |route: &NodeRoute| {
                !is_bridge(&route.interface)
                    && route.to.has(address)
                    && route.to.is_part_of(network)
            };
            seen.network.routes.iter().any(leads_there)
        };
        // The bridge has the first address itself: a name server can listen there.
        let hidden = |(_, address): &&(String, IpAddr)| {
            network.has(*address)
                && Some(*address) != network.first_host()
                && !has_own_route(*address)
        };
        let (what, address) = needed.iter().find(hidden)?;
        Some(Finding::new(
            Code::EngineNetworkOverlaps,
            format!(
                "the engine's network {network} hides {address}, {what}: set \"bip\" or \
                 \"default-address-pools\" in {} to a network that nobody else uses, or \"bridge\": \"none\", \
                 since targets need no bridge, and restart the engine when its containers allow",
                seen.config_file
            ),
        ))
    };
    networks.iter().filter_map(overlap).collect()
}

/// Networks of a running engine, by the routes to its bridges.
fn of_running(routes: &[NodeRoute]) -> Vec<Network> {
    let bridges = routes.iter().filter(|route| is_bridge(&route.interface));
    bridges.filter(|route| route.gateway.is_none()).map(|route| route.to).collect()
}

/// `true` for the name of an interface that the engine makes for a network.
fn is_bridge(name: &str) -> bool {
    let id = name.strip_prefix(OTHER_BRIDGES).unwrap_or_default();
    OWN_BRIDGES.contains(&name)
        || id.len() == 12 && id.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Network that the engine takes for its own bridge when it starts; `None` if it makes none, or the agent sees that it
/// does not.
fn of_next_start(seen: &EngineSeen) -> Option<Network> {
    let options = EngineOptions::new(seen.command_line.args(), &seen.daemon_json);
    if seen.installed.is_none() || options.has(BRIDGE) {
        return None;
    }
    if let Some(own) = options.text("bip") {
        let (address, bits) = own.split_once('/')?;
        return Network::around(address.parse().ok()?, bits.parse().ok()?);
    }
    let pools = options.key("default-address-pools").and_then(Value::as_array);
    if let Some(pool) = pools.and_then(|pools| pools.first()) {
        return pool.get("base")?.as_str()?.parse().ok();
    }
    // The engine passes over networks to which a route without a gateway leads, or in which a name server is
    // (moby#42598).
    let is_free = |network: &Network| {
        let is_routed = |route: &NodeRoute| {
            route.gateway.is_none()
                && (network.has(route.to.first()) || route.to.has(network.first()))
        };
        !seen.network.routes.iter().any(is_routed)
            && !seen.network.name_servers.iter().any(|server| network.has(*server))
    };
    let default = |second| Network::around(IpAddr::V4(Ipv4Addr::new(172, second, 0, 0)), 16);
    DEFAULTS.filter_map(default).find(is_free)
}

/// Addresses that the node needs, each with its use.
fn needed(seen: &EngineSeen) -> Vec<(String, IpAddr)> {
    let routes = seen.network.routes.iter().filter(|route| !is_bridge(&route.interface));
    let gateways = routes.filter_map(|route| {
        let gateway = IpAddr::V4(route.gateway?);
        Some((format!("a gateway of the node ({})", route.interface), gateway))
    });
    let servers = seen.network.name_servers.iter().map(|it| ("a name server".to_string(), *it));
    gateways.chain(servers).chain(seen.network.needed.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::engine::plan;
    use super::super::engine_fixture::*;
    use super::*;
    use crate::model::engine::DaemonJson;
    use crate::model::network::NodeNetwork;

    fn route(interface: &str, to: &str, gateway: Option<&str>) -> NodeRoute {
        let gateway = gateway.map(|it| it.parse().unwrap());
        NodeRoute { interface: interface.into(), to: to.parse().unwrap(), gateway }
    }

    fn network(routes: Vec<NodeRoute>, servers: &[&str], controller: &str) -> NodeNetwork {
        NodeNetwork {
            routes,
            name_servers: servers.iter().map(|it| it.parse().unwrap()).collect(),
            needed: vec![("the controller".into(), controller.parse().unwrap())],
        }
    }

    fn found(seen: &EngineSeen) -> Option<String> {
        let findings = plan(seen, &policy()).unwrap().findings;
        let overlap = findings.into_iter().find(|it| it.code == Code::EngineNetworkOverlaps);
        overlap.map(|finding| finding.text)
    }

    #[test]
    fn network_of_a_running_engine_that_hides_a_needed_address_is_named() {
        let up = route("eth0", "0.0.0.0/0", Some("10.0.0.1"));
        let bridge = || route("docker0", "172.17.0.0/16", None);
        let other = || route("br-0123456789ab", "172.18.0.0/16", None);
        for (routes, servers, controller, word) in [
            (vec![up.clone(), bridge()], vec![], "172.17.9.9", Some("172.17.9.9, the controller")),
            (vec![up.clone(), other()], vec!["172.18.0.53"], "10.1.1.1", Some("a name server")),
            (vec![up.clone(), bridge()], vec!["172.17.0.1"], "10.1.1.1", None),
            (
                vec![up.clone(), route("br-storage", "172.18.0.0/16", None)],
                vec![],
                "172.18.0.9",
                None,
            ),
            (
                vec![route("eth0", "0.0.0.0/0", Some("172.17.0.254")), bridge()],
                vec![],
                "10.1.1.1",
                Some("a gateway"),
            ),
        ] {
            let network = network(routes, &servers, controller);
            let seen = EngineSeen { network, ..running(says(r#"{"iptables":false}"#), &[]) };
            let text = found(&seen);
            assert_eq!(text.is_some(), word.is_some(), "{text:?} / {word:?}");
            assert!(word.is_none_or(|word| text.as_deref().unwrap().contains(word)), "{text:?}");
        }
    }

    #[test]
    fn every_network_that_hides_something_is_named_once() {
        let up = route("eth0", "0.0.0.0/0", Some("10.0.0.1"));
        let bridges = [("docker0", "172.17.0.0/16"), ("br-0123456789ab", "172.18.0.0/16")];
        let bridges = bridges.map(|(name, to)| route(name, to, None));
        let mut network = network([vec![up], bridges.to_vec()].concat(), &[], "172.17.9.9");
        let storage = ["172.17.0.5", "172.18.0.5", "172.18.0.6"];
        let storage = storage.map(|it| ("the storage".to_string(), it.parse().unwrap()));
        network.needed.extend(storage);
        let seen = EngineSeen { network, ..running(says(r#"{"iptables":false}"#), &[]) };
        let texts = overlaps(&seen).into_iter().map(|finding| finding.text).collect::<Vec<_>>();
        let [first, second] = texts.as_slice() else { panic!("{texts:?}") };
        assert!(first.contains("172.17.0.0/16 hides 172.17.9.9, the controller:"), "{first}");
        assert!(second.contains("172.18.0.0/16 hides 172.18.0.5, the storage:"), "{second}");
    }

    #[test]
    fn network_of_the_next_start_is_foreseen() {
        let up = || route("eth0", "0.0.0.0/0", Some("10.0.0.1"));
        let stopped = |text: &str, routes: Vec<NodeRoute>, controller: &str| {
            let network = network(routes, &[], controller);
            found(&EngineSeen { network, ..stopped(says(text)) })
        };
        assert!(stopped("{}", vec![up()], "172.17.0.9").unwrap().contains("172.17.0.0/16"));
        let taken = route("eth1", "172.17.4.0/24", None);
        assert_eq!(
            stopped("{}", vec![up(), taken.clone()], "172.17.0.9"),
            None,
            "it takes the next one"
        );
        // moby#36153: a way through a gateway does not keep the engine from taking the network.
        let far = route("eth0", "172.17.0.0/16", Some("10.0.0.254"));
        assert!(stopped("{}", vec![up(), far], "172.17.0.9").unwrap().contains("172.17.0.0/16"));
        assert!(stopped("{}", vec![up(), taken], "172.18.0.9").unwrap().contains("172.18.0.0/16"));
        assert!(
            stopped(r#"{"bip": "10.9.0.1/24"}"#, vec![up()], "10.9.0.7")
                .unwrap()
                .contains("10.9.0.0/24")
        );
        let pools = r#"{"default-address-pools": [{"base": "10.8.0.0/16", "size": 24}]}"#;
        assert!(stopped(pools, vec![up()], "10.8.1.1").unwrap().contains("10.8.0.0/16"));
        assert_eq!(stopped(r#"{"bridge": "none"}"#, vec![up()], "172.17.0.9"), None);
        let bare = EngineSeen { network: network(vec![up()], &[], "172.17.0.9"), ..bare() };
        assert_eq!(found(&bare), None, "the agent installs it without a bridge");
        assert_eq!(bare.daemon_json, DaemonJson::Absent);
    }
}
