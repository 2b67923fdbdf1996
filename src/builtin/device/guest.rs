//! The guest's memory, as its frontend shares it.

use std::fs::File;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    VolatileSlice,
};

use std::sync::Arc;

/// Where a region is in the address space of the frontend, which names rings by such addresses.
#[derive(Debug, Clone, Copy)]
struct Place {
    user: u64,
    guest: u64,
    length: u64,
}

/// The guest's memory. It stays mapped while a request holds it.
#[derive(Debug, Clone, Default)]
pub(super) struct Guest {
    pub(super) memory: GuestMemoryMmap<()>,
    places: Vec<Place>,
}

fn invalid<E>(_: E) -> Error {
    Error::InvalidParam
}

fn map(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap<()>> {
    let mapping = region.mmap_region(file)?;
    GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr)).ok_or(Error::InvalidParam)
}

impl Guest {
    /// # Errors
    /// When a region cannot be mapped, or overlaps another.
    pub(super) fn new(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self> {
        let mut guest = Self::default();
        for (region, file) in regions.iter().zip(files) {
            guest = guest.with(region, file)?;
        }
        Ok(guest)
    }

    /// This memory and one more region.
    ///
    /// # Errors
    /// When it cannot be mapped, or overlaps another.
    pub(super) fn with(&self, region: &VhostUserMemoryRegion, file: File) -> Result<Self> {
        let place = Place {
            user: region.user_addr,
            guest: region.guest_phys_addr,
            length: region.memory_size,
        };
        let memory = self.memory.insert_region(Arc::new(map(region, file)?)).map_err(invalid)?;
        let mut places = self.places.clone();
        places.push(place);
        Ok(Self { memory, places })
    }

    /// This memory without a region.
    ///
    /// # Errors
    /// When there is no such region.
    pub(super) fn without(&self, region: &VhostUserMemoryRegion) -> Result<Self> {
        let base = GuestAddress(region.guest_phys_addr);
        let (memory, _) = self.memory.remove_region(base, region.memory_size).map_err(invalid)?;
        let mut places = self.places.clone();
        places.retain(|place| place.guest != region.guest_phys_addr);
        Ok(Self { memory, places })
    }

    /// The guest's address of an address of the frontend.
    pub(super) fn translate(&self, user: u64) -> Option<u64> {
        let place = self.places.iter().find(|place| {
            user.checked_sub(place.user).is_some_and(|offset| offset < place.length)
        })?;
        place.guest.checked_add(user - place.user)
    }

    /// Appends the slices that make up a range; false when a part of it is no memory.
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

    /// Writes `bytes`; false when a part of the range is no memory.
    pub(super) fn put(&self, address: GuestAddress, bytes: &[u8]) -> bool {
        self.memory.write_slice(bytes, address).is_ok()
    }

    /// Bytes of guest memory, for the log.
    pub(super) fn bytes(&self) -> u64 {
        self.memory.iter().map(GuestMemoryRegion::len).sum()
    }
}

#[cfg(test)]
impl Guest {
    /// Memory that no frontend has shared.
    pub(super) fn of(memory: GuestMemoryMmap<()>) -> Self {
        Self { memory, places: Vec::new() }
    }
}
