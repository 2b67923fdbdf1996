//! Admission of prepare requests: run, queue, or share another's outcome. A plain value; no tasks.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::model::prepare::PrepareRequest;
use crate::model::work::WorkId;

/// Maximum of waiters for one run; one more is refused.
const MOST_WAITERS: usize = 2048;

/// Waiter for a run's outcome.
pub trait Waits {
    /// `true` if nobody takes the outcome any more.
    fn is_gone(&self) -> bool;
}

impl<T> Waits for oneshot::Sender<T> {
    fn is_gone(&self) -> bool {
        self.is_closed()
    }
}

/// Current or queued run, with the callers that wait for its outcome.
#[derive(Debug)]
struct AdmittedRun<W> {
    work: WorkId,
    request: PrepareRequest,
    waiters: Vec<W>,
}

/// Current run, and the queue of the next ones.
#[derive(Debug)]
pub struct RunQueue<W> {
    running: Option<AdmittedRun<W>>,
    queue: VecDeque<AdmittedRun<W>>,
    most: usize,
}

/// Decision on a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted<W> {
    Start(WorkId, PrepareRequest),
    /// Waits for the outcome of the run with this id: one that covers the request, or the request's own queued run.
    Waits(WorkId),
    /// Refused because the queue is full; returns the waiter.
    Full(W),
}

impl<W: Waits> RunQueue<W> {
    /// Makes an admission with at most `most` queued runs.
    pub fn new(most: usize) -> RunQueue<W> {
        RunQueue { running: None, queue: VecDeque::new(), most }
    }

    /// Admits `request`, whose outcome `waiter` awaits. Waiters that have gone are dropped first, and so are queued
    /// runs that have no other waiter.
    pub fn submit(&mut self, request: PrepareRequest, waiter: W) -> Admitted<W> {
        self.forget_who_is_gone();
        let mut runs = self.running.iter_mut().chain(self.queue.iter_mut());
        if let Some(run) = runs.find(|run| run.request.covers(&request)) {
            if run.waiters.len() >= MOST_WAITERS {
                return Admitted::Full(waiter);
            }
            run.waiters.push(waiter);
            return Admitted::Waits(run.work);
        }
        if self.running.is_some() && self.queue.len() >= self.most {
            return Admitted::Full(waiter);
        }
        let work = WorkId::next();
        let run = AdmittedRun { work, request: request.clone(), waiters: vec![waiter] };
        if self.running.is_none() {
            self.running = Some(run);
            return Admitted::Start(work, request);
        }
        self.queue.push_back(run);
        Admitted::Waits(work)
    }

    /// Ends the current run: returns its waiters and the run to start next.
    pub fn finish(&mut self) -> (Vec<W>, Option<(WorkId, PrepareRequest)>) {
        let waiters = self.running.take().map(|run| run.waiters).unwrap_or_default();
        self.forget_who_is_gone();
        self.running = self.queue.pop_front();
        (waiters, self.running.as_ref().map(|run| (run.work, run.request.clone())))
    }

    fn forget_who_is_gone(&mut self) {
        for run in self.running.iter_mut().chain(self.queue.iter_mut()) {
            run.waiters.retain(|waiter| !waiter.is_gone());
        }
        self.queue.retain(|run| !run.waiters.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::pools::{Placement, PoolWant};
    use crate::model::units::PageSize;

    impl Waits for &str {
        fn is_gone(&self) -> bool {
            self.ends_with("has gone")
        }
    }

    impl Waits for usize {
        fn is_gone(&self) -> bool {
            false
        }
    }

    #[test]
    fn who_has_gone_takes_no_place_and_no_run_starts_for_nobody() {
        let mut admission = RunQueue::new(1);
        assert!(matches!(admission.submit(request(10, false), "a has gone"), Admitted::Start(..)));
        assert!(matches!(admission.submit(request(11, false), "b has gone"), Admitted::Waits(_)));
        assert!(
            matches!(admission.submit(request(12, false), "c"), Admitted::Waits(_)),
            "b's place is free"
        );
        assert_eq!(admission.submit(request(13, false), "d"), Admitted::Full("d"));
        let (waiters, next) = admission.finish();
        assert_eq!((waiters, next.unwrap().1), (vec![], request(12, false)));
        assert!(matches!(admission.submit(request(13, false), "e has gone"), Admitted::Waits(_)));
        assert_eq!(admission.finish(), (vec!["c"], None));
    }

    #[test]
    fn a_run_has_a_bound_of_those_who_wait_for_it() {
        let mut admission = RunQueue::new(1);
        admission.submit(request(10, false), 0);
        for waiter in 1..MOST_WAITERS {
            assert!(matches!(admission.submit(request(10, false), waiter), Admitted::Waits(_)));
        }
        assert_eq!(admission.submit(request(9, false), 7777), Admitted::Full(7777));
        assert_eq!(admission.finish().0.len(), MOST_WAITERS);
    }

    fn request(pages: u64, dry_run: bool) -> PrepareRequest {
        let want = PoolWant {
            size: PageSize::MIB_2,
            pages,
            placement: Placement::Spread,
            move_shortfall: false,
        };
        PrepareRequest { hugepages: vec![want], keep_partial: false, engine: true, dry_run }
    }

    #[test]
    fn the_second_shares_the_outcome_when_it_wants_the_same_or_less_and_else_runs_after() {
        let mut admission = RunQueue::new(2);
        let Admitted::Start(first, _) = admission.submit(request(10, false), "a") else { panic!() };
        assert_eq!(admission.submit(request(9, false), "e"), Admitted::Waits(first), "as one work");
        assert!(matches!(admission.submit(request(9, false), "b"), Admitted::Waits(_)));
        assert!(matches!(admission.submit(request(11, false), "c"), Admitted::Waits(_)));
        assert!(matches!(admission.submit(request(11, false), "d"), Admitted::Waits(_)));
        let (waiters, next) = admission.finish();
        assert_eq!((waiters, next.unwrap().1), (vec!["a", "e", "b"], request(11, false)));
        assert_eq!(admission.finish(), (vec!["c", "d"], None));
    }

    /// Ends the current run; fails if a waiter requested more than the run covered.
    fn end_run(
        admission: &mut RunQueue<usize>,
        running: &mut Option<PrepareRequest>,
        requests: &[PrepareRequest],
        answered: &mut [u32],
    ) {
        let done = running.take().expect("something runs");
        let (waiters, next) = admission.finish();
        for waiter in waiters {
            answered[waiter] += 1;
            assert!(done.covers(&requests[waiter]));
        }
        *running = next.map(|(_, request)| request);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_waiter_is_answered_once_by_a_run_that_covers_its_request(
            calls in prop::collection::vec((0u64..6, any::<bool>(), any::<bool>()), 1..60)
        ) {
            let requests: Vec<_> =
                calls.iter().map(|(pages, dry_run, _)| request(*pages, *dry_run)).collect();
            let mut admission = RunQueue::new(3);
            let mut running: Option<PrepareRequest> = None;
            let mut answered = vec![0; calls.len()];
            for (i, (.., finish)) in calls.iter().enumerate() {
                match admission.submit(requests[i].clone(), i) {
                    Admitted::Start(_, started) => {
                        prop_assert!(running.is_none());
                        running = Some(started);
                    }
                    Admitted::Waits(_) => prop_assert!(running.is_some()),
                    // Refused at once, which is an answer too.
                    Admitted::Full(waiter) => answered[waiter] += 1,
                }
                if *finish && running.is_some() {
                    end_run(&mut admission, &mut running, &requests, &mut answered);
                }
            }
            while running.is_some() {
                end_run(&mut admission, &mut running, &requests, &mut answered);
            }
            prop_assert!(answered.iter().all(|count| *count == 1), "{answered:?}");
        }
    }
}
