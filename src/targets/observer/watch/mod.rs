//! Observer of one target: a task that assembles the observation, and publishes each change of it.

mod publish;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep_until};

use self::publish::ObservationWaiter;
use super::engine::ObserverEvent;
use super::probe::{Found, ProbeOutcome};
use super::silence::Silence;
use super::{AskQueue, IDLE, Key, Observations, ObserverParts, is_desired};
use crate::docker::Containers;
use crate::host::pidfd::WatchedProcess;
use crate::model::buffers::{BufferAnswer, BufferRecord};
use crate::model::observation::{Observation, ProbeResults, Process};
use crate::wait;

/// Most probes in flight; an unresponsive target answers none.
const MOST_PROBES: usize = 8;
/// Pause between two probes of a starting target.
const STARTING_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two requests for the counters of a target's buffers. They only grow, and each request takes a
/// message to every thread of the target, which serves guests.
const COUNT_PAUSE: Duration = Duration::from_secs(10);
/// The same pause, in probes: with more frequent probes the counters come sooner, too.
const PROBES_PER_COUNT: u32 = 20;
/// Pause after a request for counters that was not answered: the target may still hold it.
const UNCOUNTED_PAUSE: Duration = Duration::from_secs(60);
/// Pause between two queries of an engine that sends no events.
const LOOK_PAUSE: Duration = Duration::from_secs(2);

/// Process, as far as it is known.
enum KnownProcess {
    Lives(WatchedProcess),
    Otherwise(Process),
}

/// Probe that has ended: its number, when it was sent, and its results.
type Probed = (u64, Instant, ProbeOutcome);
/// Request for the counters of the buffers that has ended: when it was sent, and the answer.
type CountedBuffers = (Instant, Option<BufferAnswer>);
type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Numbers of the last query begun and of the last one ended, for queries of one kind.
#[derive(Default)]
struct Count {
    begun: u64,
    ended: u64,
}

pub(super) struct ProcessWatch<C> {
    key: Key,
    shared: Arc<ObserverParts<C>>,
    seen: KnownProcess,
    answers: ProbeResults,
    heard: Option<Instant>,
    silence: Silence,
    buffers: BufferRecord,
    probes: FuturesUnordered<Pending<Probed>>,
    probed: Count,
    /// Number of the last probe sent to a former process; answers up to this number do not count.
    outdated: u64,
    next_probe: Instant,
    count: Option<Pending<CountedBuffers>>,
    next_count: Instant,
    look: Option<Pending<Found>>,
    looked: Count,
    /// Set while the engine has yet to report how the process ended.
    end_unexplained: bool,
    look_again: bool,
    next_look: Instant,
    waiting: Vec<ObservationWaiter>,
    asked: Instant,
    published: watch::Sender<Arc<Observation>>,
}

impl<C: Containers> ProcessWatch<C> {
    /// Starts the task. It ends when no handle is left, or when its target was neither desired nor asked for during
    /// [`IDLE`].
    pub(super) fn start(key: Key, shared: Arc<ObserverParts<C>>, asks: AskQueue) -> Observations {
        let unseen = Observation::unseen(Instant::now().into_std());
        let (published, observations) = watch::channel(Arc::new(unseen));
        let watch = ProcessWatch {
            key,
            shared,
            seen: KnownProcess::Otherwise(Process::Unknown("it was not asked yet".to_string())),
            answers: ProbeResults::default(),
            heard: None,
            silence: Silence::default(),
            buffers: BufferRecord::default(),
            probes: FuturesUnordered::new(),
            probed: Count::default(),
            outdated: 0,
            next_probe: Instant::now(),
            count: None,
            next_count: Instant::now(),
            look: None,
            looked: Count::default(),
            end_unexplained: false,
            look_again: false,
            // The first query is begun at once, by `run`.
            next_look: Instant::now() + LOOK_PAUSE,
            waiting: Vec::new(),
            asked: Instant::now(),
            published,
        };
        tokio::spawn(watch.run(asks));
        observations
    }

    async fn run(mut self, mut asks: AskQueue) {
        let mut news = self.shared.news.listen();
        let mut desired = self.shared.desired.clone();
        self.look_now();
        loop {
            let count_at = self.count_at();
            // Each arm is cancel-safe: what did not come first is still there in the next round.
            tokio::select! {
                () = ended(&self.seen) => self.process_ended(),
                found = wait::end(&mut self.look) => self.found(found),
                Some(probed) = self.probes.next() => self.probed(probed),
                counted = wait::end(&mut self.count) => self.counted(counted),
                () = wait::until(count_at) => self.count_now(),
                ask = asks.recv() => match ask {
                    Some(reply) => self.asked(reply, &mut asks),
                    None => return,
                },
                event = news.recv() => self.heard(event),
                changed = desired.changed() => if changed.is_err() { return },
                () = sleep_until(self.next_probe) => self.due(),
            }
            self.publish();
            self.answer();
            if self.asked.elapsed() >= IDLE && asks.is_empty() && !self.is_desired() {
                return;
            }
        }
    }

    fn is_desired(&self) -> bool {
        is_desired(&self.shared.desired.borrow(), &self.key)
    }

    /// Handles the end of the process, as the kernel reports it: published before anybody is asked how.
    fn process_ended(&mut self) {
        self.has_ended();
        self.look_now();
    }

    fn has_ended(&mut self) {
        self.end_unexplained = true;
        let how = "its process has ended, and the engine has not reported yet how".to_string();
        self.becomes(KnownProcess::Otherwise(Process::Ended(how)));
    }

    /// Replaces the process by another one, or by none: answers of the old one no longer count.
    fn becomes(&mut self, seen: KnownProcess) {
        // Answers from before the process was known are those of the process that is found now.
        let found = matches!(self.seen, KnownProcess::Otherwise(Process::Unknown(_)))
            && matches!(seen, KnownProcess::Lives(_));
        if !found {
            (self.answers, self.heard) = (ProbeResults::default(), None);
            self.silence = Silence::default();
            self.buffers.begin_anew();
            (self.count, self.next_count) = (None, Instant::now());
            self.outdated = self.probed.begun;
        }
        self.seen = seen;
    }

    fn found(&mut self, found: Found) {
        self.look = None;
        self.looked.ended = self.looked.begun;
        self.end_unexplained = false;
        match found {
            Found::Runs(process) => {
                let known = matches!(&self.seen, KnownProcess::Lives(seen) if seen.is(&process));
                if !known {
                    self.becomes(KnownProcess::Lives(process));
                    // A probe that was sent already has reached this process, too.
                    let asked = self.probed.begun > self.outdated;
                    let probe = if asked { self.probed.begun } else { self.probe_now() };
                    self.waiting.iter_mut().for_each(|waiter| waiter.probe = probe);
                }
            }
            Found::Nothing => self.becomes(KnownProcess::Otherwise(Process::NoContainer)),
            Found::Ended(Some(how)) => self.becomes(KnownProcess::Otherwise(Process::Ended(how))),
            Found::Ended(None) => self.has_ended(),
            Found::Unknown(why) => self.not_found_out(why),
        }
        if std::mem::take(&mut self.look_again) {
            self.look_now();
        }
    }

    /// Handles an engine that does not answer. A known process is observed alive without the engine, and one that has
    /// ended stays ended.
    fn not_found_out(&mut self, why: String) {
        match &self.seen {
            KnownProcess::Lives(process) if process.lives() => {}
            KnownProcess::Lives(_) => self.has_ended(),
            KnownProcess::Otherwise(Process::Ended(_)) => {}
            KnownProcess::Otherwise(_) => {
                self.seen = KnownProcess::Otherwise(Process::Unknown(why));
                self.see_who_answers();
            }
        }
    }

    fn probed(&mut self, (number, sent, result): Probed) {
        let ProbeOutcome { answer, evidence } = result;
        self.probed.ended = self.probed.ended.max(number);
        if number <= self.outdated {
            return;
        }
        self.answers.note(sent.into_std(), answer);
        self.heard = Some(Instant::now());
        match evidence.filter(|_| self.answers.is_silent()) {
            Some(evidence) => {
                let policy = &self.shared.probe.policy.health;
                let late = 4 * policy.interval + policy.timeout;
                self.silence.note(&self.answers, evidence, late);
            }
            None if self.answers.is_silent() => {}
            None => self.silence = Silence::default(),
        }
        if self.answers.is_in_doubt() && self.probes.is_empty() {
            // However long the interval, the probe that decides does not wait for its turn.
            self.next_probe = Instant::now();
        }
        self.see_who_answers();
        if self.answers.version().is_none() && self.is_young() {
            self.next_probe = self.next_probe.min(Instant::now() + STARTING_PAUSE);
        }
    }

    fn counted(&mut self, (sent, answer): CountedBuffers) {
        self.count = None;
        let pause = match answer {
            Some(answer) => {
                self.buffers.note(sent.into_std(), answer);
                let interval = self.shared.probe.policy.health.interval;
                COUNT_PAUSE.min(interval.saturating_mul(PROBES_PER_COUNT))
            }
            None => UNCOUNTED_PAUSE,
        };
        self.next_count = Instant::now() + pause;
    }

    /// Watches the process that answers at the control socket, until the engine reports whose it is.
    fn see_who_answers(&mut self) {
        let unknown = matches!(self.seen, KnownProcess::Otherwise(Process::Unknown(_)));
        if unknown
            && self.looked.ended > 0
            && self.answers.version().is_some()
            && let Some(process) = self.shared.probe.who_answers(&self.key.1)
        {
            self.seen = KnownProcess::Lives(process);
        }
    }

    fn heard(&mut self, event: Result<ObserverEvent, broadcast::error::RecvError>) {
        match event {
            Ok(ObserverEvent::Container(name)) if name != self.key.0.as_str() => {}
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => drop(self.look_now()),
            // The sender lives as long as this task.
            Err(broadcast::error::RecvError::Closed) => {}
        }
    }

    /// Sends the next probe, which is due; and queries the engine, where it sends no events.
    fn due(&mut self) {
        let policy = &self.shared.probe.policy.health;
        self.next_probe = Instant::now() + policy.interval;
        match &self.seen {
            KnownProcess::Lives(_) => drop(self.probe_now()),
            KnownProcess::Otherwise(process) => {
                let blind = matches!(process, Process::Unknown(_));
                if blind {
                    self.probe_now();
                }
                // No event comes for what the engine has reported already, or could not report.
                let open = blind || self.end_unexplained || !self.shared.news.is_live();
                if open && Instant::now() >= self.next_look {
                    self.next_look = Instant::now() + LOOK_PAUSE;
                    self.look_now();
                }
            }
        }
    }

    /// Sends a probe, unless too many are unanswered; returns the number of the probe to wait for.
    fn probe_now(&mut self) -> u64 {
        if self.probes.len() < MOST_PROBES {
            self.probed.begun += 1;
            let (number, sent) = (self.probed.begun, Instant::now());
            let (shared, control) = (self.shared.clone(), self.key.1.clone());
            let pid = match &self.seen {
                KnownProcess::Lives(process) => Some(process.pid),
                KnownProcess::Otherwise(_) => None,
            };
            self.probes.push(Box::pin(async move {
                (number, sent, shared.probe.probe(&control, pid).await)
            }));
        }
        self.probed.begun
    }

    /// Time of the next request for the counters of the buffers; `None` while one is in flight, and for a target that
    /// does not answer, or that counts nothing.
    fn count_at(&self) -> Option<Instant> {
        let answers = self.answers.version().is_some() && !self.answers.is_silent();
        let lives = matches!(self.seen, KnownProcess::Lives(_));
        let is_asked = lives && answers && self.count.is_none() && self.buffers.is_asked();
        is_asked.then_some(self.next_count)
    }

    fn count_now(&mut self) {
        let (shared, control, sent) = (self.shared.clone(), self.key.1.clone(), Instant::now());
        self.count = Some(Box::pin(async move { (sent, shared.probe.buffers(&control).await) }));
    }

    /// Queries the engine, after the query in flight; returns the number of the query to wait for.
    fn look_now(&mut self) -> u64 {
        if self.look.is_some() {
            self.look_again = true;
            return self.looked.begun + 1;
        }
        self.looked.begun += 1;
        let (shared, name) = (self.shared.clone(), self.key.0.clone());
        self.look = Some(Box::pin(async move { shared.probe.find(&name).await }));
        self.looked.begun
    }

    /// `true` if probes are sent at all.
    fn is_probed(&self) -> bool {
        matches!(self.seen, KnownProcess::Lives(_) | KnownProcess::Otherwise(Process::Unknown(_)))
    }

    fn is_young(&self) -> bool {
        let within = self.shared.probe.policy.target.ready_timeout;
        matches!(&self.seen, KnownProcess::Lives(process) if process.age().is_some_and(|age| age < within))
    }
}

/// Waits for the end of the process; never returns if there is none.
async fn ended(seen: &KnownProcess) {
    match seen {
        KnownProcess::Lives(process) => process.ended().await,
        KnownProcess::Otherwise(_) => std::future::pending().await,
    }
}
