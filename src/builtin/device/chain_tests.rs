//! Chains, right and wrong.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::super::bdev::{BdevBacking, BuiltinBdev};
use super::super::disk::ControllerDisk;
use super::super::request::{BlockRequest, Operation};
use super::*;

fn guest() -> GuestMemory {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    GuestMemory::of(memory)
}

/// Address, length, flags, next.
type Written = (u64, u32, u16, u16);

fn walked(descriptors: &[Written]) -> Result<Chain, InvalidChain> {
    let guest = guest();
    let mut queue = Queue::new(8).unwrap();
    queue.set_desc_table_address(Some(0x1000), None);
    for (index, (address, length, flags, next)) in descriptors.iter().enumerate() {
        let place = GuestAddress(0x1000 + 16 * index as u64);
        guest.memory.write_obj(Descriptor::new(*address, *length, *flags, *next), place).unwrap();
    }
    walk(&guest, &queue, 0)
}

#[test]
fn a_chain_is_split_into_what_is_read_and_what_is_written() {
    let chain = walked(&[
        (0x2000, 16, NEXT, 2),
        (0, 0, 0, 0),
        (0x3000, 512, NEXT | WRITE, 3),
        (0x4000, 1, WRITE, 0),
    ])
    .unwrap();
    assert_eq!(chain.readable.len(), 1);
    assert_eq!(chain.writable.iter().map(|s| s.length).collect::<Vec<_>>(), [512, 1]);
}

#[test]
fn an_indirect_table_is_replaced_by_its_descriptors() {
    // The table is placed over the ring's own, from its second descriptor on.
    let chain =
        walked(&[(0x1010, 32, INDIRECT, 0), (0x2000, 16, NEXT, 1), (0x3000, 1, WRITE, 0)]).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
}

#[test]
fn violations_of_the_ring_format_are_distinguished() {
    let cases: [(&[Written], InvalidChain); 7] = [
        (&[(0x2000, 16, NEXT, 9)], InvalidChain::Index(9)),
        (&[(0x2000, 16, NEXT, 0)], InvalidChain::Loop),
        (&[(0x2000, 1, NEXT | WRITE, 1), (0x3000, 16, 0, 0)], InvalidChain::Order),
        (&[(0x1010, 16, INDIRECT, 0), (0x1010, 16, INDIRECT, 0)], InvalidChain::Indirect),
        (&[(0x1010, 15, INDIRECT, 0)], InvalidChain::Indirect),
        (&[(1 << 40, 16, INDIRECT, 0)], InvalidChain::Table),
        (&[(0, u32::MAX, NEXT, 1), (0, u32::MAX, 0, 0)], InvalidChain::TooLong),
    ];
    for (descriptors, expected) in cases {
        assert_eq!(walked(descriptors).unwrap_err(), expected);
    }
}

#[test]
fn an_empty_indirect_table_is_no_chain() {
    assert_eq!(walked(&[(0x2000, 0, INDIRECT, 0)]).unwrap_err(), InvalidChain::Index(0));
}

proptest::proptest! {
    #[test]
    fn a_table_of_any_bytes_is_walked_and_judged_within_its_bounds(
        // Small addresses, lengths and indexes, so that many tables make sense for a while.
        descriptors in proptest::collection::vec((0u64..0x3000, 0u32..0x800, 0u16..8, 0u16..10), 8),
        head in 0u16..10,
        header in proptest::array::uniform16(0u8..16),
    ) {
        let guest = guest();
        assert!(guest.put(GuestAddress(0x2000), &header));
        let mut queue = Queue::new(8).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        for (index, (address, length, flags, next)) in descriptors.into_iter().enumerate() {
            let place = GuestAddress(0x1000 + 16 * index as u64);
            guest.memory.write_obj(Descriptor::new(address, length, flags, next), place).unwrap();
        }
        let bdev = BuiltinBdev::new("d".into(), None, 512, 64, BdevBacking::Null);
        let disk = ControllerDisk {
            name: "c".into(),
            bdev: Arc::new(bdev),
            read_only: false,
            packed_ring: false,
            cores: None,
            served_from: std::time::Instant::now(),
        };
        let parsed = walk(&guest, &queue, head).and_then(|chain| BlockRequest::parse(&guest, &disk, chain));
        if let Ok(BlockRequest { operation: Operation::Transfer { offset, length, data, .. }, .. }) = parsed {
            assert!(offset + length <= 64 * 512);
            assert_eq!(data.iter().map(|part| u64::from(part.length)).sum::<u64>(), length);
        }
    }
}
