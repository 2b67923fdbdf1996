//! Memory of the guest, as its frontend shares it.

use std::fs::File;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    VolatileSlice,
};

use std::sync::Arc;

/// Location of a memory region in the frontend's address space and in the guest's. The frontend gives the addresses of
/// rings in its own address space.
#[derive(Debug, Clone, Copy)]
struct RegionLocation {
    user: u64,
    guest: u64,
    length: u64,
}

/// Mapped memory of the guest. It stays mapped while a request holds a reference to it.
#[derive(Debug, Clone, Default)]
pub(super) struct GuestMemory {
    pub(super) memory: GuestMemoryMmap<()>,
    places: Vec<RegionLocation>,
}

fn invalid<E>(_: E) -> Error {
    Error::InvalidParam
}

fn map(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap<()>> {
    let mapping = region.mmap_region(file)?;
    GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr)).ok_or(Error::InvalidParam)
}

impl GuestMemory {
    /// Maps the frontend's `regions`.
    ///
    /// # Errors
    /// When a region cannot be mapped, or overlaps another.
    pub(super) fn new(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self> {
        let mut guest = Self::default();
        for (region, file) in regions.iter().zip(files) {
            guest = guest.with(region, file)?;
        }
        Ok(guest)
    }

    /// Copy of this memory with `region` added.
    ///
    /// # Errors
    /// When the region cannot be mapped, or overlaps another.
    pub(super) fn with(&self, region: &VhostUserMemoryRegion, file: File) -> Result<Self> {
        let place = RegionLocation {
            user: region.user_addr,
            guest: region.guest_phys_addr,
            length: region.memory_size,
        };
        let memory = self.memory.insert_region(Arc::new(map(region, file)?)).map_err(invalid)?;
        let mut places = self.places.clone();
        places.push(place);
        Ok(Self { memory, places })
    }

    /// Copy of this memory without `region`.
    ///
    /// # Errors
    /// When this memory has no such region.
    pub(super) fn without(&self, region: &VhostUserMemoryRegion) -> Result<Self> {
        let base = GuestAddress(region.guest_phys_addr);
        let (memory, _) = self.memory.remove_region(base, region.memory_size).map_err(invalid)?;
        let mut places = self.places.clone();
        places.retain(|place| place.guest != region.guest_phys_addr);
        Ok(Self { memory, places })
    }

    /// Guest address of the frontend's address `user`; `None` if no region has it.
    pub(super) fn translate(&self, user: u64) -> Option<u64> {
        let place = self.places.iter().find(|place| {
            user.checked_sub(place.user).is_some_and(|offset| offset < place.length)
        })?;
        place.guest.checked_add(user - place.user)
    }

    /// Appends the slices that make up the range of `length` bytes at `address`; `false` if a part of it is not mapped.
    pub(super) fn slices<'a>(
        &'a self,
        address: GuestAddress,
        length: u32,
        slices: &mut Vec<VolatileSlice<'a>>,
    ) -> bool {
        for slice in GuestMemoryBackend::get_slices(&self.memory, address, length as usize) {
            match slice {
                Ok(slice) => slices.push(slice),
                Err(_) => return false,
            }
        }
        true
    }

    /// Writes `bytes` at `address`; `false` if a part of that range is not mapped.
    pub(super) fn put(&self, address: GuestAddress, bytes: &[u8]) -> bool {
        self.memory.write_slice(bytes, address).is_ok()
    }

    /// Highest address of the regions.
    pub(super) fn last(&self) -> GuestAddress {
        self.memory.last_addr()
    }

    /// Total size of the regions in bytes, for the log.
    pub(super) fn bytes(&self) -> u64 {
        self.memory.iter().map(GuestMemoryRegion::len).sum()
    }
}

#[cfg(test)]
impl GuestMemory {
    /// Test memory, not shared by a frontend.
    pub(super) fn of(memory: GuestMemoryMmap<()>) -> Self {
        Self { memory, places: Vec::new() }
    }
}
