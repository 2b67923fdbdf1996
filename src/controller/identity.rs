//! Who this host is to the controller and where the controller listens, learnt from `/host/connect`.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::model::fault::Fault;
use crate::store::{Durability, Store};

const FILE: &str = "controller.json";

/// What a controller said when it connected; empty where it did not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Identity {
    /// The controller's name for this host.
    pub host_uuid: String,
    /// Where commands to the controller go.
    pub send_command_url: String,
    /// The version that the controller expects of the agent.
    pub version: String,
}

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
        let known = Mutex::new(store.read(FILE, Durability::Disk)?.unwrap_or_default());
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
        self.store.write(FILE, &identity, Durability::Disk)?;
        *self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = identity;
        Ok(())
    }
}
