//! Exchange of a target for a new one of the same name: the new container is made before the old one is stopped, and
//! the old one is kept until the new one serves with its volumes.
//!
//! ```text
//! NAME           old, runs   old, runs   old, ended   –              –              new, serves    new, serves
//! NAME.next      –           new         new          new            –  (renamed)   –              –
//! NAME.previous  –           –           –            old, ended     old, ended     old, ended     –
//! ```
//! The desired state holds the [`Trial`] from before the first of these steps until after the last one. So the old
//! target can come back from each of them, also after a restart of the agent.

use std::time::Duration;

use super::target::{TargetPlan, grace, prepare_sockets, wait};
use crate::model::code::Code;
use crate::model::container::{ContainerSeen, ContainerSpec};
use crate::model::fault::Fault;
use crate::model::policy::TargetPolicy;
use crate::model::step::Step;
use crate::model::target::{TargetName, TargetSeen, TargetSpec, Trial};

/// Return of a target whose successor does not serve.
#[derive(Debug, Default, PartialEq)]
pub struct Return {
    /// Steps that give the old container its name back. Until they are done, the target has not come back.
    pub moves: Vec<Step>,
    /// Steps that start the old container; from here on it is a target like any other.
    pub starts: Vec<Step>,
    /// Steps that remove the successor.
    pub clears: Vec<Step>,
}

/// Plans the return of the target that the one on trial has replaced, or was to replace; `None` if its container no
/// longer exists.
///
/// # Errors
/// `container-not-ours` when somebody else's container has its name.
pub fn bring_back(
    name: &TargetName,
    trial: &Trial,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> Result<Option<Return>, Fault> {
    let [next, _] = name.beside();
    let is_old = |seen: &ContainerSeen| seen.id == trial.id;
    let named = seen.container.as_ref();
    let mut back = Return::default();
    let mut failed = seen.beside.iter().find(|(at, _)| *at == next).map(|(_, it)| it.clone());
    failed = failed.filter(|it| it.is_of(name) && !is_old(it));
    if !named.is_some_and(is_old) {
        let Some((at, _)) = seen.beside.iter().find(|(_, it)| is_old(it)) else { return Ok(None) };
        if let Some(successor) = named {
            if !successor.is_of(name) {
                return Err(not_ours(name.as_str()));
            }
            // The successor is renamed, not removed: the name is free at once, even if the engine cannot remove the
            // container.
            back.moves.extend(failed.take().iter().flat_map(|it| remove(&next, it)));
            back.moves.extend(stop(name.as_str(), successor));
            back.moves.push(rename(name.as_str(), &successor.id, &next));
            failed = Some(ContainerSeen { running: false, ..successor.clone() });
        }
        back.moves.push(rename(at, &trial.id, name.as_str()));
    }
    if !named.is_some_and(|it| is_old(it) && it.running) {
        back.starts.extend(trial.old.as_ref().map(prepare_sockets));
        back.starts.push(Step::StartContainer { name: name.to_string() });
        back.starts.extend(trial.old.as_ref().map(|old| wait(old, name.as_str(), policy)));
    }
    back.starts.extend(trial.restarts.clone().map(|restarts| Step::SetRestarts {
        name: name.to_string(),
        id: trial.id.clone(),
        restarts: Some(restarts),
    }));
    back.clears.extend(failed.iter().flat_map(|it| remove(&next, it)));
    Ok(Some(back))
}

/// Plans the removal of the containers left beside a target, except those of somebody else.
pub(super) fn clear(name: &TargetName, seen: &TargetSeen) -> Vec<Step> {
    let ours = seen.beside.iter().filter(|(_, it)| it.is_of(name));
    ours.flat_map(|(at, it)| remove(at, it)).collect()
}

fn not_ours(name: &str) -> Fault {
    let text = format!("a container named {name} is there that this agent did not make: remove it");
    Fault::new(Code::ContainerNotOurs, text)
}

/// Keeps the engine from restarting a stopped container by itself.
pub(super) fn leave_ended(name: &str, seen: &ContainerSeen) -> Option<Step> {
    let (name, id, restarts) = (name.to_string(), seen.id.clone(), None);
    seen.restarts.is_some().then_some(Step::SetRestarts { name, id, restarts })
}

fn rename(name: &str, id: &str, to: &str) -> Step {
    Step::RenameContainer { name: name.to_string(), id: Some(id.to_string()), to: to.to_string() }
}

fn stop(name: &str, seen: &ContainerSeen) -> Option<Step> {
    let (name, id, grace) = (name.to_string(), seen.id.clone(), Duration::ZERO);
    seen.running.then_some(Step::StopContainer { name, id, grace })
}

fn remove(name: &str, seen: &ContainerSeen) -> Vec<Step> {
    let removal = Step::RemoveContainer { name: name.to_string(), id: seen.id.clone() };
    stop(name, seen).into_iter().chain([removal]).collect()
}

impl TargetPlan {
    /// Adds the steps that exchange a running target for a new one. `start` has the steps that make and start the new
    /// one.
    ///
    /// # Errors
    /// When somebody else's container has a name that the exchange needs, or when connected virtual machines would look
    /// for their sockets in another folder.
    pub(super) fn exchange(
        &mut self,
        spec: &TargetSpec,
        old: &ContainerSeen,
        seen: &TargetSeen,
        policy: &TargetPolicy,
        start: Vec<Step>,
    ) -> Result<(), Fault> {
        if let Some((at, _)) = seen.beside.iter().find(|(_, it)| !it.is_of(&spec.name)) {
            return Err(not_ours(at));
        }
        let folder = old.made_for().map(|old| old.socket_dir);
        if let Some(folder) = folder.filter(|it| *it != spec.socket_dir && seen.sessions != Some(0))
        {
            let text = format!(
                "virtual machines of {} look for their sockets in {}, and would not find them in {}: shut them down \
                 first, or keep the socket folder",
                spec.name,
                folder.as_str(),
                spec.socket_dir.as_str()
            );
            return Err(Fault::new(Code::TargetInUse, text));
        }
        let (name, id) = (spec.name.to_string(), old.id.clone());
        let [next, previous] = spec.name.beside();
        // An unknown number of sessions counts as use: guests may wait.
        let is_used = seen.sessions != Some(0) || seen.disconnected > 0;
        self.steps.extend(clear(&spec.name, seen));
        let mut after = Vec::new();
        for step in start {
            match step {
                Step::CreateContainer(new) => {
                    let new = ContainerSpec { name: next.clone(), ..*new };
                    self.steps.push(Step::CreateContainer(Box::new(new)));
                    let (next, to) = (next.clone(), name.clone());
                    after.push(Step::RenameContainer { name: next, id: None, to });
                }
                Step::AwaitTarget { name, container, socket, within } => {
                    let most = policy.target.exchange_timeout;
                    let within = if is_used { within.min(most) } else { within };
                    after.push(Step::AwaitTarget { name, container, socket, within });
                }
                other => after.push(other),
            }
        }
        let grace = grace(seen, policy);
        self.steps.extend(leave_ended(&name, old));
        self.steps.push(Step::StopContainer { name: name.clone(), id: id.clone(), grace });
        self.steps.push(rename(&name, &id, &previous));
        self.steps.extend(after);
        Ok(())
    }

    /// Id of the container that these steps replace.
    pub fn exchanged(&self) -> Option<&str> {
        self.steps.iter().find_map(|step| match step {
            Step::RenameContainer { id, .. } => id.as_deref(),
            _ => None,
        })
    }
}

#[cfg(test)]
#[path = "replacement_tests.rs"]
mod tests;
