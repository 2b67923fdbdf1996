//! State of a target, owned by the thread that serves its control socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;

use super::StartOptions;
use super::bdev::{Bdevs, BuiltinBdev, Folder, errno};
use super::cores::Cores;
use super::device::{BlkController, ControllerDisk};
use super::faults::Faults;
use super::socket::{Occupant, PATH_BYTES, occupant};

/// Target with its bdevs and controllers.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) bdevs: Bdevs,
    pub(super) controllers: BTreeMap<String, BlkController>,
    /// Set once start-up is over: then all methods may be called.
    pub(super) serving: bool,
    pub(super) cores: Option<Cores>,
    pub(super) zbs: Option<Folder>,
    pub(super) started: Instant,
    pub(super) faults: Option<Faults>,
    memory_mib: Option<u64>,
    socket_dir: PathBuf,
}

/// Parameters of a new controller.
#[derive(Debug, Clone, Default)]
pub(super) struct ControllerParams {
    pub(super) name: String,
    pub(super) bdev: String,
    pub(super) read_only: bool,
    pub(super) packed_ring: bool,
    pub(super) cores: Option<String>,
}

impl Target {
    pub(super) fn new(options: &StartOptions) -> Self {
        Self {
            bdevs: Bdevs::default(),
            controllers: BTreeMap::new(),
            serving: !options.wait_for_rpc,
            cores: options.cores.clone(),
            zbs: options.zbs_dir.clone().map(Folder),
            started: Instant::now(),
            faults: options.debug_faults.clone().map(Faults),
            memory_mib: options.memory_mib,
            socket_dir: options.socket_dir.clone(),
        }
    }

    /// `true` if malloc bdevs may take `bytes` more bytes of memory.
    pub(super) fn has_memory(&self, bytes: u64) -> bool {
        let most = self.memory_mib.map_or(u64::MAX, |mib| mib.saturating_mul(1 << 20));
        self.bdevs.memory().checked_add(bytes).is_some_and(|all| all <= most)
    }

    /// Socket path of the controller `name`. Names that are too long or lead out of the folder are invalid; SPDK
    /// truncates the former and follows the latter.
    fn socket_path(&self, name: &str) -> Result<PathBuf, Errno> {
        let plain = !name.is_empty() && name != "." && !name.contains("..");
        if !plain || name.contains(['/', '\0']) {
            return Err(Errno::EINVAL);
        }
        let path = self.socket_dir.join(name);
        if path.as_os_str().len() > PATH_BYTES { Err(Errno::EINVAL) } else { Ok(path) }
    }

    fn cores_of(&self, mask: Option<&str>) -> Result<Option<Cores>, Errno> {
        let Some(mask) = mask else { return Ok(self.cores.clone()) };
        let cores: Cores = mask.parse().map_err(|_| Errno::EINVAL)?;
        let allowed = self.cores.clone().unwrap_or_else(Cores::first);
        if cores.within(&allowed) { Ok(Some(cores)) } else { Err(Errno::EINVAL) }
    }

    /// Creates a controller. Fails if another process serves a socket at its path.
    ///
    /// # Errors
    /// ENODEV without the bdev, EINVAL for an invalid name or mask, EEXIST if the controller exists, EIO when its
    /// socket cannot be created.
    pub(super) fn create_controller(&mut self, params: ControllerParams) -> Result<(), Errno> {
        let bdev = Arc::clone(self.bdevs.get(&params.bdev).ok_or(Errno::ENODEV)?);
        let path = self.socket_path(&params.name)?;
        let cores = self.cores_of(params.cores.as_deref())?;
        if self.controllers.contains_key(&params.name) {
            return Err(Errno::EEXIST);
        }
        match occupant(&path) {
            Ok(Occupant::Nothing) => {}
            Ok(Occupant::Stale) => std::fs::remove_file(&path).map_err(|_| Errno::EIO)?,
            found => {
                let why = match found {
                    Ok(Occupant::Live) => "another process serves there".to_string(),
                    Ok(_) => "something that is no socket lies there".to_string(),
                    Err(error) => error.to_string(),
                };
                tracing::error!(
                    path = %path.display(), why,
                    "controller {} cannot be created, because its socket path {} cannot be used: {why}",
                    params.name, path.display()
                );
                return Err(Errno::EIO);
            }
        }
        let read_only = params.read_only || bdev.file().is_some_and(|file| file.is_read_only());
        let ControllerParams { name, packed_ring, .. } = params;
        let served_after = self.faults.as_ref().map(Faults::sessions_after).unwrap_or_default();
        let served_from = self.started + served_after;
        let disk =
            ControllerDisk { name: name.clone(), bdev, read_only, packed_ring, cores, served_from };
        let controller = BlkController::new(disk, path.clone()).map_err(|error| {
            tracing::error!(
                path = %path.display(), %error,
                "controller {name} could not be created at {}: {error}", path.display()
            );
            Errno::EIO
        })?;
        self.controllers.insert(name, controller);
        Ok(())
    }

    /// Deletes the controller `name`, which must have no connected VM.
    ///
    /// # Errors
    /// ENODEV when there is no such controller, EBUSY when a VM is connected.
    pub(super) fn delete_controller(&mut self, name: &str) -> Result<(), Errno> {
        let controller = self.controllers.get(name).ok_or(Errno::ENODEV)?;
        if !controller.close() {
            return Err(Errno::EBUSY);
        }
        self.controllers.remove(name);
        Ok(())
    }

    /// Sets the size of `bdev` to `bytes`, rounded down to whole blocks, and notifies the connected guests.
    ///
    /// # Errors
    /// `smaller` when the bdev would shrink.
    pub(super) fn resize(
        &self,
        bdev: &BuiltinBdev,
        bytes: u64,
        smaller: Errno,
    ) -> Result<(), Errno> {
        let blocks = bytes / u64::from(bdev.block_size);
        if blocks < bdev.blocks() {
            return Err(smaller);
        }
        if blocks > bdev.blocks() {
            bdev.set_blocks(blocks);
            let has_it = |c: &&BlkController| std::ptr::eq(&*c.disk.bdev, bdev);
            self.controllers.values().filter(has_it).for_each(BlkController::announce_resize);
        }
        Ok(())
    }

    /// Removes all controllers' sockets and requests the end of their sessions, without waiting for it.
    pub(super) fn begin_stop(&self) {
        self.controllers.values().for_each(BlkController::begin_stop);
    }

    /// `true` if the threads of all controllers have ended.
    pub(super) fn has_stopped(&self) -> bool {
        self.controllers.values().all(BlkController::has_stopped)
    }

    /// Creates the folder of the vhost sockets.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn make_folder(&self) -> Result<(), Errno> {
        std::fs::create_dir_all(&self.socket_dir).map_err(|error| errno(&error))
    }
}
