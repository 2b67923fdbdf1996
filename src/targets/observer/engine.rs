//! What the engine tells by itself, for all who watch a target. Subscribed again whenever it ends, and
//! then everybody looks anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::sleep;

use super::Probe;
use crate::docker::{Containers, EngineEvent};
use crate::model::fault::chain;

/// News that a slow watcher may lag behind before it has to look by itself.
const BACKLOG: usize = 256;
/// Between two tries to subscribe, the first …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … and the longest; an engine that is not installed is not asked often.
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// About the container of that name.
    Container(String),
    /// Whatever was known may be outdated.
    LookAnew,
}

/// The engine's news; clones are one.
#[derive(Debug, Clone)]
pub struct EngineNews {
    sender: broadcast::Sender<News>,
    live: Arc<AtomicBool>,
}

impl Default for EngineNews {
    fn default() -> EngineNews {
        EngineNews { sender: broadcast::Sender::new(BACKLOG), live: Arc::default() }
    }
}

impl EngineNews {
    /// Whether all that happens is told at once.
    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }

    /// All that is told from now on.
    pub(super) fn listen(&self) -> broadcast::Receiver<News> {
        self.sender.subscribe()
    }

    /// Follows the engine for ever, and never starts it by that.
    pub async fn follow<C: Containers>(self, probe: Arc<Probe<C>>, within: Duration) {
        let mut pause = FIRST_PAUSE;
        loop {
            if !probe.engine_may_be_asked().await {
                sleep(LAST_PAUSE).await;
                continue;
            }
            let tell = |event| match event {
                EngineEvent::Container(name) => drop(self.sender.send(News::Container(name))),
                EngineEvent::Listening => {
                    self.live.store(true, Ordering::Relaxed);
                    tracing::debug!("the engine tells what happens to its containers");
                    let _ = self.sender.send(News::LookAnew);
                }
            };
            let ended = probe.containers.events(tell, within).await;
            if self.live.swap(false, Ordering::Relaxed) {
                pause = FIRST_PAUSE;
                let why = ended.map_or_else(|e| chain(&e), |()| "its stream ended".to_string());
                tracing::warn!(why, "the engine tells no more what happens; it is asked instead");
                let _ = self.sender.send(News::LookAnew);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}
