//! Work that takes longer than it may: told once, and counted as long as it goes on.
//!
//! Every call of an owner's work has its own deadline; this is the limit of all of it together. Nothing is ended by it: it
//! tells that an owner hangs, where the heartbeat of its loop does not.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Between two words about the same work.
const TOLD_AGAIN: Duration = Duration::from_secs(300);

static OVERDUE: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

fn overdue() -> MutexGuard<'static, Vec<&'static str>> {
    OVERDUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many pieces of work of that kind take longer than they may.
pub fn count(kind: &str) -> u64 {
    overdue().iter().filter(|known| **known == kind).count() as u64
}

/// A piece of work that is overdue; none any more when it is dropped.
struct Overdue(&'static str);

impl Drop for Overdue {
    fn drop(&mut self) {
        let mut all = overdue();
        if let Some(at) = all.iter().position(|kind| *kind == self.0) {
            all.swap_remove(at);
        }
    }
}

/// Does work of that kind, on `what`, and tells when it takes longer than that.
pub async fn told_after<T>(
    limit: Duration,
    (kind, what): (&'static str, String),
    work: impl Future<Output = T>,
) -> T {
    let began = Instant::now();
    tokio::pin!(work);
    // Pinned: goes on when its time is up.
    if let Ok(done) = timeout(limit, &mut work).await {
        return done;
    }
    overdue().push(kind);
    let _overdue = Overdue(kind);
    loop {
        let took = began.elapsed();
        tracing::error!(
            kind,
            what,
            ?limit,
            ?took,
            "work on {what} takes longer than it may: see what it waits for"
        );
        tokio::select! {
            // Pinned, like before.
            done = &mut work => return done,
            () = sleep(TOLD_AGAIN) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_takes_too_long_is_counted_until_it_ends() {
        let work = |seconds| {
            let work = sleep(Duration::from_secs(seconds));
            told_after(Duration::from_secs(5), ("test", "a".to_string()), work)
        };
        let slow = tokio::spawn(work(1000));
        let given_up = tokio::spawn(work(1000));
        tokio::spawn(work(4)).await.unwrap();
        assert_eq!(count("test"), 0);
        sleep(Duration::from_secs(6)).await;
        assert_eq!(count("test"), 2);
        given_up.abort();
        let _ = given_up.await;
        assert_eq!(count("test"), 1);
        slow.await.unwrap();
        assert_eq!(count("test"), 0);
    }
}
