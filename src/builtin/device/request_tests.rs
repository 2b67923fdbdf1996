//! Requests as guests send them, right and wrong.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::super::super::bdev::{BdevBacking, BuiltinBdev};
use super::*;

const STATUS: u64 = 0x5000;

fn disk(block_size: u32, read_only: bool) -> ControllerDisk {
    let bdev = Arc::new(BuiltinBdev::new("d".into(), None, block_size, 64, BdevBacking::Null));
    ControllerDisk {
        name: "c".into(),
        bdev,
        read_only,
        packed_ring: false,
        cores: None,
        served_from: std::time::Instant::now(),
    }
}

fn segment(address: u64, length: u32) -> Segment {
    Segment { address: GuestAddress(address), length }
}

/// A request with its header at 0x1000 and, where it has them, discard ranges at 0x2000.
struct Asked {
    kind: u32,
    sector: u64,
    readable: u32,
    writable: u32,
    range: [u32; 3],
}

fn parsed(disk: &ControllerDisk, asked: Asked) -> Operation {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let guest = GuestMemory::of(memory);
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&asked.kind.to_le_bytes());
    header[8..].copy_from_slice(&asked.sector.to_le_bytes());
    assert!(guest.put(GuestAddress(0x1000), &header));
    let [sector, sectors, flags] = asked.range;
    for (at, word) in [(0, sector), (8, sectors), (12, flags)] {
        assert!(guest.put(GuestAddress(0x2000 + at), &word.to_le_bytes()));
    }
    // The header is cut in two, and the status shares its descriptor with the data's end.
    let mut chain = Chain {
        readable: vec![segment(0x1000, 5), segment(0x1005, 11)],
        writable: vec![segment(STATUS - u64::from(asked.writable), asked.writable + 1)],
    };
    if asked.readable > 0 {
        chain.readable.push(segment(0x2000, asked.readable));
    }
    let request = BlockRequest::parse(&guest, disk, chain).unwrap();
    assert_eq!(request.status, GuestAddress(STATUS));
    request.operation
}

fn ask(kind: u32, sector: u64, readable: u32, writable: u32) -> Asked {
    Asked { kind, sector, readable, writable, range: [0; 3] }
}

#[test]
fn a_read_and_a_write_keep_their_place_and_their_data() {
    let disk = disk(512, false);
    let read = parsed(&disk, ask(VIRTIO_BLK_T_IN, 3, 0, 1024));
    let data = vec![segment(STATUS - 1024, 1024)];
    assert_eq!(read, Operation::Transfer { write: false, offset: 1536, length: 1024, data });
    let write = parsed(&disk, ask(VIRTIO_BLK_T_OUT, 0, 512, 0));
    let data = vec![segment(0x2000, 512)];
    assert_eq!(write, Operation::Transfer { write: true, offset: 0, length: 512, data });
}

#[test]
fn what_is_not_on_the_disk_fails() {
    let disk = disk(512, false);
    let failed = Operation::Refuse(RequestStatus::Failed);
    for (sector, length) in
        [(64, 512), (63, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 0), (0, 100)]
    {
        assert_eq!(parsed(&disk, ask(VIRTIO_BLK_T_IN, sector, 0, length)), failed, "{sector}");
    }
}

#[test]
fn a_disk_of_large_blocks_takes_whole_ones_only() {
    let disk = disk(4096, false);
    let failed = Operation::Refuse(RequestStatus::Failed);
    assert_eq!(parsed(&disk, ask(VIRTIO_BLK_T_IN, 1, 0, 4096)), failed);
    assert_eq!(parsed(&disk, ask(VIRTIO_BLK_T_IN, 8, 0, 512)), failed);
    assert_ne!(parsed(&disk, ask(VIRTIO_BLK_T_IN, 8, 0, 4096)), failed);
}

#[test]
fn data_in_the_wrong_direction_fails() {
    let disk = disk(512, false);
    let failed = Operation::Refuse(RequestStatus::Failed);
    assert_eq!(parsed(&disk, ask(VIRTIO_BLK_T_IN, 0, 512, 512)), failed);
    assert_eq!(parsed(&disk, ask(VIRTIO_BLK_T_OUT, 0, 512, 512)), failed);
    assert_eq!(parsed(&disk, ask(VIRTIO_BLK_T_GET_ID, 0, 0, 19)), failed);
}

#[test]
fn a_read_only_disk_refuses_whatever_changes_it() {
    let disk = disk(512, true);
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(parsed(&disk, ask(kind, 0, 512, 0)), Operation::Refuse(RequestStatus::Failed));
    }
    assert_eq!(parsed(&disk, ask(VIRTIO_BLK_T_FLUSH, 0, 0, 0)), Operation::Flush);
}

#[test]
fn a_request_of_an_unknown_kind_is_unsupported() {
    let asked = parsed(&disk(512, false), ask(77, 0, 0, 0));
    assert_eq!(asked, Operation::Refuse(RequestStatus::Unsupported));
}

#[test]
fn discards_and_zeroes_are_judged_range_by_range() {
    let disk = disk(512, false);
    let zero = |kind, range| parsed(&disk, Asked { range, ..ask(kind, 0, 16, 0) });
    let range = |unmap| Operation::Zero(vec![Range { offset: 1024, length: 4096, unmap }]);
    assert_eq!(zero(VIRTIO_BLK_T_DISCARD, [2, 8, 0]), range(true));
    assert_eq!(zero(VIRTIO_BLK_T_WRITE_ZEROES, [2, 8, 0]), range(false));
    assert_eq!(zero(VIRTIO_BLK_T_WRITE_ZEROES, [2, 8, 1]), range(true));
    let unsupported = Operation::Refuse(RequestStatus::Unsupported);
    assert_eq!(zero(VIRTIO_BLK_T_DISCARD, [2, 8, 1]), unsupported);
    assert_eq!(zero(VIRTIO_BLK_T_WRITE_ZEROES, [2, 8, 2]), unsupported);
    assert_eq!(zero(VIRTIO_BLK_T_DISCARD, [60, 8, 0]), Operation::Refuse(RequestStatus::Failed));
}

#[test]
fn a_deleted_bdev_fails_each_request() {
    let disk = disk(512, false);
    disk.bdev.remove();
    let read = parsed(&disk, ask(VIRTIO_BLK_T_IN, 0, 0, 512));
    assert_eq!(read, Operation::Refuse(RequestStatus::Failed));
}
