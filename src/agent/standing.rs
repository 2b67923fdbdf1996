//! How each target stands, as whoever reports it learns: its health from the watchers, its volumes and
//! restarts from its owner.

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::status::{LastExit, Standing, Standings, VolumeTally};
use crate::model::target::{TargetHealth, TargetName};

/// Where standings are published; clones are one.
#[derive(Debug, Clone)]
pub struct Stands(Arc<watch::Sender<Standings>>);

impl Default for Stands {
    fn default() -> Stands {
        Stands(Arc::new(watch::Sender::new(Standings::default())))
    }
}

impl Stands {
    /// All of them, now and from now on.
    pub fn watch(&self) -> watch::Receiver<Standings> {
        self.0.subscribe()
    }

    /// The health of one of them.
    pub fn health_of(&self, name: &TargetName) -> Option<TargetHealth> {
        self.0.borrow().get(name)?.health.clone()
    }

    /// The target's health is another one. Returns whether it stands in another way than before, or for
    /// another reason, and not only in another process.
    pub fn health(&self, health: &TargetHealth) -> bool {
        let mut news = true;
        self.change(&health.name, |standing| {
            let told = standing.health.replace(health.clone());
            news = told
                .is_none_or(|told| (told.state, &told.reason) != (health.state, &health.reason));
        });
        news
    }

    /// The target was started again.
    pub fn restarted(&self, name: &TargetName) {
        self.change(name, |standing| standing.restarts += 1);
    }

    /// The target has fallen.
    pub fn fell(&self, name: &TargetName) {
        self.change(name, |standing| standing.falls += 1);
    }

    /// Its process exited so.
    pub fn exited(&self, name: &TargetName, exit: LastExit) {
        self.change(name, |standing| standing.last_exit = Some(exit));
    }

    /// Its volumes are these.
    pub fn volumes(&self, name: &TargetName, volumes: VolumeTally) {
        self.change(name, |standing| standing.volumes = volumes);
    }

    /// It is neither wanted nor there.
    pub fn forget(&self, name: &TargetName) {
        self.0.send_if_modified(|all| all.remove(name).is_some());
    }

    fn change(&self, name: &TargetName, change: impl FnOnce(&mut Standing)) {
        self.0.send_if_modified(|all| {
            let before = all.get(name).cloned();
            let standing = all.entry(name.clone()).or_insert_with(|| Standing {
                health: None,
                restarts: 0,
                falls: 0,
                last_exit: None,
                volumes: VolumeTally::default(),
            });
            change(standing);
            before.as_ref() != all.get(name)
        });
    }
}
