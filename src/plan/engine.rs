//! Plan for the engine: its configuration, packages and start (field notes 7, 8 and 20).
//!
//! The order is the point: `"iptables": false` must be in daemon.json before the engine is started for the first
//! time, and Debian's packages start it while they are being installed. So the file comes first, then the packages,
//! then the start. An engine that answers is left as it is, file and all: a key that would only take effect at its
//! next restart is not slipped in behind the operator's back.

use super::daemon_json::{Merge, iptables_finding, iptables_flag, merged};
use crate::model::code::Code;
use crate::model::daemon_json::IPTABLES;
use crate::model::engine::{DaemonJson, EngineApi, EngineProcess, EngineSeen, EngineVersion, Init};
use crate::model::fault::{Fault, Finding};
use crate::model::policy::EnginePolicy;
use crate::model::step::Step;

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
    // A unit that is being stopped can be started, too: systemd does so once it has stopped.
    let stops = seen.unit.as_ref().is_some_and(|unit| unit.active == "deactivating");
    if stops && seen.process.is_some() {
        plan.add_configuration(seen, policy)?;
        plan.add_start(seen, policy)?;
    }
    if seen.process.is_none() {
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
                let adds = format!("\"{IPTABLES}\": false");
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

    /// Adds the step that enables the unit at boot, if the unit is disabled. Activation by its socket is not enough:
    /// after a boot, the containers would stay down until somebody connects.
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

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
