//! Who this host is to the controller and where the controller listens, learnt from `/host/connect`.

use std::sync::Mutex;

use crate::model::fault::Fault;
pub use crate::model::identity::Identity;
use crate::store::{Durability, Store};

/// The identity, kept over restarts.
#[derive(Debug)]
pub struct Identities {
    store: Store,
    known: Mutex<Identity>,
}

impl Identities {
    /// Reads what is known.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn open(store: Store) -> Result<Identities, Fault> {
        let known = Mutex::new(store.read(Identity::FILE, Durability::Disk)?.unwrap_or_default());
        Ok(Identities { store, known })
    }

    /// What is known.
    pub fn known(&self) -> Identity {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Keeps a new identity. Blocks for the disk.
    ///
    /// # Errors
    /// When the state cannot be written; nothing is changed then.
    pub fn learn(&self, identity: Identity) -> Result<(), Fault> {
        if self.known() == identity {
            return Ok(());
        }
        self.store.write(Identity::FILE, &identity, Durability::Disk)?;
        *self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = identity;
        Ok(())
    }
}
