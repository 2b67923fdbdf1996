//! Handlers for the vhost-user messages from a VM's frontend.
//!
//! Only the session's thread calls them. A `Negotiation` keeps the settings of each ring, starts the ring on a worker
//! once the settings are complete, and stops it. The running rings belong to the workers.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use super::config::{self, QUEUES};
use super::disk::ControllerDisk;
use super::guest::GuestMemory;
use super::inflight::{self, Record};
use super::log::{DirtyLog, RingLog};
use super::ring::interrupt;
use super::session_progress::SessionProgress;
use super::vring::{Vring, ring_size};
use super::worker::WorkerHandle;

/// State of the device for one frontend.
pub(super) struct Negotiation {
    disk: Arc<ControllerDisk>,
    workers: Vec<WorkerHandle>,
    progress: Arc<SessionProgress>,
    features: u64,
    guest: Arc<GuestMemory>,
    record: Option<Record>,
    log: Option<Arc<DirtyLog>>,
    vrings: Vec<Vring>,
}

fn base_of(region: &VhostUserSingleMemoryRegion) -> &VhostUserMemoryRegion {
    region
}

impl Negotiation {
    pub(super) fn new(
        disk: Arc<ControllerDisk>,
        workers: Vec<WorkerHandle>,
        progress: Arc<SessionProgress>,
    ) -> Self {
        let vrings = (0..QUEUES).map(|_| Vring::default()).collect();
        let guest = Arc::default();
        Self { disk, workers, progress, features: 0, guest, record: None, log: None, vrings }
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn worker(&self, index: u32) -> Result<&WorkerHandle> {
        self.workers.get(index as usize % self.workers.len().max(1)).ok_or(Error::InvalidParam)
    }

    /// Starts the ring `index` if it has a kick, is enabled, and does not run yet.
    fn start(&mut self, index: u32) -> Result<()> {
        let event_idx = self.features & config::EVENT_IDX != 0;
        let (guest, record) = (Arc::clone(&self.guest), self.record.clone());
        let in_flight = Arc::clone(&self.progress.in_flight);
        let log = self.ring_log(index as usize);
        let vring = self.vring(index)?;
        if vring.running || !vring.started || !vring.enabled {
            return Ok(());
        }
        let ring = vring.ring(index as u16, guest, record.as_ref(), event_idx, in_flight, log)?;
        vring.running = true;
        self.worker(index)?.start_ring(ring);
        self.note();
        Ok(())
    }

    /// Stops the ring `index`, once all its requests are answered.
    fn stop(&mut self, index: u32) -> Result<()> {
        if std::mem::take(&mut self.vring(index)?.running) {
            if let Some(base) = self.worker(index)?.stop_ring(index as u16) {
                self.vring(index)?.base = base;
            }
            self.note();
        }
        Ok(())
    }

    /// Stops every ring. The guest's memory stays mapped for as long as a request needs it.
    pub(super) fn stop_all(&mut self) {
        for index in 0..u32::from(QUEUES) {
            let _ = self.stop(index);
        }
    }

    fn note(&self) {
        let running = self.vrings.iter().filter(|vring| vring.running).count();
        self.progress.running.store(running, Ordering::Relaxed);
    }

    /// Log as the ring `index` is to use it.
    fn ring_log(&self, index: usize) -> RingLog {
        let pages = self.log.clone().filter(|_| self.features & config::LOG_ALL != 0);
        RingLog { pages, used: self.vrings.get(index).and_then(|vring| vring.used_log) }
    }

    /// Hands the log to the running rings, which do not stop for it.
    fn use_log(&self) -> Result<()> {
        for (index, _) in self.vrings.iter().enumerate().filter(|(_, vring)| vring.running) {
            self.worker(index as u32)?.replace_log(index as u16, self.ring_log(index));
        }
        Ok(())
    }

    fn use_memory(&mut self, guest: GuestMemory) -> Result<()> {
        if let Some(log) = self.ring_log(0).pages {
            log.check_covers(guest.last())?;
        }
        tracing::debug!(
            disk = self.disk.bdev.name,
            bytes = guest.bytes(),
            "the guest of disk {} shares {} bytes of memory",
            self.disk.bdev.name,
            guest.bytes()
        );
        self.guest = Arc::new(guest);
        self.workers.iter().for_each(|worker| worker.replace_memory(&self.guest));
        Ok(())
    }
}

impl VhostUserBackendReqHandlerMut for Negotiation {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
        (self.features, self.log) = (0, None);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(config::features(&self.disk))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !config::features(&self.disk) != 0 {
            return Err(Error::InvalidParam);
        }
        let switched = (self.features ^ features) & config::LOG_ALL != 0;
        if features & config::LOG_ALL == 0 {
            // The frontend gives its log up with the migration, and memory may grow beyond this one.
            self.log = None;
        } else if let Some(log) = &self.log {
            log.check_covers(self.guest.last())?;
        }
        self.features = features;
        if switched {
            self.use_log()?;
        }
        // Without protocol features there is no message to enable a ring, so all rings are enabled.
        if features & config::PROTOCOL_FEATURES == 0 {
            self.vrings.iter_mut().for_each(|vring| vring.enabled = true);
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.use_memory(GuestMemory::new(regions, files)?)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        self.vring(index)?.size = ring_size(size)?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        table: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let vring = self.vring(index)?;
        vring.addresses = Some([table, used, available]);
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        vring.used_log = logged.then_some(log);
        self.use_log()
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.vring(index)?.base = base as u16;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop(index)?;
        let vring = self.vring(index)?;
        vring.started = false;
        Ok(VhostUserVringState::new(index, u32::from(vring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        self.stop(index)?;
        let vring = self.vring(index)?;
        vring.kick = fd.map(Arc::new);
        vring.started = true;
        self.start(index)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = &self.vring(u32::from(index))?.call;
        *call.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = fd;
        // The guest is interrupted again, because an interrupt by the old descriptor may have been lost.
        interrupt(call);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.vring(u32::from(index))?.error = fd.map(Arc::new);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(config::protocol_features())
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(QUEUES))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        if enable { self.start(index) } else { self.stop(index) }
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let space = config::space(&self.disk);
        let end = offset.checked_add(size).ok_or(Error::InvalidParam)? as usize;
        let part = space.get(offset as usize..end).ok_or(Error::InvalidParam)?;
        Ok(part.to_vec())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("the disk has nothing that a guest could set"))
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        inflight::make(asked)
    }

    fn set_inflight_fd(&mut self, layout: &VhostUserInflight, file: File) -> Result<()> {
        self.record = Some(Record::open(layout, file)?);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(509) // as many as QEMU ever uses
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        let guest = self.guest.with(base_of(region), file)?;
        self.use_memory(guest)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let guest = self.guest.without(base_of(region))?;
        self.use_memory(guest)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("a disk has no display"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("a disk shares no objects"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("a disk's state is in its rings"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("a disk's state is in its rings"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("a disk has no shared memory of its own"))
    }

    fn set_log_base(&mut self, layout: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::open(layout, file)?;
        log.check_covers(self.guest.last())?;
        self.log = Some(Arc::new(log));
        self.use_log()
    }
}
