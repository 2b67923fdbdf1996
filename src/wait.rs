//! Futures for arms of a `select!` whose source may be absent; without it they are pending for ever. All are
//! cancel-safe.

use std::future::{Future, pending};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Returns at `time`; never for `None`.
pub async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// Returns with the next change; never once the sender is gone.
pub async fn change<T>(source: &mut watch::Receiver<T>) {
    if source.changed().await.is_err() {
        pending().await
    }
}

/// Returns the output of the work; never for `None`.
pub async fn end<F: Future + Unpin>(work: &mut Option<F>) -> F::Output {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_is_waited_for_without_end() {
        let (sender, mut source) = watch::channel(1);
        assert_eq!(end(&mut Some(std::future::ready(7))).now_or_never(), Some(7));
        assert!(end(&mut None::<std::future::Ready<()>>).now_or_never().is_none());
        sender.send_replace(2);
        assert!(change(&mut source).now_or_never().is_some());
        drop(sender);
        assert!(change(&mut source).now_or_never().is_none());
        let at = Instant::now() + Duration::from_secs(9);
        until(Some(at)).await;
        assert_eq!(Instant::now(), at);
        assert!(until(None).now_or_never().is_none());
    }
}
