//! Who this host is to the controller and where the controller listens, learnt from `/host/connect`.

use tokio::sync::watch;

use crate::model::fault::Fault;
pub use crate::model::identity::Identity;
use crate::store::{Durability, Store};

/// The identity, kept over restarts.
#[derive(Debug)]
pub struct Identities {
    store: Store,
    known: watch::Sender<Identity>,
}

impl Identities {
    /// Reads what is known.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn open(store: Store) -> Result<Identities, Fault> {
        let known = store.read(Identity::FILE, Durability::Disk)?.unwrap_or_default();
        Ok(Identities { store, known: watch::Sender::new(known) })
    }

    /// What is known.
    pub fn known(&self) -> Identity {
        self.known.borrow().clone()
    }

    /// What is known now, and each time a controller connects, also when it says the same again: it may
    /// have forgotten what it was told.
    pub fn watch(&self) -> watch::Receiver<Identity> {
        self.known.subscribe()
    }

    /// Keeps a new identity. Blocks for the disk.
    ///
    /// # Errors
    /// When the state cannot be written; nothing is changed then.
    pub fn learn(&self, identity: Identity) -> Result<(), Fault> {
        if self.known() != identity {
            self.store.write(Identity::FILE, &identity, Durability::Disk)?;
        }
        self.known.send_replace(identity);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_is_known_after_a_restart_and_each_word_of_it_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Identities::open(Store::open(dir.path(), dir.path()).unwrap()).unwrap();
        let identities = open();
        let mut heard = identities.watch();
        let identity = Identity { host_uuid: "5f0c".to_string(), ..Identity::default() };
        for _ in 0..2 {
            identities.learn(identity.clone()).unwrap();
            assert!(heard.has_changed().unwrap());
            assert_eq!(*heard.borrow_and_update(), identity);
        }
        assert_eq!(open().known(), identity);
    }
}
