//! Runs of work that equal requests share, and of which so many are under way at most. Each run is a task of its own: it
//! goes on when nobody waits for it any more, and keeps its place until it has really ended, so that work that hangs
//! delays only those who ask for the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::model::code::Code;
use crate::model::fault::Fault;

/// Outcome of a run; `None` while it goes on.
type RunOutcome<T> = Option<Result<T, Fault>>;
type Runs<K, T> = Arc<Mutex<BTreeMap<K, Run<T>>>>;

/// Run that others can join while it goes on.
#[derive(Debug, Clone)]
struct Run<T> {
    /// Time until which callers wait for the outcome.
    deadline: Instant,
    outcome: watch::Receiver<RunOutcome<T>>,
}

/// Runs by the request that they are for.
#[derive(Debug)]
pub struct SharedRuns<K, T> {
    most: usize,
    runs: Runs<K, T>,
}

/// Reason why a caller has no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoOutcome {
    /// Too many other runs are under way.
    Full,
    /// The run has not ended in time, and goes on.
    Late,
}

impl<K, T> SharedRuns<K, T>
where
    K: Ord + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// No runs yet, and at most `most` at a time.
    pub fn new(most: usize) -> SharedRuns<K, T> {
        SharedRuns { most, runs: Runs::default() }
    }

    /// Outcome of the run for `request`: of the one under way, else of `work`, which begins now. A caller waits until
    /// `within` has passed since the begin of the run.
    ///
    /// # Errors
    /// If there are too many runs, or the run takes too long.
    pub async fn share(
        &self,
        request: K,
        within: Duration,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<Result<T, Fault>, NoOutcome> {
        let Run { deadline, mut outcome } = self.run(request, within, work)?;
        let ended = timeout_at(deadline, outcome.wait_for(Option::is_some)).await;
        let ended = ended.map_err(|_| NoOutcome::Late)?;
        // Without an outcome, the sender was dropped: the work panicked.
        let outcome = ended.ok().and_then(|outcome| outcome.clone());
        Ok(outcome.unwrap_or_else(|| Err(broke())))
    }

    /// Run for `request`, begun now if there is none.
    fn run(
        &self,
        request: K,
        within: Duration,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<Run<T>, NoOutcome> {
        let mut runs = lock(&self.runs);
        if let Some(run) = runs.get(&request) {
            return Ok(run.clone());
        }
        if runs.len() >= self.most {
            return Err(NoOutcome::Full);
        }
        let (sender, outcome) = watch::channel(None);
        let run = Run { deadline: Instant::now() + within, outcome };
        runs.insert(request.clone(), run.clone());
        let all = self.runs.clone();
        tokio::spawn(async move {
            // In a task of its own, so that a panic frees the place too.
            let ended = tokio::spawn(work).await;
            lock(&all).remove(&request);
            if let Ok(result) = ended {
                sender.send_replace(Some(result));
            }
        });
        Ok(run)
    }
}

fn lock<K, T>(runs: &Runs<K, T>) -> MutexGuard<'_, BTreeMap<K, Run<T>>> {
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
        let runs = SharedRuns::new(1);
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
        let runs = SharedRuns::<_, ()>::new(2);
        let began = Instant::now();
        assert_eq!(runs.share("a", LIMIT, pending()).await, Err(NoOutcome::Late));
        assert_eq!(began.elapsed(), LIMIT);
        assert_eq!(runs.share("a", LIMIT, async { Ok(()) }).await, Err(NoOutcome::Late));
        assert_eq!(began.elapsed(), LIMIT, "a later caller does not wait again");
        assert_eq!(runs.share("b", LIMIT, async { Ok(()) }).await, Ok(Ok(())));
        let _ = runs.share("c", Duration::ZERO, pending()).await;
        assert_eq!(runs.share("d", LIMIT, async { Ok(()) }).await, Err(NoOutcome::Full));
    }

    #[tokio::test]
    async fn a_run_that_panics_is_a_failure_and_leaves_its_place() {
        async fn breaks() -> Result<(), Fault> {
            panic!("as a test wants it")
        }
        let runs = SharedRuns::new(1);
        let broken = runs.share("a", LIMIT, breaks()).await;
        assert_eq!(broken.unwrap().unwrap_err().code, Code::Internal);
        assert_eq!(runs.share("b", LIMIT, async { Ok(()) }).await, Ok(Ok(())));
    }
}
