//! Publication of a target's observations, and the answers to the callers that wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::AskQueue;
use super::{KnownProcess, ProcessWatch};
use crate::docker::Containers;
use crate::model::observation::{Observation, Process, Vitals};

/// Number of the next observation.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// Waiting caller, with the probe and the query that have to end before it is answered.
pub(super) struct ObservationWaiter {
    pub(super) probe: u64,
    look: u64,
    reply: oneshot::Sender<Arc<Observation>>,
}

impl<C: Containers> ProcessWatch<C> {
    /// Takes in a caller and all others that wait by now: they get the same observation.
    pub(super) fn asked(&mut self, reply: oneshot::Sender<Arc<Observation>>, asks: &mut AskQueue) {
        let dead = matches!(&self.seen, KnownProcess::Lives(process) if !process.lives());
        if dead {
            self.process_ended();
        }
        let look = match &self.seen {
            KnownProcess::Lives(_) => 0,
            // The first query was begun for this caller.
            KnownProcess::Otherwise(_) if self.looked.ended == 0 => self.looked.begun,
            KnownProcess::Otherwise(_) => self.look_now(),
        };
        let probe = match &self.seen {
            KnownProcess::Lives(_) | KnownProcess::Otherwise(Process::Unknown(_)) => {
                self.probe_now()
            }
            KnownProcess::Otherwise(_) => 0,
        };
        self.asked = Instant::now();
        let mut next = Some(reply);
        while let Some(reply) = next {
            self.waiting.push(ObservationWaiter { probe, look, reply });
            next = asks.try_recv().ok();
        }
    }

    fn observation(&self, number: u64) -> Observation {
        let process = match &self.seen {
            KnownProcess::Lives(process) => {
                // Computed only where it matters, because the age is read from a file.
                let young = self.answers.version().is_none() && self.is_young();
                Process::Lives { pid: process.pid, young }
            }
            KnownProcess::Otherwise(process) => process.clone(),
        };
        let sure = self.look.is_none() && !matches!(process, Process::Unknown(_));
        let at = Instant::now().into_std();
        Observation {
            number,
            at,
            process,
            answers: self.answers.clone(),
            heard: self.heard.map(Instant::into_std),
            vitals: Vitals {
                // A late reply counts at once, whatever the next probe results in.
                replied: self.shared.probe.late_reply(&self.key.1),
                ..self.silence.vitals.clone()
            },
            silent_since: self.silence.since.clone(),
            buffers: self.buffers.at(at),
            sure,
        }
    }

    /// Publishes the observation. One that is like the last keeps its number and is no change. Each missed probe of a
    /// silent target is a change.
    pub(super) fn publish(&self) {
        if self.looked.ended == 0 {
            return;
        }
        self.published.send_if_modified(|last| {
            let next = self.observation(last.number);
            let same = last.number > 0
                && next.process == last.process
                && next.version() == last.version()
                && next.vitals.activity == last.vitals.activity
                && next.is_busy() == last.is_busy()
                && next.sure == last.sure
                && next.buffers.shortage() == last.buffers.shortage()
                && !(next.answers.is_silent() && next.heard != last.heard);
            // Numbers are shared by all observers: one that takes the place of another must not seem older.
            let number = if same { last.number } else { NUMBER.fetch_add(1, Ordering::Relaxed) };
            *last = Arc::new(Observation { number, ..next });
            !same
        });
    }

    /// Answers the callers that wait for nothing in flight.
    pub(super) fn answer(&mut self) {
        // One more probe decides, which is in flight or soon will be.
        if self.answers.is_in_doubt() && self.is_probed() {
            return;
        }
        let (probed, looked) = (self.probed.ended, self.looked.ended);
        let done = |waiter: &mut ObservationWaiter| probed >= waiter.probe && looked >= waiter.look;
        for waiter in self.waiting.extract_if(.., done) {
            let _ = waiter.reply.send(self.published.borrow().clone());
        }
    }
}
