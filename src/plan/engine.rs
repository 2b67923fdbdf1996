//! Plan for the engine: its configuration, packages and start (field notes 7, 8 and 20).
//!
//! The order is the point: `"iptables": false` must be in daemon.json before the engine is started for the first
//! time, and Debian's packages start it while they are being installed. So the file comes first, then the packages,
//! then the start. An engine that answers is left as it is, file and all: a key that would only take effect at its
//! next restart is not slipped in behind the operator's back.

use serde_json::{Map, Value};

use crate::model::code::Code;
use crate::model::engine::{DaemonJson, EngineApi, EngineProcess, EngineSeen, EngineVersion, Init};
use crate::model::fault::{Fault, Finding};
use crate::model::policy::EnginePolicy;
use crate::model::step::Step;

/// The key of daemon.json that keeps the engine's hands off the host's packet filter.
const KEY: &str = "iptables";

/// Steps for the engine, and findings for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnginePlan {
    /// In order of execution.
    pub steps: Vec<Step>,
    pub findings: Vec<Finding>,
}

/// Plans the steps after which the engine is installed, configured and running.
///
/// # Errors
/// A fault for what the agent must not or cannot repair by itself.
pub fn plan(seen: &EngineSeen, policy: &EnginePolicy) -> Result<EnginePlan, Fault> {
    match &seen.api {
        EngineApi::Answers(version) => plan_running(version, seen, policy),
        EngineApi::Broken(reason) => Err(not_answering(reason, seen, policy)),
        EngineApi::Absent => plan_stopped(seen, policy),
    }
}

fn plan_running(
    version: &EngineVersion,
    seen: &EngineSeen,
    policy: &EnginePolicy,
) -> Result<EnginePlan, Fault> {
    if version.api < policy.min_api {
        return Err(Fault::new(
            Code::EngineTooOld,
            format!(
                "the engine {} at {} speaks API {}, older than {}: upgrade it, or lower engine.min_api",
                version.version, policy.socket, version.api, policy.min_api
            ),
        ));
    }
    let mut plan = EnginePlan::default();
    if let Some(finding) = iptables_finding(seen, policy) {
        if policy.require_iptables_false {
            return Err(Fault { code: finding.code, text: finding.text });
        }
        plan.findings.push(finding);
    }
    plan.add_enable(seen, policy);
    Ok(plan)
}

fn plan_stopped(seen: &EngineSeen, policy: &EnginePolicy) -> Result<EnginePlan, Fault> {
    let mut plan = EnginePlan::default();
    // A start that is asked for while it stops follows when it has.
    let stops = seen.unit.as_ref().is_some_and(|unit| unit.active == "deactivating");
    if seen.process.is_none() || stops {
        plan.add_configuration(seen, policy)?;
        plan.add_install(seen, policy)?;
        plan.add_enable(seen, policy);
        plan.add_start(seen, policy)?;
    }
    plan.steps.push(Step::AwaitEngine {
        socket: policy.socket.clone(),
        min_api: policy.min_api,
        within: policy.ready_timeout,
    });
    Ok(plan)
}

impl EnginePlan {
    fn add_configuration(&mut self, seen: &EngineSeen, policy: &EnginePolicy) -> Result<(), Fault> {
        let path = policy.daemon_json.clone();
        let unit_flag = seen.unit.as_ref().and_then(|unit| iptables_flag(&unit.args));
        match merged(&seen.daemon_json, unit_flag, policy)? {
            Merge::Holds => {}
            Merge::Operator(finding) if policy.require_iptables_false => {
                return Err(Fault { code: finding.code, text: finding.text });
            }
            Merge::Operator(finding) => self.findings.push(finding),
            Merge::Write(text) => {
                let replaces = seen.daemon_json != DaemonJson::Absent;
                let adds = format!("\"{KEY}\": false");
                self.steps.push(Step::WriteDaemonJson { path, text, adds, replaces });
            }
        }
        Ok(())
    }

    fn add_install(&mut self, seen: &EngineSeen, policy: &EnginePolicy) -> Result<(), Fault> {
        if seen.installed.is_some() {
            return Ok(());
        }
        if !policy.install {
            return Err(Fault::new(
                Code::EngineNotInstalled,
                format!(
                    "{} is not installed and engine.install is false: install it, or allow it",
                    policy.binary
                ),
            ));
        }
        let Some(manager) = seen.package_manager else {
            return Err(Fault::new(
                Code::NoPackageManager,
                format!(
                    "{} is not installed, and none of apt-get, dnf, yum, zypper is there to install it: \
                     install the engine by hand",
                    policy.binary
                ),
            ));
        };
        let sets = policy.packages.get(&manager).cloned().unwrap_or_default();
        if sets.is_empty() {
            return Err(Fault::new(
                Code::NoPackagesConfigured,
                format!(
                    "engine.packages.{manager} is empty: name the packages of the engine there"
                ),
            ));
        }
        self.steps.push(Step::Install { manager, sets });
        Ok(())
    }

    /// Adds the start at boot unless the unit has it or the operator masked it. Its socket is not
    /// enough: after a boot the containers would stay down until somebody connects.
    fn add_enable(&mut self, seen: &EngineSeen, policy: &EnginePolicy) {
        let disabled = seen.unit.as_ref().is_some_and(|unit| unit.file == "disabled");
        // A unit that is yet to be installed is not known as disabled: the package enables it or not, which is
        // observed when the plan is made again after the installation.
        if disabled {
            self.steps.push(Step::EnableUnit(policy.unit.clone()));
        }
    }

    fn add_start(&mut self, seen: &EngineSeen, policy: &EnginePolicy) -> Result<(), Fault> {
        match (&seen.init, &seen.unit) {
            (Init::Systemd, Some(unit)) if unit.load == "masked" => Err(Fault::new(
                Code::EngineUnitMasked,
                format!(
                    "{} is masked: `systemctl unmask {}` if the engine may run",
                    policy.unit, policy.unit
                ),
            )),
            (Init::Systemd, None) if seen.unit_error.is_some() => Err(Fault::new(
                Code::SystemdUnreachable,
                format!(
                    "systemd could not be asked about {} over D-Bus: {}",
                    policy.unit,
                    seen.unit_error.as_deref().unwrap_or_default()
                ),
            )),
            (Init::Systemd, _) => {
                self.steps.push(Step::StartUnit(policy.unit.clone()));
                Ok(())
            }
            (Init::Other(_), _) => {
                let binary = seen.installed.clone().unwrap_or_else(|| policy.binary.clone());
                self.steps.push(Step::StartDaemon { binary });
                Ok(())
            }
        }
    }
}

fn not_answering(reason: &str, seen: &EngineSeen, policy: &EnginePolicy) -> Fault {
    let who = match &seen.process {
        Some(EngineProcess { pid, .. }) => {
            format!("the engine (pid {pid}) listens at {}", policy.socket)
        }
        None => format!("something listens at {}", policy.socket),
    };
    Fault::new(
        Code::EngineNotAnswering,
        format!(
            "{who} but does not answer as an engine: {reason}; it is left alone: look at its log, and \
             restart it when its containers allow"
        ),
    )
}

enum Merge {
    Holds,
    Write(String),
    Operator(Finding),
}

/// Value of `--iptables` on a dockerd command line; Go's boolean flags take the same words everywhere.
fn iptables_flag(args: &[String]) -> Option<bool> {
    args.iter().rev().find_map(|arg| {
        let rest = arg.trim_start_matches('-').strip_prefix(KEY)?;
        match rest.strip_prefix('=') {
            None => rest.is_empty().then_some(true),
            Some(value) => Some(!matches!(value, "0" | "f" | "F" | "false" | "False" | "FALSE")),
        }
    })
}

/// Merges the one key into the operator's file (field note 8).
///
/// `unit_flag` is the value on the unit's command line: dockerd refuses to start when the same choice is made in both
/// places, so the file is then left alone.
fn merged(
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
        DaemonJson::Object { text, .. } => parse(text),
    };
    let chosen = match (unit_flag, object.get(KEY)) {
        (Some(false), _) | (None, Some(Value::Bool(false))) => return Ok(Merge::Holds),
        (Some(true), _) => Some(format!("{} starts it with --{KEY}=true", policy.unit)),
        (None, Some(other)) => Some(format!("{} says \"{KEY}\": {other}", policy.daemon_json)),
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
    Ok(Merge::Write(with_key(file)))
}

/// The file with the key in the first place and everything else as the operator wrote it: order,
/// indentation, numbers.
fn with_key(file: &DaemonJson) -> String {
    match file {
        DaemonJson::Object { text, .. } if !parse(text).is_empty() => {
            text.replacen('{', &format!("{{\n  \"{KEY}\": false,"), 1)
        }
        _ => format!("{{\n  \"{KEY}\": false\n}}\n"),
    }
}

fn parse(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

/// Finding on a running engine that may change the packet filter (field note 7).
fn iptables_finding(seen: &EngineSeen, policy: &EnginePolicy) -> Option<Finding> {
    let process = seen.process.as_ref();
    let started_at = process.map(|process| process.started_at);
    let (in_file, modified_at) = match &seen.daemon_json {
        DaemonJson::Object { text, modified_at } => {
            (parse(text).get(KEY).cloned(), Some(*modified_at))
        }
        _ => (None, None),
    };
    let why = match (process.and_then(|p| iptables_flag(&p.args)), in_file) {
        (Some(false), _) => return None,
        (Some(true), _) => "it was started with --iptables=true".to_string(),
        (None, Some(Value::Bool(false))) => match (started_at, modified_at) {
            // Whole seconds on both sides: a file that was written just before the start is in force.
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
#[path = "engine_tests.rs"]
mod tests;
