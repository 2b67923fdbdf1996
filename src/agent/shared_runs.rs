//! Runs of work that equal requests share, and of which so many are under way at most; others wait for a place. Each run
//! is a task of its own: it goes on when nobody waits for it any more, and keeps its place until it has really ended, so
//! that work that hangs delays only those who ask for the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::model::code::Code;
use crate::model::fault::Fault;

/// Most runs that wait for a place.
const MOST_WAITING: usize = 64;

/// Stage of a run, as its callers see it.
#[derive(Debug, Clone)]
enum RunStage<T> {
    /// Waits for a place; its task ends that.
    Waits,
    /// Goes on; callers wait for its outcome until then.
    Goes(Instant),
    Ended(Result<T, Fault>),
    /// Found no place in time.
    Refused,
}

type Runs<K, T> = Arc<Mutex<BTreeMap<K, watch::Receiver<RunStage<T>>>>>;

/// Runs by the request that they are for.
#[derive(Debug)]
pub struct SharedRuns<K, T> {
    most: usize,
    places: Arc<Semaphore>,
    /// Wait for a place.
    patience: Duration,
    runs: Runs<K, T>,
}

/// Reason why a caller has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoOutcome {
    /// Too many other runs are under way, and none has ended in time.
    Full,
    /// The run has not ended in time, and goes on.
    Late,
}

impl<K, T> SharedRuns<K, T>
where
    K: Ord + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// No runs yet, and at most `most` at a time; another one waits for a place as long as `patience`.
    pub fn new(most: usize, patience: Duration) -> SharedRuns<K, T> {
        let places = Arc::new(Semaphore::new(most));
        SharedRuns { most, places, patience, runs: Runs::default() }
    }

    /// Outcome of the run for `request`: of the one under way, else of `work`, which begins as soon as there is a place. A
    /// caller waits until `within` has passed since that.
    ///
    /// # Errors
    /// If there are too many runs, or the run takes too long.
    pub async fn share(
        &self,
        request: K,
        within: Duration,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<Result<T, Fault>, NoOutcome> {
        let mut run = self.run(request, within, work)?;
        loop {
            let deadline = match &*run.borrow_and_update() {
                RunStage::Waits => None,
                RunStage::Goes(deadline) => Some(*deadline),
                RunStage::Ended(outcome) => return Ok(outcome.clone()),
                RunStage::Refused => return Err(NoOutcome::Full),
            };
            let changed = match deadline {
                Some(deadline) => timeout_at(deadline, run.changed()).await,
                None => Ok(run.changed().await),
            };
            match changed {
                Ok(Ok(())) => {}
                // The sender was dropped without an outcome: the work panicked.
                Ok(Err(_)) => return Ok(Err(broke())),
                Err(_) => return Err(NoOutcome::Late),
            }
        }
    }

    /// Run for `request`, begun now if there is none.
    fn run(
        &self,
        request: K,
        within: Duration,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<watch::Receiver<RunStage<T>>, NoOutcome> {
        let mut runs = lock(&self.runs);
        if let Some(run) = runs.get(&request) {
            return Ok(run.clone());
        }
        if runs.len() >= self.most + MOST_WAITING {
            return Err(NoOutcome::Full);
        }
        let (sender, run) = watch::channel(RunStage::Waits);
        runs.insert(request.clone(), run.clone());
        let (all, places, patience) = (self.runs.clone(), self.places.clone(), self.patience);
        tokio::spawn(async move {
            let end = match timeout(patience, places.acquire_owned()).await {
                Ok(Ok(_place)) => {
                    sender.send_replace(RunStage::Goes(Instant::now() + within));
                    // In a task of its own, so that a panic frees the place too.
                    tokio::spawn(work).await.ok().map(RunStage::Ended)
                }
                Ok(Err(_)) | Err(_) => Some(RunStage::Refused),
            };
            lock(&all).remove(&request);
            if let Some(end) = end {
                sender.send_replace(end);
            }
        });
        Ok(run)
    }
}

fn lock<K, T>(runs: &Runs<K, T>) -> MutexGuard<'_, BTreeMap<K, watch::Receiver<RunStage<T>>>> {
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broke() -> Fault {
    Fault::new(Code::Internal, "the agent broke on this work; its log has the place: report it")
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn equal_requests_share_one_run_and_later_ones_begin_another() {
        let runs = SharedRuns::new(1, LIMIT);
        let count = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let count = count.clone();
            runs.share("a", LIMIT, async move {
                sleep(Duration::from_secs(1)).await;
                Ok(count.fetch_add(1, Ordering::Relaxed))
            })
        };
        for round in 0..2 {
            let outcomes = join_all((0..20).map(|_| ask())).await;
            assert!(outcomes.iter().all(|outcome| *outcome == Ok(Ok(round))), "{outcomes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_hangs_keeps_its_place_and_delays_only_its_own_callers() {
        let runs = SharedRuns::<_, ()>::new(2, LIMIT);
        let began = Instant::now();
        assert_eq!(runs.share("a", LIMIT, pending()).await, Err(NoOutcome::Late));
        assert_eq!(began.elapsed(), LIMIT);
        assert_eq!(runs.share("a", LIMIT, async { Ok(()) }).await, Err(NoOutcome::Late));
        assert_eq!(began.elapsed(), LIMIT, "a later caller does not wait again");
        assert_eq!(runs.share("b", LIMIT, async { Ok(()) }).await, Ok(Ok(())));
        let _ = runs.share("c", Duration::ZERO, pending()).await;
        let began = Instant::now();
        assert_eq!(runs.share("d", LIMIT, async { Ok(()) }).await, Err(NoOutcome::Full));
        assert_eq!(began.elapsed(), LIMIT, "it waited for a place");
    }

    #[tokio::test(start_paused = true)]
    async fn runs_beyond_the_limit_wait_for_a_place_and_have_their_whole_time() {
        let runs = SharedRuns::new(2, LIMIT);
        let ask = |number: u32| {
            runs.share(number, LIMIT, async move {
                sleep(LIMIT / 4).await;
                Ok(number)
            })
        };
        let began = Instant::now();
        let outcomes = join_all((0..6).map(ask)).await;
        assert_eq!(outcomes, (0..6).map(|number| Ok(Ok(number))).collect::<Vec<_>>());
        assert_eq!(began.elapsed(), LIMIT / 4 * 3);
    }

    #[tokio::test]
    async fn a_run_that_panics_is_a_failure_and_leaves_its_place() {
        async fn breaks() -> Result<(), Fault> {
            panic!("as a test wants it")
        }
        let runs = SharedRuns::new(1, LIMIT);
        let broken = runs.share("a", LIMIT, breaks()).await;
        assert_eq!(broken.unwrap().unwrap_err().code, Code::Internal);
        assert_eq!(runs.share("b", LIMIT, async { Ok(()) }).await, Ok(Ok(())));
    }
}
