//! Page-aligned buffer, as requests past the page cache (`O_DIRECT`) need it.

use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Zeroed, page-aligned memory.
#[derive(Debug)]
pub(in crate::builtin) struct AlignedBuffer {
    region: MmapRegion,
    length: usize,
}

impl AlignedBuffer {
    /// Allocates `length` bytes; `None` when there is no memory.
    pub(in crate::builtin) fn zeroed(length: usize) -> Option<Self> {
        let region = MmapRegion::new(length.max(1)).ok()?;
        Some(Self { region, length })
    }

    pub(in crate::builtin) fn slice(&self) -> VolatileSlice<'_> {
        // The range is in bounds by construction. If it were not, the empty slice would fail the request and not the
        // process.
        self.region.get_slice(0, self.length).unwrap_or_else(|_| VolatileSlice::from(&mut [][..]))
    }
}
