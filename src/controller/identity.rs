//! Identity of this host as the controller knows it and the controller's address, learnt from `/host/connect`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::model::caller::Caller;
use crate::model::code::Code;
use crate::model::fault::Fault;
pub use crate::model::identity::HostIdentity;
use crate::store::{Durability, Store};

/// Limit of `connect` calls waiting for the disk; a controller connects once in a while.
const MOST_WAITING: usize = 16;

/// Time limit for the disk, waiting for earlier calls included.
const WITHIN: Duration = Duration::from_secs(10);

/// Store of the identity, persistent over restarts.
#[derive(Debug)]
pub struct Identities {
    store: Store,
    known: watch::Sender<HostIdentity>,
    /// Serialises compare and write.
    learning: Mutex<()>,
    /// Permits to wait for the disk; `turn` is the permit to write.
    waiting: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

impl Identities {
    /// Reads the stored identity.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn open(store: Store) -> Result<Identities, Fault> {
        let known = store.read(HostIdentity::FILE, Durability::Disk)?.unwrap_or_default();
        Ok(Identities {
            store,
            known: watch::Sender::new(known),
            learning: Mutex::new(()),
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    pub fn known(&self) -> HostIdentity {
        self.known.borrow().clone()
    }

    /// Caller of the last `connect`.
    pub fn learnt_from(&self) -> Option<Caller> {
        self.known.borrow().learnt_from
    }

    /// Watches the identity. Notified each time a controller connects, also with the same identity: the controller may
    /// have forgotten what was reported to it.
    pub fn watch(&self) -> watch::Receiver<HostIdentity> {
        self.known.subscribe()
    }

    /// Runs `teach`, which stores an identity, one call after the other and off the runtime: a disk that hangs blocks
    /// one thread, however many callers connect meanwhile and hang up again.
    ///
    /// # Errors
    /// `node-busy` when too many calls wait already, `state-unwritable` when the disk takes too long, and the errors of
    /// `teach`.
    pub async fn in_turn(
        self: &Arc<Identities>,
        teach: impl FnOnce(&Identities) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), Fault> {
        let busy = || {
            let text =
                format!("{MOST_WAITING} connects wait for the disk already: call again later");
            Fault::new(Code::NodeBusy, text)
        };
        let late = |_| {
            let text = format!(
                "who this host is to the controller was not written within {WITHIN:?}: see whether the state \
                 folder's disk hangs, then call again"
            );
            Fault::new(Code::StateUnwritable, text)
        };
        let waits = self.waiting.clone().try_acquire_owned().map_err(|_| busy())?;
        let taught = async {
            let turn = self.turn.clone().acquire_owned().await.map_err(|_| busy())?;
            let identities = self.clone();
            // Both permits are held until the disk is done, even if the caller is gone by then.
            let work = move || {
                let _held = (waits, turn);
                teach(&identities)
            };
            let taught = tokio::task::spawn_blocking(work).await;
            taught.unwrap_or_else(|e| Err(Fault::new(Code::Internal, e.to_string())))
        };
        timeout(WITHIN, taught).await.map_err(late)?
    }

    /// Stores a new identity. Blocks for the disk.
    ///
    /// # Errors
    /// When the state cannot be written; nothing is changed then.
    pub fn learn(&self, identity: HostIdentity) -> Result<(), Fault> {
        let _alone = self.learning.lock().unwrap_or_else(PoisonError::into_inner);
        self.keep(identity)
    }

    /// Stores only those fields of `said` that were unknown, and only if no other host UUID than that of `said` is
    /// known. Blocks for the disk if there is such a field.
    ///
    /// # Errors
    /// As [`Identities::learn`].
    pub fn learn_missing(&self, said: HostIdentity) -> Result<(), Fault> {
        let _alone = self.learning.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known();
        if ![&said.host_uuid, ""].contains(&known.host_uuid.as_str()) {
            return Ok(());
        }
        // `learnt_from` is the caller that gave the address, not the one that gave the host's UUID.
        let learnt_from = match known.send_command_url.is_empty() {
            true => said.learnt_from,
            false => known.learnt_from,
        };
        let or = |known: String, said: String| if known.is_empty() { said } else { known };
        let whole = HostIdentity {
            host_uuid: or(known.host_uuid.clone(), said.host_uuid),
            send_command_url: or(known.send_command_url.clone(), said.send_command_url),
            version: or(known.version.clone(), said.version),
            learnt_from,
        };
        if whole == known { Ok(()) } else { self.keep(whole) }
    }

    fn keep(&self, identity: HostIdentity) -> Result<(), Fault> {
        if self.known() != identity {
            self.store.write(HostIdentity::FILE, &identity, Durability::Disk)?;
        }
        self.known.send_replace(identity);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_was_learnt_is_known_after_a_restart_and_each_word_of_it_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Identities::open(Store::open(dir.path(), dir.path()).unwrap()).unwrap();
        let identities = open();
        let mut heard = identities.watch();
        let identity = HostIdentity { host_uuid: "5f0c".to_string(), ..HostIdentity::default() };
        for _ in 0..2 {
            identities.learn(identity.clone()).unwrap();
            assert!(heard.has_changed().unwrap());
            assert_eq!(*heard.borrow_and_update(), identity);
        }
        assert_eq!(open().known(), identity);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_holds_up_one_thread_though_callers_hang_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), dir.path()).unwrap();
        let identities = Arc::new(Identities::open(store).unwrap());
        let (answer, hangs) = std::sync::mpsc::channel::<()>();
        let hanging = identities.in_turn(move |_| {
            let _ = hangs.recv();
            Ok(())
        });
        let (late, ()) = tokio::join!(hanging, tokio::time::advance(WITHIN));
        assert_eq!(late.unwrap_err().code, Code::StateUnwritable);
        for _ in 0..2 * MOST_WAITING {
            let other = identities.in_turn(|_| panic!("the first one is still at the disk"));
            assert!(other.now_or_never().is_none(), "neither done nor refused");
        }
        drop(answer);
        identities.in_turn(|_| Ok(())).await.unwrap();
    }

    #[test]
    fn what_is_missing_is_filled_in_and_what_is_known_stays() {
        let dir = tempfile::tempdir().unwrap();
        let identities = Identities::open(Store::open(dir.path(), dir.path()).unwrap()).unwrap();
        let said = |host_uuid: &str, send_command_url: &str| HostIdentity {
            host_uuid: host_uuid.to_string(),
            send_command_url: send_command_url.to_string(),
            version: String::new(),
            learnt_from: None,
        };
        let mut heard = identities.watch();
        identities.learn_missing(said("a", "")).unwrap();
        identities.learn_missing(said("a", "http://c/")).unwrap();
        assert_eq!(*heard.borrow_and_update(), said("a", "http://c/"));
        identities.learn_missing(said("a", "http://d/")).unwrap();
        identities.learn_missing(said("b", "http://d/")).unwrap();
        assert!(!heard.has_changed().unwrap(), "nothing was missing: nobody is notified");
        assert_eq!(identities.known(), said("a", "http://c/"));
    }
}
