//! Observation of the machine: facts in the model's types, no opinions.

pub mod engine;
pub mod exits;
pub mod figures;
pub mod guests;
pub mod hypervisor;
pub mod libvirt;
pub mod memory;
pub mod node;
pub mod storage;
pub mod target;
mod target_resources;
pub mod volumes;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::model::code::Code;
use crate::model::fault::Fault;

/// Runs blocking work off the runtime; starts at once, before the first poll.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, Fault>> {
    let done = tokio::task::spawn_blocking(work);
    async {
        done.await.map_err(|e| {
            let text = format!("work on the host broke off: {e}; this is a bug, report it");
            Fault::new(Code::Internal, text)
        })
    }
}

/// Runs blocking work on files that may hang with their server, and waits for at most `within`. The work keeps one of
/// the `places` until it has ended, even if nobody waits any more, so that hanging work takes no more threads than
/// there are places. `None` if the work is late or no place is free.
pub(crate) async fn blocking_within<T: Send + 'static>(
    places: &Arc<Semaphore>,
    within: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<Result<T, Fault>> {
    let place = places.clone().try_acquire_owned().ok()?;
    let work = move || {
        let done = work();
        drop(place);
        done
    };
    timeout(within, blocking(work)).await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn work_that_hangs_keeps_its_place_until_it_ends() {
        let places = Arc::new(Semaphore::new(1));
        let (go_on, hangs) = channel::<()>();
        let soon = Duration::from_millis(20);
        let late = blocking_within(&places, soon, move || hangs.recv().is_err()).await;
        assert!(late.is_none());
        assert!(blocking_within(&places, soon, || ()).await.is_none(), "no thread more for it");
        drop(go_on);
        drop(places.acquire().await.unwrap());
        assert!(blocking_within(&places, Duration::from_secs(30), || ()).await.is_some());
    }
}
