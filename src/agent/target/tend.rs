//! Looking after a target that is wanted: what fell is brought back, what stands gets its volumes.
//!
//! ```text
//! answers ──▶ stands: volumes, at once; after a second fall within the minute only once it has proven itself
//! its process has ended ──▶ fell: brought up when the backoff says so
//! its process lives and does not answer ──▶ frozen: after a while killed, and brought up
//! ```

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::super::observe::target::Containers;
use super::TargetWish;
use super::owner::Owner;
use crate::health::backoff::Failures;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::prepare::PartReport;
use crate::model::status::VolumeTally;
use crate::model::target::{EnsureWish, TargetHealth, TargetSpec, TargetState};
use crate::plan::target::end_frozen;

/// An engine that does not answer is asked again after so long: it may come back any moment, and its
/// absence says nothing of the target.
const ENGINE_PAUSE: Duration = Duration::from_secs(2);
/// After its volumes were brought back, guests are looked for often for so long …
const RETURN_TIME: Duration = Duration::from_secs(30);
/// … with that between two looks.
const RETURN_PAUSE: Duration = Duration::from_secs(1);

impl<C: Containers> Owner<C> {
    /// Does what is due.
    pub(super) async fn tend(&mut self) {
        self.tending = Instant::now();
        let Some(spec) = self.parts.desired.get(&self.name) else { return self.rest() };
        let Some(health) = self.health() else { return };
        match (health.pid, &health.version) {
            (Some(_), Some(_)) => self.tend_standing().await,
            _ => self.tend_fallen(&spec, &health).await,
        }
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.parts.desired.get(&self.name)?;
        if self.fallen {
            // What the agent's start finds down is brought up by it, whatever becomes of later falls.
            let heals = self.parts.policy.heal.enabled || self.at_start;
            let due = self.backoff.due().filter(|_| heals)?;
            return Some(Instant::from_std(due).max(self.engine_again.unwrap_or(due.into())));
        }
        if let Some((pid, since)) = self.frozen.filter(|_| self.parts.policy.heal.enabled) {
            return Some(since + self.patience(pid));
        }
        self.stands?;
        let has_volumes = !self.parts.desired.volumes(&self.name).is_empty();
        let pass = has_volumes.then_some(self.next_pass);
        let retry = self.retry.due().map(Instant::from_std).filter(|_| has_volumes);
        // What the last look did not clear is cleared when it is seen to serve, which is news.
        let clears = self.backoff.clears().map(Instant::from_std).filter(|at| *at > self.tending);
        pass.into_iter().chain(retry).chain(clears).min()
    }

    /// Nobody wants it: there is nothing to remember.
    fn rest(&mut self) {
        if self.stands.is_none() && !self.fallen && self.written == Failures::default() {
            return;
        }
        let written = self.written;
        *self = Owner::new(self.name.clone(), self.parts.clone(), self.board.clone());
        self.written = written;
        self.board.put(&self.name, super::Volumes::default());
        self.parts.desired.rebuilds(&self.name, false);
        self.parts.desired.trouble(&self.name, None);
    }

    /// It answers, if it does: its volumes are looked after when that is due.
    pub(super) async fn tend_standing(&mut self) {
        let Some(TargetHealth { pid: Some(pid), version: Some(_), .. }) = self.health() else {
            return;
        };
        let now = Instant::now();
        if self.stands.is_none_or(|(stood, _)| stood != pid) {
            if self.stands.is_some() && !self.fallen {
                // It fell and was brought up by somebody else before that was seen.
                self.note_fall("another process answers in its place").await;
            }
            (self.stands, self.answered) = (Some((pid, now)), Some(pid));
            (self.in_place, self.next_pass) = (false, now);
        }
        (self.fallen, self.frozen, self.engine_again) = (false, None, None);
        self.at_start = false;
        self.backoff.serves(now.into_std());
        let retry = self.retry.due().is_some_and(|due| due <= now.into_std());
        if retry || self.next_pass <= now {
            self.settle(pid).await;
        }
    }

    /// All volumes, once the target has proven itself where it has to.
    async fn settle(&mut self, pid: u32) {
        let volumes = self.parts.desired.volumes(&self.name);
        // Before guests reconnect to it; and before it is said of one that always falls that it does not.
        let doubtful = match volumes.is_empty() {
            true => self.backoff.is_crash_loop(),
            false => self.backoff.must_prove(),
        };
        if !self.in_place && doubtful && !self.prove(pid).await {
            return;
        }
        let began = Instant::now();
        let retries = !self.in_place || self.retry.due().is_some_and(|due| due <= began.into_std());
        let done = self.pass(volumes.values().cloned().collect(), retries).await;
        let now = Instant::now();
        let returning = self.book.is_unsettled()
            && self.controllers_made.is_some_and(|made| made.elapsed() < RETURN_TIME);
        let pause = if returning { RETURN_PAUSE } else { self.parts.policy.volumes.look_interval };
        match done {
            Ok(passed) => {
                (self.in_place, self.passed) = (true, Some(now));
                self.next_pass = now + pause;
                self.parts.desired.rebuilds(&self.name, false);
                self.parts.desired.trouble(&self.name, None);
                self.tell_of_volumes(passed.made, began.elapsed());
            }
            Err(fault) => {
                self.next_pass = now + RETURN_PAUSE;
                self.retry.failed(now.into_std());
                tracing::warn!(
                    target_name = %self.name, code = %fault.code,
                    "the volumes of {} could not be looked at: {fault}", self.name
                );
            }
        }
        self.publish();
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

    /// Whether the process goes on answering until it has stood for long enough. What ends that is still
    /// news to who tends it.
    async fn prove(&mut self, pid: u32) -> bool {
        let Some((_, stood)) = self.stands else { return false };
        let until = stood + self.parts.policy.heal.prove;
        let mut standings = self.standings.clone();
        loop {
            let stands = {
                let all = standings.borrow_and_update();
                let health = all.get(&self.name).and_then(|standing| standing.health.as_ref());
                health.is_some_and(|it| it.pid == Some(pid) && it.version.is_some())
            };
            if !stands {
                return false;
            }
            if timeout_at(until, standings.changed()).await.is_err() {
                return true;
            }
        }
    }

    async fn tend_fallen(&mut self, spec: &TargetSpec, health: &TargetHealth) {
        let now = Instant::now();
        let lives = health.pid.is_some();
        match health.state {
            TargetState::Absent => return,
            // It may still come.
            TargetState::Starting => return,
            // Whose process it is cannot be told.
            TargetState::Degraded if !lives => return,
            _ => {}
        }
        match health.pid {
            None => self.frozen = None,
            Some(pid) if !self.fallen => {
                if !self.is_frozen_for_long(pid, now) || !self.end_frozen(spec).await {
                    return;
                }
            }
            // It was started since it fell, and has never answered: nobody uses it yet.
            Some(_) => {}
        }
        if !self.fallen {
            self.note_fall(&self.why(health, lives)).await;
            (self.fallen, self.frozen) = (true, None);
        }
        let due = self.next_due().is_some_and(|due| due <= now);
        if due {
            self.attempt(spec, lives).await;
        }
    }

    /// Whether its process, which lives, has not answered for longer than it may.
    fn is_frozen_for_long(&mut self, pid: u32, now: Instant) -> bool {
        if !self.parts.policy.heal.enabled {
            return false;
        }
        let since =
            self.frozen.filter(|(frozen, _)| *frozen == pid).map_or(now, |(_, since)| since);
        self.frozen = Some((pid, since));
        now >= since + self.patience(pid)
    }

    /// How long that process may be frozen. One that was not heard by this agent may serve its guests, and
    /// only have no place left at its control socket.
    fn patience(&self, pid: u32) -> Duration {
        let heal = &self.parts.policy.heal;
        match self.stands.is_some_and(|(stood, _)| stood == pid) {
            true => heal.frozen_after,
            false => heal.frozen_after.max(heal.clear_after),
        }
    }

    /// Ends its process, if it still does not answer: as long as it takes connections and serves none, each
    /// guest that reconnects to it is lost. Returns whether it is to be taken for fallen.
    async fn end_frozen(&mut self, spec: &TargetSpec) -> bool {
        let seen = match self.parts.observer.look(spec).await {
            Ok(seen) => seen,
            Err(fault) => {
                tracing::warn!(target_name = %self.name, code = %fault.code, "{} is frozen: {fault}", self.name);
                self.frozen = None;
                return false;
            }
        };
        if seen.serves() {
            self.frozen = None;
            return false;
        }
        if let Some(step) = end_frozen(spec, &seen)
            && let Err(fault) = self.apply(&step, &seen, &mut PartReport::default()).await
        {
            tracing::warn!(target_name = %self.name, code = %fault.code, "{} is frozen: {fault}", self.name);
        }
        true
    }

    /// Why it fell. What is told of one that falls again and again is no news of its next fall.
    fn why(&self, health: &TargetHealth, lives: bool) -> String {
        match (lives, self.parts.desired.has_trouble(&self.name)) {
            (true, false) => format!("it is frozen: {}", health.reason),
            (true, true) => "it is frozen once more".to_string(),
            (false, false) => health.reason.clone(),
            (false, true) => "its process has ended once more".to_string(),
        }
    }

    async fn note_fall(&mut self, why: &str) {
        self.backoff.fell(Instant::now().into_std());
        self.parts.stands.fell(&self.name);
        let at = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        self.book.fell(&at);
        (self.in_place, self.next_pass) = (false, Instant::now());
        let volumes = self.parts.desired.volumes(&self.name).len();
        if volumes > 0 {
            self.parts.desired.rebuilds(&self.name, true);
        }
        self.publish();
        // Before it is brought up: the agent may die in that, too.
        self.write_falls().await;
        let falls = self.backoff.failures();
        let heals = self.parts.policy.heal.enabled || self.at_start;
        tracing::warn!(
            target_name = %self.name, volumes, failures = falls, heals,
            "{} with {volumes} volumes is down: {why}", self.name
        );
        if self.backoff.is_crash_loop() {
            let within = self.parts.policy.call_timeout;
            let evidence = self.parts.observer.last_words(&self.name, why, within).await;
            self.blame(&evidence);
        }
    }

    /// One try to bring it up, with its volumes; one that hangs since it was started goes first.
    async fn attempt(&mut self, spec: &TargetSpec, lives: bool) {
        let began = Instant::now();
        if !self.parts.node.engine_runs().await {
            let text = "it does not run";
            return self.without_engine(&Fault::new(Code::EngineAbsent, text)).await;
        }
        if lives {
            self.end_frozen(spec).await;
        }
        // What it left in its container may be what it falls over.
        let wish = EnsureWish { anew: self.backoff.is_crash_loop(), ..EnsureWish::default() };
        let mut report = PartReport::default();
        let done = self.change(&TargetWish::Ensure(spec.clone(), wish), &mut report).await;
        match done {
            Ok(()) => {
                if !report.steps.is_empty() {
                    self.parts.stands.restarted(&self.name);
                    let took = began.elapsed();
                    tracing::info!(target_name = %self.name, "{} was brought up again in {took:.1?}", self.name);
                }
                self.tend_standing().await;
                if self.fallen {
                    // It has not been seen to stand.
                    self.backoff.failed(Instant::now().into_std());
                }
            }
            Err(fault) if fault.code.is_engine_away() => self.without_engine(&fault).await,
            Err(fault) => {
                let now = Instant::now().into_std();
                self.backoff.failed(now);
                let pause = self.backoff.due().map(|due| due.saturating_duration_since(now));
                tracing::warn!(
                    target_name = %self.name, again_in = ?pause.unwrap_or_default(), code = %fault.code,
                    "{} could not be brought up again: {fault}", self.name
                );
                if self.backoff.is_crash_loop() {
                    self.blame(&fault.text);
                }
            }
        }
    }

    async fn without_engine(&mut self, fault: &Fault) {
        let first = self.engine_again.is_none();
        if first {
            tracing::warn!(
                target_name = %self.name, code = %fault.code,
                "{} cannot be brought up again before the engine answers: {fault}", self.name
            );
        }
        let raised = self.parts.node.raise_engine().await;
        // Guests wait: one that was just started is asked at once, but only once.
        let pause = if raised && first { Duration::ZERO } else { ENGINE_PAUSE };
        self.engine_again = Some(Instant::now() + pause);
    }

    /// It falls again and again: that is told with the evidence until it serves.
    fn blame(&self, evidence: &str) {
        let falls = self.backoff.failures();
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
