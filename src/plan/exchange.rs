//! The exchange of a target for another one of its name: the new container is made before the old one is stopped, and
//! the old one is kept until the new one serves with its volumes.
//!
//! ```text
//! NAME           old, runs   old, runs   old, ended   –              –              new, serves    new, serves
//! NAME.next      –           new         new          new            –  (renamed)   –              –
//! NAME.previous  –           –           –            old, ended     old, ended     old, ended     –
//! ```
//! From each of these the old one can come back.

use std::time::Duration;

use super::target::{TargetPlan, grace, prepare_sockets, wait};
use crate::model::container::{ContainerSeen, ContainerSpec};
use crate::model::policy::TargetPolicy;
use crate::model::step::Step;
use crate::model::target::{TargetSeen, TargetSpec};

/// Plans the removal of containers that an exchange which was cut off has left, by their names.
pub fn clear(left: &[(String, ContainerSeen)]) -> Vec<Step> {
    left.iter().flat_map(|(name, seen)| remove(name, seen)).collect()
}

/// Plans the return of a target whose successor does not serve: `old` and the id of its container, what has its name
/// now, and what is there beside it.
pub fn bring_back(
    old: &TargetSpec,
    old_id: &str,
    named: Option<&ContainerSeen>,
    beside: &[(String, ContainerSeen)],
    policy: &TargetPolicy,
) -> Vec<Step> {
    let name = old.name.to_string();
    let named = named.map(|seen| (&name, seen)).into_iter();
    let all = named.chain(beside.iter().map(|(name, seen)| (name, seen)));
    let (kept, failed): (Vec<_>, Vec<_>) = all.partition(|(_, seen)| seen.id == old_id);
    let mut steps: Vec<Step> = failed.into_iter().flat_map(|(at, seen)| remove(at, seen)).collect();
    for (at, _) in kept.into_iter().filter(|(at, _)| **at != name) {
        let id = Some(old_id.to_string());
        steps.push(Step::RenameContainer { name: at.clone(), id, to: name.clone() });
    }
    steps.push(prepare_sockets(old));
    steps.push(Step::StartContainer { name });
    steps.push(wait(old, old.name.as_str(), policy));
    steps
}

fn remove(name: &str, seen: &ContainerSeen) -> Vec<Step> {
    let (name, id, grace) = (name.to_string(), seen.id.clone(), Duration::ZERO);
    let stop =
        seen.running.then(|| Step::StopContainer { name: name.clone(), id: id.clone(), grace });
    stop.into_iter().chain([Step::RemoveContainer { name, id }]).collect()
}

impl TargetPlan {
    /// Exchanges a target for a new one, by the steps that `start` that.
    pub(super) fn exchange(
        &mut self,
        spec: &TargetSpec,
        old: &ContainerSeen,
        seen: &TargetSeen,
        policy: &TargetPolicy,
        start: Vec<Step>,
    ) {
        let (name, id) = (spec.name.to_string(), old.id.clone());
        let [next, previous] = spec.name.beside();
        // Guests of one that does not answer wait in any case.
        let is_used = !old.running || seen.sessions != Some(0) && seen.serves();
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
        if old.running {
            let (name, id, grace) = (name.clone(), id.clone(), grace(seen, policy));
            self.steps.push(Step::StopContainer { name, id, grace });
        }
        self.steps.push(Step::RenameContainer { name, id: Some(id), to: previous });
        self.steps.extend(after);
    }

    /// The id of the container that another one takes the place of by these steps.
    pub fn exchanged(&self) -> Option<&str> {
        self.steps.iter().find_map(|step| match step {
            Step::RenameContainer { id, .. } => id.as_deref(),
            _ => None,
        })
    }
}
