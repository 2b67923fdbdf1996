//! Plans that bring a target up and take it away.
//!
//! A target that serves is left as it is: drift from the spec is reported, field by field, and applied only when that
//! is asked for; while guests are connected, only with force. A container that the agent did not make is observed,
//! and never removed unasked.

use std::time::Duration;

use super::admission::{
    authorize_bounds, validate_limit, validate_memory, validate_obstacle, validate_place,
};
use super::container::{container, image_and_load, is_isolated_otherwise};
use super::cores::{self, Chosen};
use super::replacement;
use crate::model::code::Code;
use crate::model::container::{ContainerSeen, DIGEST_LABEL};
use crate::model::cpu::CpuUse;
use crate::model::fault::{Fault, Finding};
use crate::model::policy::TargetPolicy;
use crate::model::step::Step;
use crate::model::target::{Drift, EnsureOptions, TargetSeen, TargetSpec};
use crate::model::units::NumaNode;

/// Shortest time that a target without guests gets to exit by itself. SPDK v26.05 with volumes takes 1.02 s. With
/// guests, a long exit would hang those that reconnect meanwhile (packaging/doc/facts.md, "Guests when a target dies"),
/// so such a target gets `target.stop_grace`.
const IDLE_GRACE: Duration = Duration::from_secs(3);

/// Steps for a target, with the findings and the drift to report.
#[derive(Debug, Default, PartialEq)]
pub struct TargetPlan {
    /// In order of execution.
    pub steps: Vec<Step>,
    /// Findings for the operator.
    pub findings: Vec<Finding>,
    /// Differences of the container from the spec.
    pub drift: Vec<Drift>,
}

/// Plans the steps after which the target runs as desired.
///
/// # Errors
/// When that is impossible, or has to be asked for explicitly.
pub fn ensure(
    spec: &TargetSpec,
    options: EnsureOptions,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> Result<TargetPlan, Fault> {
    let mut plan = TargetPlan::default();
    let Some(container) = &seen.container else {
        plan.bring_up(spec, options, seen, policy)?;
        return Ok(plan);
    };
    let made_for = container.made_for();
    if let Some(made_for) = &made_for {
        plan.drift = spec.drift(made_for);
    }
    // A difference in isolation is not reported as drift: every target that an older agent made has one.
    let is_isolated = !is_isolated_otherwise(spec, container, seen, policy);
    let is_good = made_for.is_some() && plan.drift.is_empty() && is_isolated && seen.serves();
    let replace = options.recreate && !is_good;
    if container.running && !replace {
        plan.leave(spec, container, made_for.is_some(), seen, policy);
        return Ok(plan);
    }
    if made_for.is_none() && !replace {
        return Err(not_ours(spec));
    }
    // The old container is removed only when the new one can be made, so that a missing image changes nothing.
    let mut new = TargetPlan::default();
    new.bring_up(spec, options, seen, policy)?;
    plan.findings.append(&mut new.findings);
    if !replace && !options.anew && new.makes_the_same_as(container, seen) {
        // A restart of the same container keeps its log, and is faster.
        new.steps.retain(|step| !matches!(step, Step::CreateContainer(_)));
        plan.steps.append(&mut new.steps);
        return Ok(plan);
    }
    let loads = |step: &Step| matches!(step, Step::LoadImage { .. });
    let (load, start): (Vec<Step>, Vec<Step>) = new.steps.into_iter().partition(loads);
    plan.steps.extend(load);
    may_go(spec, options.force, seen)?;
    if container.running {
        plan.exchange(spec, container, seen, policy, start)?;
    } else {
        plan.take_down(spec, container, seen, policy);
        plan.steps.extend(start);
    }
    Ok(plan)
}

/// Plans the removal of the target.
///
/// # Errors
/// When guests are connected and `force` is not set, or the container is somebody else's.
pub fn destroy(
    spec: &TargetSpec,
    force: bool,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> Result<TargetPlan, Fault> {
    let mut plan =
        TargetPlan { steps: replacement::clear(&spec.name, seen), ..TargetPlan::default() };
    if let Some(container) = &seen.container {
        if container.made_for().is_none() && !force {
            return Err(not_ours(spec));
        }
        may_go(spec, force, seen)?;
        plan.take_down(spec, container, seen, policy);
    }
    Ok(plan)
}

/// Plans the end of an unresponsive target; `None` if it does not run or the agent did not make it.
pub fn end_unresponsive(spec: &TargetSpec, container: Option<&ContainerSeen>) -> Option<Step> {
    let container = container.filter(|it| it.running && it.made_for().is_some())?;
    Some(Step::StopContainer {
        name: spec.name.to_string(),
        id: container.id.clone(),
        grace: Duration::ZERO,
    })
}

fn not_ours(spec: &TargetSpec) -> Fault {
    let name = &spec.name;
    Fault::new(
        Code::ContainerNotOurs,
        format!(
            "a container named {name} is there that this agent did not make: remove it, or insist \
             (recreate when deploying, force when destroying)"
        ),
    )
}

impl TargetPlan {
    /// `true` if the target differs from the spec and is left as it is.
    pub fn is_left(&self) -> bool {
        let makes = |step: &Step| matches!(step, Step::CreateContainer(_));
        !self.drift.is_empty() && !self.steps.iter().any(makes)
    }

    /// `true` if the new container would equal the one that has ended, so that this can be started.
    fn makes_the_same_as(&self, ended: &ContainerSeen, seen: &TargetSeen) -> bool {
        let digest = self.steps.iter().find_map(|step| match step {
            Step::CreateContainer(new) => new.labels.get(DIGEST_LABEL),
            _ => None,
        });
        // A container that failed to start is not tried twice.
        ended.error.is_empty()
            && digest.is_some()
            && ended.labels.get(DIGEST_LABEL) == digest
            && ended.image_id == seen.image_id
            && seen.has_image
    }

    /// Leaves a running container in place, and waits for one that does not serve yet.
    fn leave(
        &mut self,
        spec: &TargetSpec,
        container: &ContainerSeen,
        ours: bool,
        seen: &TargetSeen,
        policy: &TargetPolicy,
    ) {
        if !ours {
            let text = format!(
                "the container {} was not made by this agent: it is watched, and never changed or \
                 removed unasked",
                spec.name
            );
            self.findings.push(Finding::new(Code::ContainerNotOurs, text));
        }
        if !self.drift.is_empty() {
            let fields: Vec<String> = self
                .drift
                .iter()
                .map(|drift| format!("{} is {}, wanted {}", drift.field, drift.is, drift.wanted))
                .collect();
            let text = format!(
                "{} runs with other settings than wanted and was left so ({}): ask for recreate to \
                 replace it",
                spec.name,
                fields.join("; ")
            );
            self.findings.push(Finding::new(Code::TargetDrift, text));
        }
        if !seen.serves() {
            self.steps.push(wait(spec, &container.id, policy));
        }
    }

    fn take_down(
        &mut self,
        spec: &TargetSpec,
        container: &ContainerSeen,
        seen: &TargetSeen,
        policy: &TargetPolicy,
    ) {
        if container.running {
            self.steps.extend(replacement::leave_ended(spec.name.as_str(), container));
            self.steps.push(Step::StopContainer {
                name: spec.name.to_string(),
                id: container.id.clone(),
                grace: grace(seen, policy),
            });
        }
        let (name, id) = (spec.name.to_string(), container.id.clone());
        self.steps.push(Step::RemoveContainer { name, id });
    }

    pub(super) fn bring_up(
        &mut self,
        spec: &TargetSpec,
        options: EnsureOptions,
        seen: &TargetSeen,
        policy: &TargetPolicy,
    ) -> Result<(), Fault> {
        // Without a mount for pages of this size, the target takes other pages, or none.
        let pages = seen.huge_dir.as_ref().map_or(0, |_| policy.target.pages(spec));
        let chosen = choose_cores(spec, pages, seen);
        let memory = chosen
            .as_ref()
            .map_or(Ok(()), |chosen| validate_memory(spec, pages, &chosen.memory_nodes, seen));
        let limit = validate_limit(spec, pages, seen);
        let bounds = authorize_bounds(spec, seen, policy);
        // A caller that names a path or an image outside of its bounds learns nothing else about it.
        let is_allowed = bounds.is_ok() || options.recovers;
        let place = if is_allowed { validate_place(spec, seen) } else { Ok(()) };
        let doubts: Vec<Fault> =
            [memory, limit, bounds, place].into_iter().filter_map(Result::err).collect();
        let image = image_and_load(spec, seen);
        // All faults are reported at once, so that a caller can mend them together.
        let mut faults: Vec<Fault> = chosen.as_ref().err().cloned().into_iter().collect();
        match options.recovers {
            // A recovered target was accepted when it was new, and its guests wait: doubts become findings.
            true => self.findings.extend(doubts.into_iter().map(Finding::from)),
            false => faults.extend(doubts),
        }
        if is_allowed {
            faults.extend(image.as_ref().err().cloned());
            faults.extend(validate_obstacle(spec, seen).err());
        }
        Fault::none_of(faults)?;
        let (chosen, (image, load)) = (chosen?, image?);
        self.steps.extend(load);
        self.steps.push(prepare_sockets(spec));
        let container = container(spec, options, image, &chosen, seen, policy)?;
        self.findings.extend(chosen.findings);
        self.steps.push(Step::CreateContainer(Box::new(container)));
        self.steps.push(Step::StartContainer { name: spec.name.to_string() });
        self.steps.push(wait(spec, spec.name.as_str(), policy));
        Ok(())
    }
}

/// Chooses cores, on a NUMA node with so many free pages if there is one. The pages for a node without memory are those
/// of the nearest ones.
fn choose_cores(spec: &TargetSpec, pages: u64, seen: &TargetSeen) -> Result<Chosen, Fault> {
    let is_short = |node: &NumaNode| {
        let free = seen.free_pages_on(&seen.cpu_use.memory_nodes.beside(*node));
        free.saturating_add(seen.returning_pages) < pages
    };
    let short_nodes = seen.cpus.iter().map(|cpu| cpu.node).filter(is_short).collect();
    let cpu_use = CpuUse { short_nodes, ..seen.cpu_use.clone() };
    cores::choose(&spec.cores, &seen.cpus, &cpu_use)
}

/// Refuses to stop a target that is in use.
///
/// # Errors
/// While virtual machines are connected, or that is unknown, unless `force` is set.
fn may_go(spec: &TargetSpec, force: bool, seen: &TargetSeen) -> Result<(), Fault> {
    match seen.sessions {
        Some(0) => {}
        _ if force => {}
        Some(disks) => {
            let text = format!(
                "virtual machines use {disks} disks of {}: shut them down or move them away first, \
                 or insist with force (their disks stop until the target is back)",
                spec.name
            );
            return Err(Fault::new(Code::TargetInUse, text));
        }
        None => {
            let text = format!(
                "{} runs, and does not tell whether virtual machines use its disks: wait until it \
                 answers, or insist with force (their disks stop until the target is back)",
                spec.name
            );
            return Err(Fault::new(Code::TargetUseUnknown, text));
        }
    }
    Ok(())
}

/// Time that a target gets to exit by itself.
pub(super) fn grace(seen: &TargetSeen, policy: &TargetPolicy) -> Duration {
    match (seen.serves(), seen.sessions) {
        // A target that does not serve would only go on accepting connections without serving them.
        (false, _) => Duration::ZERO,
        (true, Some(0)) => policy.target.stop_grace.max(IDLE_GRACE),
        (true, _) => policy.target.stop_grace,
    }
}

pub(super) fn prepare_sockets(spec: &TargetSpec) -> Step {
    Step::PrepareSockets {
        folder: spec.socket_dir.as_str().to_string(),
        control: spec.control_sock.as_str().to_string(),
    }
}

pub(super) fn wait(spec: &TargetSpec, container: &str, policy: &TargetPolicy) -> Step {
    Step::AwaitTarget {
        name: spec.name.to_string(),
        container: container.to_string(),
        socket: spec.control_sock.as_str().to_string(),
        within: policy.target.ready_timeout,
    }
}

#[cfg(test)]
#[path = "target_isolation_tests.rs"]
mod isolation_tests;
#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
