//! Watchdog fed by the heartbeats of owners.
//!
//! The loop of each owner sends heartbeats, also during long work. A heartbeat is passed on to systemd only while the
//! heartbeats of all owners are recent. So when one loop hangs, systemd gets no message and ends the agent
//! (sd_notify(3), `WATCHDOG=1`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

type Feed = dyn Fn() + Send + Sync;

struct WatchdogState {
    within: Duration,
    owners: Mutex<Owners>,
    feed: Box<Feed>,
}

struct Owners {
    last: Vec<Option<Instant>>,
    fed: Option<Instant>,
}

/// Registry of the owners that send heartbeats.
#[derive(Clone, Default)]
pub struct Watchdog(Option<Arc<WatchdogState>>);

impl Watchdog {
    /// Creates a watchdog that calls `feed` at least every `within` while every owner's heartbeat is that frequent.
    pub fn new(within: Duration, feed: impl Fn() + Send + Sync + 'static) -> Watchdog {
        let owners = Mutex::new(Owners { last: Vec::new(), fed: None });
        Watchdog(Some(Arc::new(WatchdogState { within, owners, feed: Box::new(feed) })))
    }

    /// Registers one more owner and returns its heartbeat.
    pub fn register(&self) -> Heartbeat {
        let place = self.0.as_ref().map(|shared| {
            let place = lock(&shared.owners).take_place();
            let mut ticks = interval(shared.within / 3);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            (shared.clone(), place, ticks)
        });
        Heartbeat(place)
    }
}

pub struct Heartbeat(Option<(Arc<WatchdogState>, usize, tokio::time::Interval)>);

impl Heartbeat {
    /// Waits until the next heartbeat is due, and sends it. Without a watchdog, it never returns. Cancel-safe: a
    /// heartbeat that becomes due between two calls is sent by the next one.
    pub async fn due(&mut self) {
        let Some((shared, place, ticks)) = &mut self.0 else { return std::future::pending().await };
        ticks.tick().await;
        if shared.touch(*place, Instant::now()) {
            (shared.feed)();
        }
    }

    /// Ends the heartbeats of an owner that ends in good order. An owner that ends without this call, as by a panic,
    /// counts as one that hangs, and systemd restarts the agent.
    pub fn retire(self) {
        if let Some((shared, place, _)) = &self.0
            && let Some(last) = lock(&shared.owners).last.get_mut(*place)
        {
            *last = None;
        }
    }
}

impl Owners {
    /// Slot for one more owner: a freed one, else a new one.
    fn take_place(&mut self) -> usize {
        let now = Some(Instant::now());
        match self.last.iter().position(Option::is_none) {
            Some(place) => {
                if let Some(last) = self.last.get_mut(place) {
                    *last = now;
                }
                place
            }
            None => {
                self.last.push(now);
                self.last.len() - 1
            }
        }
    }
}

impl WatchdogState {
    /// Records a heartbeat of the owner in slot `place`; `true` if systemd is to be notified now.
    fn touch(&self, place: usize, now: Instant) -> bool {
        let mut owners = lock(&self.owners);
        if let Some(last) = owners.last.get_mut(place) {
            *last = Some(now);
        }
        let fresh =
            owners.last.iter().flatten().all(|last| now.duration_since(*last) < self.within);
        let due = owners.fed.is_none_or(|fed| now.duration_since(fed) >= self.within / 4);
        if fresh && due {
            owners.fed = Some(now);
        }
        fresh && due
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn systemd_is_fed_while_all_owners_beat_and_not_when_one_hangs() {
        let fed = Arc::new(AtomicUsize::new(0));
        let count = fed.clone();
        let watchdog = Watchdog::new(Duration::from_secs(3), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let (mut first, mut second) = (watchdog.register(), watchdog.register());
        let beating = tokio::spawn(async move {
            loop {
                first.due().await;
            }
        });
        let hanging = tokio::spawn(async move {
            for _ in 0..10 {
                second.due().await;
            }
            std::future::pending::<()>().await;
        });
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(fed.load(Ordering::Relaxed) >= 8, "fed about once a second");
        tokio::time::sleep(Duration::from_secs(4)).await;
        let hung = fed.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(fed.load(Ordering::Relaxed), hung, "not fed since one owner hangs");
        beating.abort();
        hanging.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_retires_is_not_missed_and_one_that_breaks_off_is() {
        let fed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = fed.clone();
        let watchdog = Watchdog::new(Duration::from_secs(3), move || {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let fed = || fed.swap(0, std::sync::atomic::Ordering::Relaxed);
        let (mut stays, retires) = (watchdog.register(), watchdog.register());
        retires.retire();
        for _ in 0..9 {
            stays.due().await;
        }
        assert!(fed() > 0);
        drop(watchdog.register());
        for _ in 0..9 {
            stays.due().await;
        }
        fed();
        for _ in 0..9 {
            stays.due().await;
        }
        assert_eq!(fed(), 0);
    }
}
