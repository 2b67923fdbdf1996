//! A target that answered and has stopped: whoever works on it waits no longer than until it counts as
//! frozen, for its owner, who is to bring it back, waits with him.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::super::observe::target::Containers;
use super::owner::Owner;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::status::Standings;
use crate::model::step::Step;
use crate::model::target::{TargetName, TargetSeen};

impl<C: Containers> Owner<C> {
    /// Does work that asks the target, and gives it up once the target is frozen.
    ///
    /// # Errors
    /// When it is.
    pub(super) async fn unless_frozen<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Fault> {
        let patience = self.parts.policy.heal.frozen_after;
        let mut standings = self.standings.clone();
        let name = self.name.clone();
        // Another call may have found that already.
        let mut known = self.frozen.map(|(_, since)| since);
        let stands = self.stands.map(|(pid, _)| pid);
        let frozen = async {
            loop {
                // The sender lives as long as the parts.
                let _ = standings.wait_for(|all| is_silent(all, &name)).await;
                let since = known.take().unwrap_or_else(Instant::now);
                let answers = standings.wait_for(|all| !is_silent(all, &name));
                if timeout_at(since + patience, answers).await.is_err() {
                    return since;
                }
            }
        };
        tokio::select! {
            // What was sent may still be done: whoever looks next sees that.
            done = work => Ok(done),
            // Cancel-safe: only looks.
            since = frozen => {
                if let Some(pid) = stands {
                    self.frozen.get_or_insert((pid, since));
                }
                let text = format!("{name} has not answered for {patience:?}: it is frozen, and is brought back");
                Err(Fault::new(Code::TargetNotAnswering, text))
            }
        }
    }

    /// One that answered before is not waited for like one that starts.
    pub(super) fn hasten(&mut self, steps: &mut [Step], seen: &TargetSeen, awaited: bool) {
        let running = seen.container.as_ref().filter(|container| container.running);
        let pid = running.and_then(|container| container.pid);
        if awaited || seen.version.is_some() {
            self.answered = pid;
        }
        if pid.is_some() && self.answered == pid {
            shorten(steps, self.parts.policy.heal.frozen_after);
        }
    }
}

/// Whether its process lives and does not answer.
fn is_silent(all: &Standings, name: &TargetName) -> bool {
    let health = all.get(name).and_then(|standing| standing.health.as_ref());
    health.is_some_and(|health| health.pid.is_some() && health.version.is_none())
}

/// Steps that only wait for a target wait no longer than that.
fn shorten(steps: &mut [Step], most: Duration) {
    if let [Step::AwaitTarget { within, .. }] = steps {
        *within = (*within).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awaits(seconds: u64) -> Step {
        Step::AwaitTarget {
            name: "t".to_string(),
            container: "t".to_string(),
            socket: "/t.sock".to_string(),
            within: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn only_a_wait_for_a_target_that_was_there_already_is_shortened() {
        let most = Duration::from_secs(3);
        let mut alone = [awaits(20)];
        shorten(&mut alone, most);
        assert_eq!(alone, [awaits(3)]);
        let mut short = [awaits(1)];
        shorten(&mut short, most);
        assert_eq!(short, [awaits(1)]);
        let mut started = [Step::StartContainer { name: "t".to_string() }, awaits(20)];
        shorten(&mut started, most);
        assert_eq!(started[1], awaits(20));
    }
}
