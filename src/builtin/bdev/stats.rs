//! Counters of a bdev, as `bdev_get_iostat` reports them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// Kind of operation on a bdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::builtin) enum OperationKind {
    /// Read: bytes go to the VM.
    Read,
    /// Write: bytes come from the VM.
    Write,
    /// Discard or write-zeroes request.
    Unmap,
    Flush,
}

/// Counters for each kind of operation, which only grow.
#[derive(Debug, Default)]
pub(in crate::builtin) struct Stats {
    operations: [AtomicU64; 4],
    bytes: [AtomicU64; 4],
    errors: AtomicU64,
}

impl Stats {
    pub(in crate::builtin) fn count(&self, kind: OperationKind, bytes: u64) {
        self.operations[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.bytes[kind as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(in crate::builtin) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Counters as those members of SPDK's answer that have a meaning for a built-in bdev.
    pub(in crate::builtin) fn report(&self, name: &str) -> Value {
        let operations =
            |kind: OperationKind| self.operations[kind as usize].load(Ordering::Relaxed);
        let bytes = |kind: OperationKind| self.bytes[kind as usize].load(Ordering::Relaxed);
        json!({
            "name": name,
            "bytes_read": bytes(OperationKind::Read),
            "num_read_ops": operations(OperationKind::Read),
            "bytes_written": bytes(OperationKind::Write),
            "num_write_ops": operations(OperationKind::Write),
            "bytes_unmapped": bytes(OperationKind::Unmap),
            "num_unmap_ops": operations(OperationKind::Unmap),
            "num_flush_ops": operations(OperationKind::Flush),
            "num_io_errors": self.errors.load(Ordering::Relaxed),
        })
    }
}
