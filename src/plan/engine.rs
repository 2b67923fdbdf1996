//! Plan for the engine: its configuration, packages and start (field notes 7, 8 and 20).
//!
//! The order is the point: `"iptables": false` must be in daemon.json before the engine is started for the first
//! time, and Debian's packages start it while they are being installed. So the file comes first, then the packages,
//! then the start. An engine that answers is left as it is, file and all: a key that would only take effect at its
//! next restart is not slipped in behind the operator's back.

use super::daemon_json::{merged, running_findings};
use super::engine_network::overlaps;
use crate::model::code::Code;
use crate::model::engine::{
    CommandLine, DaemonJson, EngineApi, EngineProcess, EngineSeen, EngineVersion, Init, NOT_DOCKER,
};
use crate::model::engine_options::{EngineOptions, plain_run};
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
        EngineApi::NotDocker(what) => {
            let text = format!("{what}; nothing was changed: {NOT_DOCKER}");
            Err(Fault::new(Code::EngineNotDocker, text))
        }
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
    let mut findings = running_findings(seen, policy)?;
    findings.extend(overlaps(seen));
    let mut plan = EnginePlan { findings, ..EnginePlan::default() };
    plan.add_enable(seen);
    Ok(plan)
}

fn plan_stopped(seen: &EngineSeen, policy: &EnginePolicy) -> Result<EnginePlan, Fault> {
    let masked = masked(seen).filter(|_| seen.process.is_none());
    if let Some(fault) = masked.or_else(|| listens_elsewhere(seen, policy)) {
        return Err(fault);
    }
    let mut plan = EnginePlan::default();
    // A unit that is being stopped can be started, too: systemd does so once it has stopped.
    let stops = seen.unit.as_ref().is_some_and(|unit| unit.active == "deactivating");
    if stops && seen.process.is_some() {
        plan.add_configuration(seen, policy)?;
        plan.add_start(seen, policy)?;
    }
    if seen.process.is_none() {
        plan.add_configuration(seen, policy)?;
        plan.findings.extend(overlaps(seen));
        plan.add_install(seen, policy)?;
        plan.add_enable(seen);
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
        let merge = merged(seen, policy)?;
        self.findings.extend(merge.findings);
        if let Some((text, adds)) = merge.write {
            let path = seen.config_file.clone();
            let replaces = seen.daemon_json != DaemonJson::Absent;
            self.steps.push(Step::WriteDaemonJson { path, text, adds, replaces });
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
    fn add_enable(&mut self, seen: &EngineSeen) {
        // A unit that is yet to be installed is not known as disabled: the package enables it or not, which is
        // observed when the plan is made again after the installation.
        if let Some(unit) = seen.unit.as_ref().filter(|unit| unit.file == "disabled") {
            self.steps.push(Step::EnableUnit(unit.name.clone()));
        }
    }

    fn add_start(&mut self, seen: &EngineSeen, policy: &EnginePolicy) -> Result<(), Fault> {
        match (&seen.init, &seen.unit) {
            (Init::Systemd, Some(unit)) if unit.load == "not-found" && seen.installed.is_some() => {
                Err(Fault::new(
                    Code::EngineUnitMissing,
                    format!(
                        "{} is installed, and systemd knows no {}: name the engine's unit in engine.unit, or \
                         start the engine by hand",
                        seen.installed.as_deref().unwrap_or_default(),
                        unit.name
                    ),
                ))
            }
            (Init::Systemd, None) if seen.unit_error.is_some() => Err(Fault::new(
                Code::SystemdUnreachable,
                format!(
                    "systemd could not be asked about {} over D-Bus: {}",
                    policy.unit,
                    seen.unit_error.as_deref().unwrap_or_default()
                ),
            )),
            (Init::Systemd, unit) => {
                let unit = unit.as_ref().map_or(&policy.unit, |unit| &unit.name);
                self.steps.push(Step::StartUnit(unit.clone()));
                Ok(())
            }
            (Init::Other(_), _) => {
                let binary = seen.installed.clone().unwrap_or_else(|| policy.binary.clone());
                let args = seen.command_line.args().to_vec();
                self.steps.push(Step::StartDaemon { binary, args });
                Ok(())
            }
        }
    }
}

/// Fault of an engine whose unit the operator masked.
fn masked(seen: &EngineSeen) -> Option<Fault> {
    let unit = seen.unit.as_ref().filter(|unit| unit.load == "masked")?;
    let name = &unit.name;
    Some(Fault::new(
        Code::EngineUnitMasked,
        format!("{name} is masked: `systemctl unmask {name}` if the engine may run"),
    ))
}

/// Fault of an engine that listens, or will, at other sockets than the agent's; `None` if that is not certain.
fn listens_elsewhere(seen: &EngineSeen, policy: &EnginePolicy) -> Option<Fault> {
    let CommandLine::Known(args) = &seen.command_line else { return None };
    let is_installed = seen.process.is_some() || seen.installed.is_some();
    let leads_to = seen.socket_target.as_deref().unwrap_or(&policy.socket);
    let own = [policy.socket.as_str(), leads_to].map(plain_run);
    let options = EngineOptions::new(args, &seen.daemon_json);
    let hosts = options.hosts();
    // systemd's socket units have their own paths.
    let may_be = |host: &&str| {
        host.starts_with("fd://")
            || host
                .strip_prefix("unix://")
                .is_some_and(|path| path.is_empty() || own.contains(&plain_run(path)))
    };
    (is_installed && !hosts.iter().any(may_be)).then(|| {
        Fault::new(
            Code::EngineSocketElsewhere,
            format!(
                "the engine listens at {}, and not at {}: name its socket in engine.socket, or add \
                 unix://{} to its hosts",
                hosts.join(", "),
                policy.socket,
                policy.socket
            ),
        )
    })
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
