//! Registry of a target's bdevs, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::errno::Errno;

use super::{BdevBacking, BuiltinBdev};

/// Bdevs of a target, sorted by name.
#[derive(Debug, Default)]
pub(in crate::builtin) struct Bdevs {
    by_name: BTreeMap<String, Arc<BuiltinBdev>>,
    unnamed: u64,
}

impl Bdevs {
    /// Next unused name of the form `Malloc<n>`, which SPDK gives unnamed malloc bdevs.
    pub(in crate::builtin) fn free_name(&mut self) -> String {
        loop {
            let name = format!("Malloc{}", self.unnamed);
            self.unnamed += 1;
            if !self.by_name.contains_key(&name) {
                return name;
            }
        }
    }

    /// Adds a bdev.
    ///
    /// # Errors
    /// EEXIST when another bdev has the name or the uuid.
    pub(in crate::builtin) fn add(&mut self, bdev: BuiltinBdev) -> Result<(), Errno> {
        let taken = |other: &Arc<BuiltinBdev>| other.name == bdev.name || other.uuid == bdev.uuid;
        if self.by_name.values().any(taken) {
            return Err(Errno::EEXIST);
        }
        self.by_name.insert(bdev.name.clone(), Arc::new(bdev));
        Ok(())
    }

    /// Looks up a bdev by its name, or by its uuid, which is an alias of the name.
    pub(in crate::builtin) fn get(&self, name: &str) -> Option<&Arc<BuiltinBdev>> {
        let by_uuid =
            || self.by_name.values().find(|bdev| bdev.uuid.hyphenated().to_string() == name);
        self.by_name.get(name).or_else(by_uuid)
    }

    pub(in crate::builtin) fn iter(&self) -> impl Iterator<Item = &Arc<BuiltinBdev>> {
        self.by_name.values()
    }

    /// Removes the bdev with that name or uuid. Requests of a VM that still uses it fail from now on.
    ///
    /// # Errors
    /// ENODEV when there is no such bdev.
    pub(in crate::builtin) fn remove(&mut self, name: &str) -> Result<(), Errno> {
        let name = self.get(name).ok_or(Errno::ENODEV)?.name.clone();
        if let Some(bdev) = self.by_name.remove(&name) {
            bdev.remove();
        }
        Ok(())
    }

    /// Total size of all malloc bdevs, in bytes.
    pub(in crate::builtin) fn memory(&self) -> u64 {
        let malloc = |bdev: &&Arc<BuiltinBdev>| matches!(bdev.backing, BdevBacking::Malloc(_));
        self.iter().filter(malloc).map(|bdev| bdev.bytes()).sum()
    }
}
