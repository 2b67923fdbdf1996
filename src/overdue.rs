//! Work that exceeds its time limit: logged at once and every five minutes, announced to subscribers when that begins
//! and ends, and counted meanwhile.
//!
//! Each call that a piece of work makes has its own deadline; the limit here is for the whole piece of work. Exceeding
//! it cancels nothing. It reports work that hangs while the loop of its owner still sends heartbeats.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};

/// Interval between two log lines about the same work.
const REPEAT_INTERVAL: Duration = Duration::from_secs(300);
/// Number of notices that a subscriber may lag behind before it loses the oldest.
const KEPT: usize = 64;

static OVERDUE: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

fn overdue() -> MutexGuard<'static, Vec<&'static str>> {
    OVERDUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of pieces of work of `kind` that are overdue now.
pub fn count(kind: &str) -> u64 {
    overdue().iter().filter(|known| **known == kind).count() as u64
}

/// Notice that work has become overdue, or no longer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueNotice {
    /// Kind of the work, named after its owner, such as `target`.
    pub kind: &'static str,
    /// Name of the object that the work is done on, such as a target's name.
    pub subject: String,
    pub limit: Duration,
    /// Time since the work began.
    pub took: Duration,
    /// `true` if the work has ended or was dropped; `false` if it has become overdue.
    pub ended: bool,
}

static NOTICES: LazyLock<broadcast::Sender<OverdueNotice>> =
    LazyLock::new(|| broadcast::Sender::new(KEPT));

/// Subscribes to the notices from now on.
pub fn watch() -> broadcast::Receiver<OverdueNotice> {
    NOTICES.subscribe()
}

/// Overdue piece of work; counted until dropped.
struct OverdueWork {
    kind: &'static str,
    subject: String,
    limit: Duration,
    began: Instant,
}

impl OverdueWork {
    fn begins(self) -> OverdueWork {
        overdue().push(self.kind);
        self.log(false);
        self
    }

    fn log(&self, ended: bool) {
        let (kind, subject, limit) = (self.kind, self.subject.clone(), self.limit);
        // An error only means that nobody has subscribed.
        let _ =
            NOTICES.send(OverdueNotice { kind, subject, limit, took: self.began.elapsed(), ended });
    }
}

impl Drop for OverdueWork {
    fn drop(&mut self) {
        let mut all = overdue();
        if let Some(at) = all.iter().position(|kind| *kind == self.kind) {
            all.swap_remove(at);
        }
        drop(all);
        self.log(true);
    }
}

/// Runs `work` to its end, and reports it as overdue once it has taken `limit`. `kind` and `what` name it in the
/// report.
pub async fn with_limit<T>(
    limit: Duration,
    (kind, what): (&'static str, String),
    work: impl Future<Output = T>,
) -> T {
    let began = Instant::now();
    tokio::pin!(work);
    // The timeout does not cancel `work`, which is pinned and polled again below.
    if let Ok(done) = timeout(limit, &mut work).await {
        return done;
    }
    let _overdue = OverdueWork { kind, subject: what.clone(), limit, began }.begins();
    loop {
        let took = began.elapsed();
        tracing::error!(
            kind,
            what,
            limit = %format_args!("{limit:.1?}"),
            took = %format_args!("{took:.1?}"),
            "work on {what} is not done after {took:.1?} (limit {limit:.1?}) and continues: check whether the disk, \
             the engine, the target or the kernel hangs"
        );
        tokio::select! {
            // Cancel-safe: `work` is pinned, and polled again in the next round.
            done = &mut work => return done,
            () = sleep(REPEAT_INTERVAL) => {}
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
            with_limit(Duration::from_secs(5), ("test", "a".to_string()), work)
        };
        let mut notices = watch();
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
        let notices = std::iter::from_fn(|| notices.try_recv().ok());
        let own = notices.filter(|it| it.kind == "test");
        let notices: Vec<_> = own.map(|it| (it.took.as_secs(), it.ended)).collect();
        assert_eq!(notices, [(5, false), (5, false), (10, true), (1000, true)]);
    }
}
