//! Handshake between a driver and a vhost-user-blk device before the first request, in QEMU's order.

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::EventFd;

use crate::host::shared_memory::SharedMemory;

/// Failure to set up a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The target refused a message.
    #[error("the target did not take {what} on the vhost-user connection")]
    Negotiation {
        /// Refused part of the handshake.
        what: &'static str,
        source: vhost::Error,
    },
    /// The target lacks a feature that every vhost-user-blk device has.
    #[error("the target offers the features {offered:#x}, without {missing}")]
    Features {
        missing: &'static str,
        /// Feature bits that the target offers.
        offered: u64,
    },
}

fn failed(what: &'static str) -> impl Fn(vhost::Error) -> HandshakeError {
    move |source| HandshakeError::Negotiation { what, source }
}

/// Negotiates only the features that a probe uses; returns the agreed virtio features.
pub(super) fn negotiate(frontend: &mut Frontend) -> Result<u64, HandshakeError> {
    frontend.set_owner().map_err(failed("an owner"))?;
    let offered = frontend.get_features().map_err(failed("the question for its features"))?;
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    let needed = [(protocol, "protocol features"), (1 << VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1")];
    if let Some((_, missing)) = needed.into_iter().find(|(bit, _)| offered & bit == 0) {
        return Err(HandshakeError::Features { missing, offered });
    }
    let features = offered & (protocol | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_BLK_F_FLUSH);
    // The virtio features come first: the crate handles protocol features only once that feature bit is agreed.
    frontend.set_features(features).map_err(failed("virtio features"))?;
    let can = frontend.get_protocol_features().map_err(failed("protocol features"))?;
    let agreed = can & VhostUserProtocolFeatures::REPLY_ACK;
    frontend.set_protocol_features(agreed).map_err(failed("protocol features"))?;
    if !agreed.is_empty() {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(features)
}

/// Shares all of `memory` with the target, at the guest address 0.
pub(super) fn share(frontend: &Frontend, memory: &SharedMemory) -> Result<(), HandshakeError> {
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: memory.bytes(),
        userspace_addr: memory.address(),
        mmap_offset: 0,
        mmap_handle: memory.descriptor(),
    };
    frontend.set_mem_table(&[region]).map(drop).map_err(failed("the memory"))
}

/// Sets up ring 0, and enables it last.
pub(super) fn start_ring(
    frontend: &mut Frontend,
    ring: &VringConfigData,
    kick: &EventFd,
    call: &EventFd,
) -> Result<(), HandshakeError> {
    let mut start = || {
        frontend.set_vring_num(0, ring.queue_size)?;
        frontend.set_vring_base(0, 0)?;
        frontend.set_vring_addr(0, ring)?;
        frontend.set_vring_call(0, call)?;
        frontend.set_vring_kick(0, kick)?;
        frontend.set_vring_enable(0, true)
    };
    start().map_err(failed("the ring"))
}
