//! `vhost-agent doctor`: all that this node has to tell, each part judged.

use std::fmt;

use anyhow::Result;
use hyper::Method;
use serde::Serialize;

use super::agent_client::{ANSWER, Agent, NodeRoot};
use super::prepare::{PrepareArgs, prepared};
use super::render::{ProgressBars, print_checks};
use super::{Output, exit};
use crate::api::v1::domains::DomainsView;
use crate::model::code::Code;
use crate::model::fault::{Fault, Finding};
use crate::model::node::NodeStatus;
use crate::model::prepare::{Outcome, PrepareReport};
use crate::model::status::{NodeReport, TargetReport};
use crate::model::target::TargetState;

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum CheckState {
    Ok,
    /// It works, and something is to be known or done.
    Warn,
    /// Something does not work.
    Fail,
}

impl fmt::Display for CheckState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CheckState::Ok => "ok",
            CheckState::Warn => "warn",
            CheckState::Fail => "FAIL",
        })
    }
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    /// Part of the node that was checked.
    pub check: &'static str,
    pub state: CheckState,
    /// Code of the error or finding, if it is one.
    pub code: Option<Code>,
    pub text: String,
    /// Command that helps.
    pub fix: Option<String>,
}

impl Check {
    fn new(check: &'static str, state: CheckState, text: impl Into<String>) -> Check {
        Check { check, state, code: None, text: text.into(), fix: None }
    }

    fn fix(self, command: impl Into<String>) -> Check {
        Check { fix: Some(command.into()), ..self }
    }

    fn fault(check: &'static str, Fault { code, text }: Fault) -> Check {
        Check { code: Some(code), ..Check::new(check, CheckState::Fail, text) }
    }

    fn finding(check: &'static str, Finding { code, text }: Finding) -> Check {
        Check { code: Some(code), ..Check::new(check, CheckState::Warn, text) }
    }
}

/// All checks, in the order in which they were made.
#[derive(Debug, Serialize)]
pub(super) struct Checks {
    pub outcome: CheckState,
    pub checks: Vec<Check>,
}

pub(super) async fn run(place: NodeRoot, output: Output) -> Result<u8> {
    let agent = place.looker().await?;
    let mut checks = vec![match agent.is_here() {
        false => Check::new("agent", CheckState::Ok, "runs, and answers"),
        true => {
            let text = "no agent runs on this node: nothing is recovered, and no call is taken";
            Check::new("agent", CheckState::Fail, text).fix("systemctl start vhost-agent")
        }
    }];
    checks.extend(node(&agent).await);
    let mut has_targets = false;
    if !agent.is_here() {
        let (targets, any) = targets(&agent).await;
        checks.extend(targets);
        has_targets = any;
    }
    checks.extend(preparation(&agent, &place, has_targets).await);
    checks.extend(domains(&agent).await);
    let outcome = checks.iter().map(|it| it.state).max().unwrap_or(CheckState::Ok);
    print_checks(&Checks { outcome, checks }, output)?;
    Ok(if outcome == CheckState::Fail { exit::FAILED } else { exit::HOLDS })
}

/// Check of a part that could not be asked for.
fn unanswered(check: &'static str, error: &anyhow::Error) -> Vec<Check> {
    let code = error.downcast_ref::<Fault>().map(|fault| fault.code);
    vec![Check { code, ..Check::new(check, CheckState::Fail, format!("{error:#}")) }]
}

/// `checks`, or one that says that there is nothing to say.
fn or_ok(checks: Vec<Check>, check: &'static str, text: String) -> Vec<Check> {
    if checks.is_empty() { vec![Check::new(check, CheckState::Ok, text)] } else { checks }
}

async fn node(agent: &Agent) -> Vec<Check> {
    let asked = agent.call::<NodeStatus>(Method::GET, "/v1/node", None::<&()>, ANSWER).await;
    let status = match asked {
        Ok(status) => status,
        Err(error) => return unanswered("node", &error),
    };
    let errors = status.errors.into_iter().map(|it| Check::fault("node", it));
    let mut checks: Vec<Check> = errors.collect();
    checks.extend(status.findings.into_iter().map(|it| Check::finding("node", it)));
    let access = status.access.into_iter().flat_map(|access| access.warnings);
    checks.extend(access.map(|text| Check::new("access", CheckState::Warn, text)));
    or_ok(checks, "node", format!("{}, kernel {}", status.hostname, status.kernel))
}

/// What the usual prepare would change. With targets no pages are asked for: those of the prepare are in use then, by targets and
/// guests, and whether there are more does not matter. It is nothing that does not work, and so a warning at most.
async fn preparation(agent: &Agent, place: &NodeRoot, has_targets: bool) -> Vec<Check> {
    let bars = ProgressBars::new(Output::Json, true);
    let asked = match PrepareArgs::usual().body(&place.settings) {
        Ok(mut body) => {
            if has_targets {
                body.hugepages = Some(Vec::new());
            }
            prepared(agent, &body, true, &bars).await
        }
        Err(usage) => Err(usage.into()),
    };
    let report: PrepareReport = match asked {
        Ok(report) => report,
        Err(error) => return unanswered("prepare", &error),
    };
    let errors = report.errors.into_iter().map(|it| Check::finding("prepare", it.into()));
    let mut checks: Vec<Check> = errors.collect();
    checks.extend(report.findings.into_iter().map(|it| Check::finding("prepare", it)));
    if report.outcome == Outcome::WouldChange {
        let steps = report.steps.iter().map(|it| format!("{} {}", it.step, it.subject));
        let steps = steps.collect::<Vec<_>>().join(", ");
        let text = format!("the node is not prepared for a target: {steps}");
        checks.push(Check::new("prepare", CheckState::Warn, text).fix("vhost-agent prepare"));
    }
    or_ok(checks, "prepare", "hugepages, mounts and Docker are as wanted".to_string())
}

/// Checks of the targets, and whether there are any.
async fn targets(agent: &Agent) -> (Vec<Check>, bool) {
    let asked = agent.call::<NodeReport>(Method::GET, "/v1/status", None::<&()>, ANSWER).await;
    let report = match asked {
        Ok(report) => report,
        Err(error) => return (unanswered("targets", &error), false),
    };
    let mut checks: Vec<Check> = report.targets.iter().flat_map(target).collect();
    checks.extend(report.findings.into_iter().map(|it| Check::finding("targets", it)));
    (or_ok(checks, "targets", "none is wanted".to_string()), !report.targets.is_empty())
}

fn target(target: &TargetReport) -> Vec<Check> {
    let (name, tally) = (&target.name, &target.volumes);
    let volumes = format!("{} of {} volumes serve", tally.serving, tally.wanted);
    let mut checks = vec![match target.state {
        TargetState::Serving if tally.serving == tally.wanted => {
            Check::new("targets", CheckState::Ok, format!("{name} serves, {volumes}"))
        }
        TargetState::Serving => {
            Check::new("targets", CheckState::Fail, format!("{name} serves, but {volumes}"))
                .fix(format!("vhost-agent volume list --target {name}"))
        }
        state => {
            let text = format!("{name} is {state} since {}: {}", target.since, target.reason);
            Check::new("targets", CheckState::Fail, text).fix(format!("vhost-agent health {name}"))
        }
    }];
    let guests = [
        (tally.disconnected_sessions, "have not come back after their target's last exit"),
        (tally.not_reconnecting, "would not connect again after the next exit of their target"),
    ];
    for (count, what) in guests.into_iter().filter(|(count, _)| *count > 0) {
        let text = format!("{count} virtual machines of {name} {what}");
        let fix = format!("vhost-agent volume list --target {name}");
        checks.push(Check::new("guests", CheckState::Warn, text).fix(fix));
    }
    checks
}

async fn domains(agent: &Agent) -> Vec<Check> {
    let asked = agent.call::<DomainsView>(Method::GET, "/v1/domains", None::<&()>, ANSWER).await;
    let view = match asked {
        Ok(view) => view,
        Err(error) => return unanswered("libvirt", &error),
    };
    let count = view.domains.len();
    let findings = view.domains.into_iter().flat_map(|it| it.findings);
    let checks = findings.map(|it| Check::finding("libvirt", it)).collect();
    let text = format!("{count} virtual machines with vhost-user disks or hugepages");
    or_ok(checks, "libvirt", text)
}
