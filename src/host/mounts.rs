//! hugetlbfs mounts: finding them and making one (field note 9).

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount, umount2};
use nix::sys::statfs::{HUGETLBFS_MAGIC, Statfs, statfs};
use nix::sys::statvfs::FsFlags;
use procfs::FromRead;
use procfs::process::MountInfos;

use super::files::read_table;
use super::{HostError, Root};
use crate::model::mounts::HugetlbMount;
use crate::model::units::PageSize;

/// All hugetlbfs mounts in the agent's mount namespace.
///
/// # Errors
/// When the mount table cannot be read.
pub fn hugetlb_mounts(root: &Root) -> Result<Vec<HugetlbMount>, HostError> {
    let path = root.path("/proc/self/mountinfo");
    let table = read_table(&path)?;
    // A node with many containers has thousands of mounts; only the few that matter are parsed.
    let table: Vec<u8> = table
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.windows(13).any(|word| word == b" - hugetlbfs "))
        .flatten()
        .copied()
        .collect();
    let infos = MountInfos::from_read(table.as_slice()).map_err(|e| HostError::Parse {
        path,
        value: e.to_string(),
        expected: "a mount table",
    })?;
    let mounts = infos.into_iter().filter_map(|info| {
        let size = info.super_options.get("pagesize").cloned().flatten()?.parse().ok()?;
        // With a limit of its own it refuses files for which the pool has pages.
        let limited = ["size", "nr_inodes"].iter().any(|it| info.super_options.contains_key(*it));
        let writable = info.mount_options.contains_key("rw")
            && info.super_options.contains_key("rw")
            && !limited;
        let at = info.mount_point.to_string_lossy().into_owned();
        let reachable = is_hugetlbfs(&root.path(&at), size);
        Some(HugetlbMount { path: at, page_size: size, writable, reachable })
    });
    Ok(mounts.collect())
}

/// Whether `path` leads to a hugetlbfs with such pages that can be used: one that is not read-only
/// and, as statfs(2) of a hugetlbfs tells it by zeros, has no limit of its own. Answered out of the
/// kernel's memory.
pub fn is_usable(root: &Root, path: &str, size: PageSize) -> bool {
    statfs(&root.path(path)).is_ok_and(|fs| {
        has_pages(&fs, size)
            && !fs.flags().contains(FsFlags::ST_RDONLY)
            && (fs.blocks(), fs.files()) == (0, 0)
    })
}

/// Whether what one reaches at `path` is a hugetlbfs with such pages.
fn is_hugetlbfs(path: &Path, size: PageSize) -> bool {
    statfs(path).is_ok_and(|fs| has_pages(&fs, size))
}

/// The block size of a hugetlbfs is its page size.
fn has_pages(fs: &Statfs, size: PageSize) -> bool {
    fs.filesystem_type() == HUGETLBFS_MAGIC
        && u64::try_from(fs.block_size()).is_ok_and(|bytes| bytes == size.bytes())
}

/// Mounts a hugetlbfs, makes its folder when it is missing, and looks whether it is there. What fails
/// leaves no folder behind that was not there before.
///
/// # Errors
/// When the folder cannot be made, mount(2) fails, or what is there then is something else.
pub fn mount_hugetlbfs(
    root: &Root,
    at: &str,
    size: PageSize,
    owner: (u32, u32),
    mode: u32,
) -> Result<(), HostError> {
    let path = root.path(at);
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    let mounted = mount_at(&path, size, owner, mode);
    if mounted.is_err() {
        // The deepest first; what is in use meanwhile stays.
        missing.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }
    mounted
}

fn mount_at(path: &Path, size: PageSize, owner: (u32, u32), mode: u32) -> Result<(), HostError> {
    fs::create_dir_all(path)
        .map_err(|source| HostError::MakeFolder { path: path.to_owned(), source })?;
    let options = format!("pagesize={size},uid={},gid={},mode={mode:o}", owner.0, owner.1);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("hugetlbfs"), path, Some("hugetlbfs"), flags, Some(options.as_str()))
        .map_err(|source| HostError::Mount { path: path.to_owned(), options, source })?;
    if is_hugetlbfs(path, size) {
        return Ok(());
    }
    // What cannot be used is not left behind.
    let _ = umount2(path, nix::mount::MntFlags::MNT_DETACH);
    Err(HostError::MountReadBack { path: path.to_owned(), expected: size.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_is_read_only_or_has_a_limit_is_not_writable() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/proc/self")).unwrap();
        let writable = |mount: &str, options: &str| {
            let line = format!(
                "37 24 0:32 / /mnt/huge {mount},relatime shared:19 - hugetlbfs none {options}\n"
            );
            fs::write(root.path("/proc/self/mountinfo"), line).unwrap();
            hugetlb_mounts(&root).unwrap()[0].writable
        };
        assert!(writable("rw", "rw,uid=64055,mode=1770,pagesize=2M"));
        assert!(writable("rw", "rw,pagesize=2M,min_size=4096K"));
        assert!(!writable("ro", "rw,pagesize=2M"));
        assert!(!writable("rw", "ro,pagesize=2M"));
        assert!(!writable("rw", "rw,pagesize=2M,size=1048576K"));
        assert!(!writable("rw", "rw,pagesize=2M,nr_inodes=16"));
    }

    #[test]
    fn a_mount_that_fails_leaves_no_folder_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir(root.path("/dev")).unwrap();
        // No kernel has huge pages of this size.
        let size = PageSize::from_kib(4).unwrap();
        let mounted = mount_hugetlbfs(&root, "/dev/new/huge", size, (0, 0), 0o755);
        assert!(matches!(mounted, Err(HostError::Mount { .. })), "{mounted:?}");
        assert!(root.path("/dev").exists() && !root.path("/dev/new").exists());
        fs::create_dir(root.path("/dev/old")).unwrap();
        mount_hugetlbfs(&root, "/dev/old", size, (0, 0), 0o755).unwrap_err();
        assert!(root.path("/dev/old").exists(), "a folder that was there stays");
    }
}
