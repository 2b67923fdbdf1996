//! Events of the engine, for all observers. The subscription is renewed whenever it ends, and then every target is
//! observed anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::sleep;

use super::Probe;
use crate::docker::{Containers, EngineEvent};
use crate::model::backoff::Backoff;
use crate::model::fault::chain;

/// Events that a slow observer may lag behind before it has to query by itself.
const BACKLOG: usize = 256;
/// Delay between two attempts to subscribe; an engine that is not installed is not asked often.
const BACKOFF: Backoff = Backoff::steady(Duration::from_millis(100), Duration::from_secs(5));

/// Event for the observers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ObserverEvent {
    /// Change of the container of that name.
    Container(String),
    /// Gap in the events: whatever was known may be outdated.
    LookAnew,
}

/// Publisher of the engine's events; clones share it.
#[derive(Debug, Clone)]
pub struct EngineNews {
    sender: broadcast::Sender<ObserverEvent>,
    live: Arc<AtomicBool>,
}

impl Default for EngineNews {
    fn default() -> EngineNews {
        EngineNews { sender: broadcast::Sender::new(BACKLOG), live: Arc::default() }
    }
}

impl EngineNews {
    /// `true` while the engine's events are received.
    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }

    /// Subscribes to all events from now on.
    pub(super) fn listen(&self) -> broadcast::Receiver<ObserverEvent> {
        self.sender.subscribe()
    }

    /// Follows the engine's events for ever.
    pub async fn follow<C: Containers>(self, probe: Arc<Probe<C>>, within: Duration) {
        let mut failures = 0;
        loop {
            let notify = |event| match event {
                EngineEvent::Container(name) => {
                    drop(self.sender.send(ObserverEvent::Container(name)))
                }
                EngineEvent::Listening => {
                    self.live.store(true, Ordering::Relaxed);
                    tracing::debug!("the event stream of the engine is open");
                    let _ = self.sender.send(ObserverEvent::LookAnew);
                }
            };
            let ended = probe.containers.events(notify, within).await;
            if self.live.swap(false, Ordering::Relaxed) {
                failures = 0;
                let why = ended.map_or_else(|e| chain(&e), |()| "its stream ended".to_string());
                tracing::warn!(
                    why,
                    "the event stream of the engine broke, and containers are polled until the stream is open again: {why}"
                );
                let _ = self.sender.send(ObserverEvent::LookAnew);
            }
            failures = u32::saturating_add(failures, 1);
            sleep(BACKOFF.delay(failures, 0)).await;
        }
    }
}
