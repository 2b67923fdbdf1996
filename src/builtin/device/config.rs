//! Features and configuration space of a vhost-user-blk disk.

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::disk::ControllerDisk;

/// Maximum number of queues of a guest.
pub(super) const QUEUES: u16 = 16;
/// Maximum number of entries of a ring.
pub(super) const RING: u16 = 1024;
/// Maximum number of ranges in one discard or write-zeroes request.
pub(super) const RANGES: u32 = 16;
/// Maximum number of sectors in one range of such a request: 2 GiB.
pub(super) const RANGE_SECTORS: u32 = 1 << 22;
/// Maximum number of data segments in one request: what fits a ring of 128 entries beside header and status.
const SEGMENTS: u32 = 126;
/// Size in bytes of the configuration space that frontends read; bytes behind the fields are zero.
const SPACE: usize = 256;

pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Bit by which the frontend switches the log of dirty pages on.
pub(super) const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
pub(super) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

pub(super) fn features(disk: &ControllerDisk) -> u64 {
    let bits = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_MQ,
    ];
    let writable = [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES];
    let more: &[u32] = if disk.read_only { &[VIRTIO_BLK_F_RO] } else { &writable };
    bits.iter().chain(more).fold(PROTOCOL_FEATURES | LOG_ALL, |all, bit| all | 1 << bit)
}

pub(super) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::BACKEND_SEND_FD
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// Content of the configuration space (virtio 1.2, 5.2.4), with the disk's current size.
pub(super) fn space(disk: &ControllerDisk) -> Vec<u8> {
    let block = disk.bdev.block_size;
    let mut space = Vec::with_capacity(SPACE);
    space.extend((disk.bdev.bytes() / 512).to_le_bytes());
    space.extend(0u32.to_le_bytes()); // size_max: not offered
    space.extend(SEGMENTS.to_le_bytes());
    space.extend([0; 4]); // geometry: not offered
    space.extend(block.to_le_bytes());
    space.extend([0, 0]); // topology: a physical block is a logical one, the first is aligned
    space.extend(1u16.to_le_bytes()); // min_io_size, in blocks
    space.extend(0u32.to_le_bytes()); // opt_io_size: no preference
    space.extend([0, 0]); // writeback: not offered
    space.extend(QUEUES.to_le_bytes());
    space.extend(RANGE_SECTORS.to_le_bytes());
    space.extend(RANGES.to_le_bytes());
    space.extend((block / 512).to_le_bytes()); // discard_sector_alignment
    space.extend(RANGE_SECTORS.to_le_bytes());
    space.extend(RANGES.to_le_bytes());
    space.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
    space.resize(SPACE, 0);
    space
}
