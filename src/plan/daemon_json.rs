//! Plan for daemon.json, the configuration of the engine (field notes 7, 8, 25 and 26). `"iptables": false` and what
//! belongs to it are merged into the file before the engine starts; a running engine without them is a finding. The
//! text of the file is edited in `model::daemon_json`.

use serde_json::Value;

use crate::model::code::Code;
use crate::model::daemon_json::{BRIDGE, IP6TABLES, IPTABLES, with_keys};
use crate::model::engine::{
    ApiVersion, CommandLine, DaemonJson, EngineApi, EngineSeen, PackageManager, release,
};
use crate::model::engine_options::EngineOptions;
use crate::model::fault::{Fault, Finding};
use crate::model::policy::EnginePolicy;

/// First release with the option `ip6tables`.
const KNOWS_IP6TABLES: (u32, u32) = (20, 10);
/// Oldest API version of an engine that knows `ip6tables`.
const API_KNOWS_IP6TABLES: ApiVersion = ApiVersion(1, 41);
/// First release that filters IPv6 unless told otherwise (moby#47747).
const FILTERS_IPV6: (u32, u32) = (27, 0);
/// First release that leaves the policy of FORWARD in IPv6 alone unless it switches forwarding on (moby#48594).
const CAUTIOUS_WITH_IPV6: (u32, u32) = (28, 0);
/// Options that choose a bridge or its addresses. The engine refuses some of them together.
const BRIDGE_OPTIONS: [&str; 7] = [
    BRIDGE,
    "bip",
    "bip6",
    "fixed-cidr",
    "default-gateway",
    "default-address-pool",
    "default-address-pools",
];

/// Outcome of merging the agent's keys into daemon.json.
#[derive(Default)]
pub(super) struct Merge {
    /// New text of the file and the keys added; `None` if no change is needed.
    pub(super) write: Option<(String, String)>,
    /// Findings on choices of the operator, which stay.
    pub(super) findings: Vec<Finding>,
}

/// Merges the keys that must be in force when the engine starts into its configuration file.
///
/// # Errors
/// A file that cannot be used. With `require_iptables_false` also a start that filters packets, or of which the options
/// cannot be found out.
pub(super) fn merged(seen: &EngineSeen, policy: &EnginePolicy) -> Result<Merge, Fault> {
    if let Some(unknown) = unknown_options(seen) {
        return Ok(Merge { write: None, findings: vec![demanded(unknown, policy)?] });
    }
    if let DaemonJson::Unusable(reason) = &seen.daemon_json {
        return Err(Fault::new(
            Code::DaemonJsonUnusable,
            format!(
                "{} cannot be used: {reason}; it was not touched, and the engine was not started: \
                 mend or remove the file",
                seen.config_file
            ),
        ));
    }
    let options = EngineOptions::new(seen.command_line.args(), &seen.daemon_json);
    let (mut added, mut findings) = (Vec::new(), Vec::<Finding>::new());
    for (key, value) in wanted(seen, &options, policy) {
        match chosen(key, seen, &options) {
            // Whoever wants the engine to filter IPv4 has not asked for less in IPv6.
            Choice::None if key == IP6TABLES && !findings.is_empty() => {}
            Choice::Same => {}
            Choice::None => added.push((key, value)),
            Choice::Other(why) => {
                let finding = set_by_operator(key, &why);
                findings.push(if key == IPTABLES { demanded(finding, policy)? } else { finding });
            }
        }
    }
    let write = (!added.is_empty()).then(|| {
        let keys: Vec<String> =
            added.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
        (with_keys(&seen.daemon_json, &added), keys.join(", "))
    });
    Ok(Merge { write, findings })
}

/// Keys and values that must be in force when the engine starts.
fn wanted(
    seen: &EngineSeen,
    options: &EngineOptions<'_>,
    policy: &EnginePolicy,
) -> Vec<(&'static str, Value)> {
    let mut wanted = vec![(IPTABLES, Value::Bool(false))];
    // Debian's packages start the engine while they are being installed. Those of the others do not, and their engine
    // may be older: its version is known once it is installed.
    let release = seen.installed_version.as_deref().and_then(release);
    let knows = match release {
        Some(release) => release >= KNOWS_IP6TABLES,
        None => {
            let by_apt = seen.package_manager == Some(PackageManager::Apt);
            by_apt && seen.installed.is_none() && policy.min_api >= API_KNOWS_IP6TABLES
        }
    };
    if knows {
        wanted.push((IP6TABLES, Value::Bool(false)));
    }
    // Targets use the host's network. The engine's own bridge would take 172.17.0.0/16, which can be the node's way to
    // its controller (moby#36153).
    if seen.is_new && !BRIDGE_OPTIONS.iter().any(|option| options.has(option)) {
        wanted.push((BRIDGE, Value::from("none")));
    }
    wanted
}

/// Operator's choice for a key.
enum Choice {
    /// The value that the agent wants.
    Same,
    None,
    /// Another value, or an option that contradicts it, in words.
    Other(String),
}

fn chosen(key: &str, seen: &EngineSeen, options: &EngineOptions<'_>) -> Choice {
    match (options.flag(key), options.key(key)) {
        (Some(false), _) | (None, Some(Value::Bool(false))) => Choice::Same,
        (Some(true), _) => Choice::Other(format!("{} with --{key}=true", started_by(seen))),
        (None, Some(other)) => {
            Choice::Other(format!("{} says \"{key}\": {other}", seen.config_file))
        }
        // The engine does not start with both set to false.
        (None, None) if key == IPTABLES && options.boolean("icc") == Some(false) => {
            Choice::Other(format!("{} with icc = false, which needs {key}", started_by(seen)))
        }
        (None, None) => Choice::None,
    }
}

fn started_by(seen: &EngineSeen) -> String {
    let unit = seen.unit.as_ref().map_or("the daemon", |unit| unit.name.as_str());
    format!("{unit} is started")
}

fn set_by_operator(key: &str, why: &str) -> Finding {
    let (effect, family) = match key {
        IP6TABLES => {
            ("IPv6 of bridged virtual machines can be cut off", "the packet filter of IPv6")
        }
        _ => (
            "FORWARD becomes DROP, which cuts bridged virtual machines off",
            "the host's packet filter",
        ),
    };
    Finding::new(
        Code::IptablesSetByOperator,
        format!(
            "{why}; it was left so, and the engine will change {family} when it starts ({effect}): set \
             {key} to false"
        ),
    )
}

/// `finding`, or a fault with its text if the settings demand an engine that leaves the packet filter alone.
fn demanded(finding: Finding, policy: &EnginePolicy) -> Result<Finding, Fault> {
    match policy.require_iptables_false {
        true => Err(Fault { code: finding.code, text: finding.text }),
        false => Ok(finding),
    }
}

/// Finding on an engine whose options are unknown.
fn unknown_options(seen: &EngineSeen) -> Option<Finding> {
    let CommandLine::Unknown(why) = &seen.command_line else { return None };
    Some(Finding::new(
        Code::EngineOptionsUnknown,
        format!(
            "the options of the engine cannot be found out: {why}; it may change the host's packet filter, \
             and no file of it was changed: see that it starts with \"{IPTABLES}\": false and \
             \"{IP6TABLES}\": false"
        ),
    ))
}

/// Findings on a running engine that may change the packet filter.
///
/// # Errors
/// The finding for IPv4, or that the options are unknown, as a fault with `require_iptables_false`.
pub(super) fn running_findings(
    seen: &EngineSeen,
    policy: &EnginePolicy,
) -> Result<Vec<Finding>, Fault> {
    if let Some(unknown) = unknown_options(seen) {
        return Ok(vec![demanded(unknown, policy)?]);
    }
    let mut findings = Vec::new();
    if let Some(why) = may_filter(IPTABLES, true, seen) {
        let text = format!(
            "the engine runs and may change the host's packet filter: {why}; bridged virtual machines can \
             lose their network ({}). It was not restarted and its file not changed: set \
             \"{IPTABLES}\": false and restart it when its containers allow",
            effect(seen, false)
        );
        findings.push(demanded(Finding::new(Code::EngineMayChangeIptables, text), policy)?);
    }
    if let Some(why) = may_filter(IP6TABLES, running_release(seen) >= Some(FILTERS_IPV6), seen) {
        let text = format!(
            "the engine runs and may change the packet filter of IPv6: {why}; bridged virtual machines can \
             lose IPv6 ({}). It was not restarted and its file not changed: set \
             \"{IP6TABLES}\": false and restart it when its containers allow",
            effect(seen, true)
        );
        findings.push(Finding::new(Code::EngineMayChangeIp6tables, text));
    }
    Ok(findings)
}

fn running_release(seen: &EngineSeen) -> Option<(u32, u32)> {
    match &seen.api {
        EngineApi::Answers(version) => release(&version.version),
        EngineApi::Absent | EngineApi::Broken(_) | EngineApi::NotDocker(_) => None,
    }
}

/// Reason why the running engine may filter packets with the option `key`, which has the value `by_default` if it is
/// not set; `None` if it does not.
fn may_filter(key: &str, by_default: bool, seen: &EngineSeen) -> Option<String> {
    let options = EngineOptions::new(seen.command_line.args(), &seen.daemon_json);
    let file = &seen.config_file;
    let changed_at = match &seen.daemon_json {
        DaemonJson::Object { modified_at, .. } => Some(*modified_at),
        DaemonJson::Absent | DaemonJson::Unusable(_) => None,
    };
    match (options.flag(key), options.key(key)) {
        (Some(false), _) => None,
        (Some(true), _) => Some(format!("it was started with --{key}=true")),
        (None, Some(Value::Bool(false))) => {
            let started_at = seen.process.as_ref().map(|process| process.started_at)?;
            // Both times are whole seconds, hence the tolerance: a file that was written just before the start is in
            // force.
            (by_default && changed_at? > started_at + 1).then(|| {
                format!("{file} says \"{key}\": false but was changed after the engine started")
            })
        }
        (None, Some(other)) => Some(format!("{file} says \"{key}\": {other}")),
        (None, None) if !by_default => None,
        (None, None) => Some(match &seen.daemon_json {
            DaemonJson::Unusable(reason) => format!("{file} cannot be used: {reason}"),
            _ => format!("{file} does not say \"{key}\": false"),
        }),
    }
}

/// Effect of the running engine on the policy of FORWARD.
fn effect(seen: &EngineSeen, ipv6: bool) -> &'static str {
    let options = EngineOptions::new(seen.command_line.args(), &seen.daemon_json);
    let release = running_release(seen);
    if options.boolean("ip-forward-no-drop") == Some(true) {
        "it adds rules and leaves the policy of FORWARD, ip-forward-no-drop"
    } else if options.text("firewall-backend") == Some("nftables") {
        "it adds tables of its own to nftables and leaves the policy of FORWARD"
    } else if ipv6 && release < Some(CAUTIOUS_WITH_IPV6) {
        "FORWARD policy DROP in IPv6, also for bridges of others"
    } else {
        "FORWARD policy DROP if the engine switches forwarding on"
    }
}

#[cfg(test)]
#[path = "daemon_json_tests.rs"]
mod tests;
