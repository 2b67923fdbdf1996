//! Malloc bdev: anonymous memory of this process.

use nix::errno::Errno;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::Transfer;

/// Zeroes to copy from.
static ZEROES: [u8; 65536] = [0; 65536];

/// Anonymous memory of the disk. The kernel allocates a page when it is first written.
#[derive(Debug)]
pub(in crate::builtin) struct MemoryDisk(MmapRegion);

impl MemoryDisk {
    /// Maps `bytes` bytes of memory.
    ///
    /// # Errors
    /// ENOMEM when the kernel has no room for it.
    pub(in crate::builtin) fn new(bytes: u64) -> Result<Self, Errno> {
        let bytes = usize::try_from(bytes).map_err(|_| Errno::ENOMEM)?;
        MmapRegion::new(bytes).map(Self).map_err(|_| Errno::ENOMEM)
    }

    pub(super) fn transfer(&self, at: Transfer, slices: &[VolatileSlice<'_>]) -> Result<(), Errno> {
        let Transfer { write, offset } = at;
        let mut at = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        for slice in slices {
            let here = self.0.get_slice(at, slice.len()).map_err(|_| Errno::EINVAL)?;
            if write {
                slice.copy_to_volatile_slice(here);
            } else {
                here.copy_to_volatile_slice(*slice);
            }
            at += slice.len();
        }
        Ok(())
    }

    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let mut at = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let mut left = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
        while left > 0 {
            let part = left.min(ZEROES.len());
            let here = self.0.get_slice(at, part).map_err(|_| Errno::EINVAL)?;
            here.copy_from(&ZEROES[..part]);
            at += part;
            left -= part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_zeroes_replace_it() {
        let memory = MemoryDisk::new(1 << 20).unwrap();
        let mut data = vec![7u8; 4096];
        memory
            .transfer(Transfer { write: true, offset: 8192 }, &[VolatileSlice::from(&mut data[..])])
            .unwrap();
        let mut back = vec![0u8; 4096];
        memory
            .transfer(
                Transfer { write: false, offset: 8192 },
                &[VolatileSlice::from(&mut back[..])],
            )
            .unwrap();
        assert_eq!(back, data);
        memory.zero(8192, 512).unwrap();
        memory
            .transfer(
                Transfer { write: false, offset: 8192 },
                &[VolatileSlice::from(&mut back[..])],
            )
            .unwrap();
        assert_eq!(&back[..512], &[0; 512]);
        assert_eq!(&back[512..], &[7; 3584]);
    }

    #[test]
    fn a_range_beyond_the_end_is_refused() {
        let memory = MemoryDisk::new(4096).unwrap();
        let mut data = vec![7u8; 4096];
        assert!(
            memory
                .transfer(
                    Transfer { write: true, offset: 512 },
                    &[VolatileSlice::from(&mut data[..])]
                )
                .is_err()
        );
        assert!(memory.zero(4096, 1).is_err());
    }
}
