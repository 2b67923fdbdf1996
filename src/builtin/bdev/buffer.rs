//! Page-aligned buffer, as direct requests (`O_DIRECT`) need it.

use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Zeroed, page-aligned memory.
#[derive(Debug)]
pub(in crate::builtin) struct AlignedBuffer {
    region: MmapRegion,
    length: usize,
}

impl AlignedBuffer {
    /// Allocates a buffer; `None` when there is no memory for it.
    pub(in crate::builtin) fn zeroed(length: usize) -> Option<Self> {
        let region = MmapRegion::new(length.max(1)).ok()?;
        Some(Self { region, length })
    }

    pub(in crate::builtin) fn slice(&self) -> VolatileSlice<'_> {
        // In bounds by construction; an empty slice would fail the request, not the process.
        self.region.get_slice(0, self.length).unwrap_or_else(|_| VolatileSlice::from(&mut [][..]))
    }
}
