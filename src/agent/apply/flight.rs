//! Single flight: the same work for many callers is done once, and all share its outcome.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;

type FlightOutcome = Result<(), String>;

/// Work in flight, by its key. An entry ends when no caller waits for it any more.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<String, Weak<OnceCell<FlightOutcome>>>>);

impl Flights {
    /// Does `work`, or waits for a caller that does the work with the key `about` already; `joined` is called before
    /// such a wait.
    ///
    /// When that caller is cancelled, the next waiter does the work.
    pub(super) async fn share(
        &self,
        about: String,
        joined: impl FnOnce(),
        work: impl Future<Output = FlightOutcome>,
    ) -> FlightOutcome {
        let (flight, begun) = self.flight(about);
        if begun {
            joined();
        }
        flight.get_or_init(|| work).await.clone()
    }

    fn flight(&self, about: String) -> (Arc<OnceCell<FlightOutcome>>, bool) {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(&about).and_then(Weak::upgrade) {
            return (flight, true);
        }
        let flight = Arc::new(OnceCell::new());
        flights.insert(about, Arc::downgrade(&flight));
        (flight, false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::Notify;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_work_that_is_given_up_does_it_and_a_later_one_does_it_anew() {
        let (flights, done, go) = (Flights::default(), AtomicUsize::new(0), Notify::new());
        let work = async || {
            go.notified().await;
            done.fetch_add(1, Ordering::Relaxed);
            Err("as told".to_string())
        };
        let first = flights.share("a".into(), || panic!("nobody was there"), work());
        let mut first = Box::pin(first);
        assert!(timeout(Duration::ZERO, &mut first).await.is_err());
        let mut second = Box::pin(flights.share("a".into(), || {}, work()));
        assert!(timeout(Duration::ZERO, &mut second).await.is_err());
        drop(first);
        go.notify_one();
        assert_eq!(second.await, Err("as told".to_string()));
        go.notify_one();
        let third = flights.share("a".into(), || panic!("nobody was there"), work()).await;
        assert_eq!((third.is_err(), done.load(Ordering::Relaxed)), (true, 2));
    }
}
