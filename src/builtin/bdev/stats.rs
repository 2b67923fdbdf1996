//! Counters of a bdev, as `bdev_get_iostat` reports them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// Kind of operation on a bdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::builtin) enum Kind {
    /// Bytes to the VM.
    Read,
    /// Bytes from the VM.
    Write,
    /// Discard, and zeroes written.
    Unmap,
    Flush,
}

/// Monotonic counters by kind of operation.
#[derive(Debug, Default)]
pub(in crate::builtin) struct Stats {
    operations: [AtomicU64; 4],
    bytes: [AtomicU64; 4],
    errors: AtomicU64,
}

impl Stats {
    pub(in crate::builtin) fn count(&self, kind: Kind, bytes: u64) {
        self.operations[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.bytes[kind as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(in crate::builtin) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Members of SPDK's answer that have a meaning here.
    pub(in crate::builtin) fn report(&self, name: &str) -> Value {
        let operations = |kind: Kind| self.operations[kind as usize].load(Ordering::Relaxed);
        let bytes = |kind: Kind| self.bytes[kind as usize].load(Ordering::Relaxed);
        json!({
            "name": name,
            "bytes_read": bytes(Kind::Read),
            "num_read_ops": operations(Kind::Read),
            "bytes_written": bytes(Kind::Write),
            "num_write_ops": operations(Kind::Write),
            "bytes_unmapped": bytes(Kind::Unmap),
            "num_unmap_ops": operations(Kind::Unmap),
            "num_flush_ops": operations(Kind::Flush),
            "num_io_errors": self.errors.load(Ordering::Relaxed),
        })
    }
}
