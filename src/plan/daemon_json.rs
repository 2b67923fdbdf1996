//! Plan for daemon.json, the configuration of the engine (field notes 7 and 8). The setting `"iptables": false` is
//! merged into the file before the engine starts; a running engine without the setting is a finding. The text of the
//! file is edited in `model::daemon_json`.

use serde_json::{Map, Value};

use crate::model::code::Code;
use crate::model::daemon_json::{IPTABLES, keys, with_iptables_off};
use crate::model::engine::{DaemonJson, EngineSeen};
use crate::model::fault::{Fault, Finding};
use crate::model::policy::EnginePolicy;

/// Outcome of merging `"iptables": false` into daemon.json.
pub(super) enum Merge {
    /// No change is needed: the engine starts with the setting.
    Holds,
    /// New text of the file, with the key added.
    Write(String),
    /// File left as it is, with a finding: the operator chose another value.
    Operator(Finding),
}

/// Value of `--iptables` on a dockerd command line, read like any boolean flag of Go; `None` without the flag.
pub(super) fn iptables_flag(args: &[String]) -> Option<bool> {
    args.iter().rev().find_map(|arg| {
        let rest = arg.trim_start_matches('-').strip_prefix(IPTABLES)?;
        match rest.strip_prefix('=') {
            None => rest.is_empty().then_some(true),
            Some(value) => Some(!matches!(value, "0" | "f" | "F" | "false" | "False" | "FALSE")),
        }
    })
}

/// Merges `"iptables": false` into daemon.json (field note 8).
///
/// `unit_flag` is the value of `--iptables` on the unit's command line. With such a flag the file is left alone,
/// because dockerd refuses to start when both places set the option.
pub(super) fn merged(
    file: &DaemonJson,
    unit_flag: Option<bool>,
    policy: &EnginePolicy,
) -> Result<Merge, Fault> {
    let object = match file {
        DaemonJson::Absent => Map::new(),
        DaemonJson::Unusable(reason) => {
            return Err(Fault::new(
                Code::DaemonJsonUnusable,
                format!(
                    "{} cannot be used: {reason}; it was not touched, and the engine was not started: \
                     mend or remove the file",
                    policy.daemon_json
                ),
            ));
        }
        DaemonJson::Object { text, .. } => keys(text),
    };
    let chosen = match (unit_flag, object.get(IPTABLES)) {
        (Some(false), _) | (None, Some(Value::Bool(false))) => return Ok(Merge::Holds),
        (Some(true), _) => Some(format!("{} starts it with --{IPTABLES}=true", policy.unit)),
        (None, Some(other)) => Some(format!("{} says \"{IPTABLES}\": {other}", policy.daemon_json)),
        (None, None) => None,
    };
    if let Some(chosen) = chosen {
        return Ok(Merge::Operator(Finding::new(
            Code::IptablesSetByOperator,
            format!(
                "{chosen}; it was left so, and the engine will change the host's packet filter when it \
                 starts (FORWARD becomes DROP, which cuts bridged virtual machines off): set it to false"
            ),
        )));
    }
    Ok(Merge::Write(with_iptables_off(file)))
}

/// Finding on a running engine that may change the packet filter (field note 7).
pub(super) fn iptables_finding(seen: &EngineSeen, policy: &EnginePolicy) -> Option<Finding> {
    let process = seen.process.as_ref();
    let started_at = process.map(|process| process.started_at);
    let (in_file, modified_at) = match &seen.daemon_json {
        DaemonJson::Object { text, modified_at } => {
            (keys(text).get(IPTABLES).cloned(), Some(*modified_at))
        }
        _ => (None, None),
    };
    let why = match (process.and_then(|p| iptables_flag(&p.args)), in_file) {
        (Some(false), _) => return None,
        (Some(true), _) => "it was started with --iptables=true".to_string(),
        (None, Some(Value::Bool(false))) => match (started_at, modified_at) {
            // Both times are whole seconds, hence the tolerance: a file that was written just before the start is in
            // force.
            (Some(started), Some(modified)) if modified > started + 1 => {
                format!(
                    "{} says \"iptables\": false but was changed after the engine started",
                    policy.daemon_json
                )
            }
            _ => return None,
        },
        (None, Some(other)) => format!("{} says \"iptables\": {other}", policy.daemon_json),
        (None, None) => match &seen.daemon_json {
            DaemonJson::Unusable(reason) => {
                format!("{} cannot be used: {reason}", policy.daemon_json)
            }
            _ => format!("{} does not say \"iptables\": false", policy.daemon_json),
        },
    };
    Some(Finding::new(
        Code::EngineMayChangeIptables,
        format!(
            "the engine runs and may change the host's packet filter: {why}; bridged virtual machines \
             can lose their network (FORWARD policy DROP). It was not restarted and its file not \
             changed: set \"iptables\": false and restart it when its containers allow"
        ),
    ))
}

#[cfg(test)]
#[path = "daemon_json_tests.rs"]
mod tests;
