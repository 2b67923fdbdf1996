//! Looking after a target that is wanted: steps of its lifecycle, and what each asks for.
//!
//! ```text
//! observation ──▶ lifecycle::step ──▶ start, kill, or wait ──▶ its volumes, once it serves
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::observe::target::Containers;
use super::TargetWish;
use super::owner::Owner;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::observation::{Observation, Process};
use crate::model::prepare::PartReport;
use crate::model::status::VolumeTally;
use crate::model::target::{EnsureWish, TargetSeen, TargetSpec};
use crate::plan::lifecycle::{Action, Attempt, Phase, Remembered, Situation, State, Step, step};
use crate::plan::quarantine::Exit;
use crate::plan::target::end_frozen;

/// An engine that does not answer is asked again after so long: it may come back any moment, and its
/// absence says nothing of the target.
const ENGINE_PAUSE: Duration = Duration::from_secs(2);
/// After its volumes were brought back, guests are looked for often for so long …
const RETURN_TIME: Duration = Duration::from_secs(30);
/// … with that between two looks.
const RETURN_PAUSE: Duration = Duration::from_secs(1);
/// Steps in a row, each of which leads to another phase.
const MOST_STEPS: usize = 16;

impl<C: Containers> Owner<C> {
    /// Does what is due.
    pub(super) async fn tend(&mut self) {
        let Some(spec) = self.parts.desired.get(&self.name) else { return self.rest().await };
        for _ in 0..MOST_STEPS {
            let (action, changed) = self.advance(true).await;
            match action {
                Action::Start => self.attempt(&spec).await,
                Action::Kill => self.kill(&spec).await,
                Action::Wait if changed => {}
                Action::Wait => break,
            }
        }
        self.look_after_volumes().await;
    }

    /// The same without starting or killing anything, while it is on probation until that is over.
    pub(super) async fn tend_standing(&mut self) {
        loop {
            for _ in 0..MOST_STEPS {
                if !self.advance(false).await.1 {
                    break;
                }
            }
            if !matches!(self.state.phase, Phase::Probation { .. }) {
                break;
            }
            self.tended = Instant::now();
            self.wakes().await;
        }
        self.look_after_volumes().await;
    }

    /// One step of the lifecycle: what is to be done, and whether it led to another phase. Who is not `free`
    /// is told, and does it later.
    async fn advance(&mut self, free: bool) -> (Action, bool) {
        let Some(seen) = self.see() else { return (Action::Wait, false) };
        let done = self.step(&self.state, &seen, free);
        let before = std::mem::replace(&mut self.state, done.state);
        self.requeue_at = done.requeue_at.map(Instant::from_std);
        (self.attempt, self.stopped) = (None, false);
        let changed = before.phase != self.state.phase;
        if changed {
            self.enter(before.phase, &seen).await;
        }
        (done.action, changed)
    }

    /// What is seen now.
    fn see(&mut self) -> Option<Arc<Observation>> {
        self.observations().map(|seen| seen.borrow_and_update().clone())
    }

    fn step(&self, state: &State, seen: &Observation, is_free: bool) -> Step {
        let volumes = self.parts.desired.volumes(&self.name);
        let heal = &self.parts.policy.heal;
        let situation = Situation {
            wanted: self.parts.desired.get(&self.name).is_some(),
            has_users: !volumes.is_empty(),
            bringing_up: false,
            stopping: self.stopped,
            is_free,
            at_start: self.at_start,
            attempt: self.attempt,
            settles_until: self.controllers_made.map(|made| (made + heal.settle).into_std()),
        };
        step(state, seen, &situation, Instant::now().into_std(), heal)
    }

    /// It is in another phase.
    async fn enter(&mut self, before: Phase, seen: &Observation) {
        let name = self.name.clone();
        tracing::debug!(target_name = %name, from = before.name(), to = self.state.phase.name(), "{name} goes on");
        match self.state.phase {
            Phase::Down { .. } if before.pid().is_some() => self.note_exit(seen).await,
            Phase::Probation { pid, .. } => {
                self.answered = Some(pid);
                self.at_start = false;
                self.without_engine = false;
            }
            Phase::Serving { pid, .. } if self.in_place != Some(pid) => {
                self.next_pass = Instant::now()
            }
            Phase::Unresponsive { .. } if before.name() != self.state.phase.name() => {
                let silence = seen.answers.silence();
                tracing::warn!(target_name = %name, "{name} is unresponsive: {silence}");
            }
            Phase::Paused { .. } => {
                tracing::warn!(target_name = %name, "{name} is paused: its cgroup is frozen, and nothing is done to it");
            }
            _ => {}
        }
        if self.state.remembers() != self.written {
            // Before anything is done: the agent may die in that, too.
            self.write_falls().await;
        }
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.parts.desired.get(&self.name)?;
        let has_volumes = !self.parts.desired.volumes(&self.name).is_empty();
        let serves = matches!(self.state.phase, Phase::Serving { .. }) && has_volumes;
        let pass = serves.then_some(self.next_pass);
        let retry = self.retry.due().map(Instant::from_std).filter(|_| serves);
        self.requeue_at.into_iter().chain(pass).chain(retry).min()
    }

    /// Nobody wants it: there is nothing to remember.
    async fn rest(&mut self) {
        if self.state.phase == Phase::Unwanted && self.written == Remembered::default() {
            return;
        }
        let (written, at_start) = (self.written, self.at_start);
        *self = Owner::new(self.name.clone(), self.parts.clone(), self.board.clone());
        (self.written, self.at_start) = (written, at_start);
        self.board.put(&self.name, super::Volumes::default());
        self.parts.desired.in_place(&self.name, None);
        self.parts.desired.trouble(&self.name, None);
    }

    /// Its volumes, when it serves and that is due.
    async fn look_after_volumes(&mut self) {
        let Phase::Serving { pid, .. } = self.state.phase else { return };
        let now = Instant::now();
        let retry = self.retry.due().is_some_and(|due| due <= now.into_std());
        if retry || self.next_pass <= now || self.in_place != Some(pid) {
            self.settle(pid).await;
        }
    }

    /// All volumes.
    async fn settle(&mut self, pid: u32) {
        let volumes = self.parts.desired.volumes(&self.name);
        let began = Instant::now();
        let is_new = self.in_place != Some(pid);
        let retries = is_new || self.retry.due().is_some_and(|due| due <= began.into_std());
        let done = self.pass(volumes.values().cloned().collect(), retries).await;
        let now = Instant::now();
        let returning = self.book.is_unsettled()
            && self.controllers_made.is_some_and(|made| made.elapsed() < RETURN_TIME);
        let pause = if returning { RETURN_PAUSE } else { self.parts.policy.volumes.look_interval };
        match done {
            Ok(passed) => {
                (self.in_place, self.passed) = (Some(pid), Some(now));
                self.next_pass = now + pause;
                self.publish();
                self.parts.desired.trouble(&self.name, None);
                self.parts.desired.in_place(&self.name, Some(pid));
                self.tell_of_volumes(passed.made, began.elapsed());
            }
            Err(fault) => {
                self.next_pass = now + RETURN_PAUSE;
                self.retry.failed(now.into_std());
                tracing::warn!(
                    target_name = %self.name, code = %fault.code,
                    "the volumes of {} could not be looked at: {fault}", self.name
                );
                self.publish();
            }
        }
    }

    /// Whether all its volumes were brought about in the process that serves now.
    pub(super) fn is_in_place(&self) -> bool {
        matches!(self.state.phase, Phase::Serving { pid, .. } if self.in_place == Some(pid))
    }

    /// Does work that asks the target, and gives it up once the target is to be killed, or is paused: whoever
    /// waits for it, waits for nothing.
    ///
    /// # Errors
    /// When that is so.
    pub(super) async fn unless_stuck<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Fault> {
        let name = self.name.clone();
        let stuck = async {
            // Steps on the way are taken for good, and acted on, once the work has ended.
            let mut state = self.state.clone();
            loop {
                let Some(seen) = self.see() else { std::future::pending().await };
                let done = self.step(&state, &seen, false);
                let changed = done.state.phase != state.phase;
                state = done.state;
                if done.action == Action::Kill || matches!(state.phase, Phase::Paused { .. }) {
                    // Silent since then, and not since it is looked at next.
                    if matches!(state.phase, Phase::Unresponsive { .. }) {
                        self.state.phase = state.phase;
                    }
                    return match state.phase {
                        Phase::Paused { .. } => "its container is paused: unpause it".to_string(),
                        _ => format!("{}: it is brought back", seen.answers.silence()),
                    };
                }
                if !changed {
                    self.waits(done.requeue_at.map(Instant::from_std)).await;
                }
            }
        };
        tokio::select! {
            // What was sent may still be done: whoever looks next sees that.
            done = work => Ok(done),
            // Cancel-safe: only looks.
            why = stuck => {
                let text = format!("{name} does not answer: {why}");
                Err(Fault::new(Code::TargetNotAnswering, text))
            }
        }
    }

    /// Kills its process, which is stuck: as long as it takes connections and serves none, each guest that
    /// reconnects to it is lost.
    async fn kill(&mut self, spec: &TargetSpec) {
        let silence = self.see().map(|seen| seen.answers.silence().to_string()).unwrap_or_default();
        let container = self.parts.observer.container_of(spec).await;
        let step = container.map(|container| end_frozen(spec, container.as_ref()));
        let done = match step {
            Ok(Some(step)) => {
                tracing::error!(
                    target_name = %self.name,
                    "{} is stuck, and is killed so that it can be brought back: {silence}", self.name
                );
                let cause = format!("killed by the agent, for it was stuck: {silence}");
                self.note_last_exit(cause);
                self.exit = Some(Exit::Killed);
                self.apply(&step, &TargetSeen::default(), &mut PartReport::default()).await
            }
            Ok(None) => Ok(()),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = done {
            tracing::warn!(target_name = %self.name, code = %fault.code, "{} is stuck: {fault}", self.name);
        }
        self.parts.health.look_again(&self.name, &spec.control_sock).await;
    }

    async fn note_exit(&mut self, seen: &Observation) {
        let again = self.parts.desired.has_trouble(&self.name);
        let why = match &seen.process {
            // What is told of one that exits again and again is no news of its next exit.
            _ if again => "its process has exited once more".to_string(),
            Process::Ended(how) => how.clone(),
            Process::NoContainer => "there is no container of that name".to_string(),
            _ => "another process answers in its place".to_string(),
        };
        self.parts.stands.fell(&self.name);
        let at = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        self.book.fell(&at);
        (self.in_place, self.next_pass) = (None, Instant::now());
        let volumes = self.parts.desired.volumes(&self.name).len();
        self.parts.desired.in_place(&self.name, None);
        self.publish();
        let failures = self.state.retry.failures();
        let heals = self.parts.policy.heal.enabled || self.at_start;
        tracing::warn!(
            target_name = %self.name, volumes, failures, heals,
            "{} with {volumes} volumes is down: {why}", self.name
        );
        if self.state.retry.is_crash_loop() {
            let within = self.parts.policy.call_timeout;
            let evidence = self.parts.observer.last_words(&self.name, &why, within).await;
            self.blame(&evidence);
        }
    }

    /// One try to bring it up, with its volumes; one that hangs since it was started goes first.
    async fn attempt(&mut self, spec: &TargetSpec) {
        let began = Instant::now();
        if !self.parts.node.engine_runs().await {
            let text = "it does not run";
            return self.wait_for_engine(&Fault::new(Code::EngineAbsent, text)).await;
        }
        // Not one that somebody has started since, or that was not even asked yet.
        let hangs = |seen: Arc<Observation>| {
            let old = matches!(seen.process, Process::Lives { young: false, .. });
            old && seen.answers.is_silent() && seen.version().is_none() && !seen.is_busy()
        };
        if self.see().is_some_and(hangs) {
            self.kill(spec).await;
        }
        // What it left in its container may be what it falls over.
        let anew = self.state.retry.is_crash_loop();
        let wish = EnsureWish { anew, ..EnsureWish::default() };
        let mut report = PartReport::default();
        let done = self.change(&TargetWish::Ensure(spec.clone(), wish), &mut report).await;
        // What it replaced was dead.
        self.stopped = false;
        match done {
            Ok(()) => {
                let answers = self.see().is_some_and(|seen| seen.version().is_some());
                if !answers {
                    // It has not been seen to stand.
                    self.attempt = Some(Attempt::Failed);
                } else if !report.steps.is_empty() {
                    self.parts.stands.restarted(&self.name);
                    let took = began.elapsed();
                    tracing::info!(target_name = %self.name, "{} was brought up again in {took:.1?}", self.name);
                }
            }
            Err(fault) if fault.code.is_engine_away() => self.wait_for_engine(&fault).await,
            Err(fault) => {
                self.attempt = Some(Attempt::Failed);
                let failures = self.state.retry.failures() + 1;
                tracing::warn!(
                    target_name = %self.name, failures, code = %fault.code,
                    "{} could not be brought up again: {fault}", self.name
                );
                if failures >= crate::plan::retry::CRASH_LOOP {
                    self.blame(&fault.text);
                }
            }
        }
    }

    async fn wait_for_engine(&mut self, fault: &Fault) {
        let first = !std::mem::replace(&mut self.without_engine, true);
        if first {
            tracing::warn!(
                target_name = %self.name, code = %fault.code,
                "{} cannot be brought up again before the engine answers: {fault}", self.name
            );
        }
        let raised = self.parts.node.raise_engine().await;
        // Guests wait: one that was just started is asked at once, but only once.
        let pause = if raised && first { Duration::ZERO } else { ENGINE_PAUSE };
        self.attempt = Some(Attempt::EngineAway(pause));
    }

    /// Says in the log how they stand, when that is another way than was said last.
    fn tell_of_volumes(&mut self, made: usize, took: Duration) {
        let tally = self.book.tally();
        let same =
            |told: VolumeTally| (told.serving, told.degraded) == (tally.serving, tally.degraded);
        if made == 0 && self.told.map_or(tally.degraded == 0, same) {
            return;
        }
        self.told = Some(tally);
        let text = format!(
            "{} of {} volumes of {} serve, {made} were made in {took:.1?}",
            tally.serving, tally.wanted, self.name
        );
        match tally.degraded {
            0 => tracing::info!(target_name = %self.name, "{text}"),
            degraded => {
                let first = self.book.stands().iter().find(|(_, it)| !it.reason.is_empty());
                let first = first.map(|(name, it)| format!("{name}: {}", it.reason));
                tracing::warn!(
                    target_name = %self.name, degraded, first = first.unwrap_or_default(),
                    "{text}, {degraded} could not be brought about and are tried again"
                );
            }
        }
    }

    /// It falls again and again: that is told with the evidence until it serves.
    fn blame(&self, evidence: &str) {
        let falls = self.state.retry.failures();
        let most = self.parts.policy.heal.most;
        let text = format!(
            "it falls again and again ({falls} times in short order), and is tried again with pauses of up \
             to {most:?}: {evidence}"
        );
        self.parts.desired.trouble(&self.name, Some(text));
    }

    /// Tells everybody how its volumes stand.
    pub(super) fn publish(&self) {
        self.board.put(&self.name, self.book.stands().clone());
        self.parts.stands.volumes(&self.name, self.book.tally());
    }
}
