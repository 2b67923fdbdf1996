//! hugetlbfs mounts: finding and creating them (field note 9).
//!
//! Where systemd is PID 1, systemd mounts: the agent's unit has a mount namespace of its own, which receives the host's
//! mounts but propagates none back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount2};
use nix::sys::statfs::{HUGETLBFS_MAGIC, Statfs, statfs};
use nix::sys::statvfs::FsFlags;
use nix::unistd::{AccessFlags, access};
use tokio::time::{Instant, sleep};

use super::systemd::Systemd;
use super::{HostError, Root, facts, mount_table};
use crate::model::mounts::HugetlbMount;
use crate::model::units::PageSize;

/// Time limit until a mount made by systemd appears in the agent's mount namespace.
const SEEN: Duration = Duration::from_secs(5);
/// Polling interval while waiting for such a mount.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Lists all hugetlbfs mounts as targets see them, in the order of the mount table.
///
/// # Errors
/// When the mount table cannot be read.
pub fn hugetlb_mounts(root: &Root) -> Result<Vec<HugetlbMount>, HostError> {
    let table = mount_table::read(root)?;
    let mounts = mount_table::mounts(&table, Some("hugetlbfs")).filter_map(|mount| {
        let page_size = match mount.value("pagesize") {
            Some(option) => mount_table::page_size(option)?,
            // A kernel before 4.14 shows the option only if the mount was made with it.
            None => facts::default_page_size(root)?,
        };
        // A mount with its own limit refuses files although the pool has pages.
        let limited = ["size", "nr_inodes"].iter().any(|it| mount.value(it).is_some());
        let writable = mount.has("rw") && !limited;
        // Settings and commands name a mount in UTF-8: the name of another one would lead elsewhere.
        let is_named = mount.at.to_str().is_some();
        let reachable = is_named && is_hugetlbfs(&root.path(&mount.at), page_size);
        let path = mount.at.to_string_lossy().into_owned();
        Some(HugetlbMount { path, page_size, writable, reachable })
    });
    Ok(mounts.collect())
}

/// `true` if `path` leads to a usable hugetlbfs with pages of `size`: writable, and without a limit of its own.
/// statfs(2) reports zero blocks and files for a hugetlbfs without a limit, and waits for no disk.
pub fn is_usable(root: &Root, path: &str, size: PageSize) -> bool {
    statfs(&root.path(path)).is_ok_and(|fs| {
        has_pages(&fs, size)
            && !fs.flags().contains(FsFlags::ST_RDONLY)
            && (fs.blocks(), fs.files()) == (0, 0)
    })
}

/// `true` if `path` leads to a hugetlbfs with pages of `size`.
fn is_hugetlbfs(path: &Path, size: PageSize) -> bool {
    statfs(path).is_ok_and(|fs| has_pages(&fs, size))
}

/// `true` if `fs` is a hugetlbfs with pages of `size`. The block size of a hugetlbfs is its page size.
fn has_pages(fs: &Statfs, size: PageSize) -> bool {
    fs.filesystem_type() == HUGETLBFS_MAGIC
        && u64::try_from(fs.block_size()).is_ok_and(|bytes| bytes == size.bytes())
}

/// Specification of a hugetlbfs to mount.
#[derive(Debug, Clone, Copy)]
pub struct NewMount<'a> {
    /// Mount point.
    pub at: &'a str,
    pub size: PageSize,
    /// User and group that own the root folder of the mount.
    pub owner: (u32, u32),
    pub mode: u32,
}

impl NewMount<'_> {
    /// Mount options in the syntax of mount(8).
    fn options(&self) -> String {
        let (uid, gid) = self.owner;
        format!("pagesize={},uid={uid},gid={gid},mode={:o}", self.size, self.mode)
    }
}

/// Mounts a hugetlbfs, after creating missing folders of its path, and verifies the mount. On failure the folders
/// created here are removed.
///
/// # Errors
/// When the folder cannot be created, mount(2) fails, or another mount is in place.
pub fn mount_hugetlbfs(root: &Root, new: NewMount<'_>) -> Result<(), HostError> {
    if is_there(root, new)? {
        return Ok(());
    }
    let path = root.path(new.at);
    let missing = missing_folders(&path);
    mount_at(&path, new).inspect_err(|_| remove_folders(missing))
}

/// `true` if a usable mount is in place already, as with a systemd automount after its first access. Fails with
/// [`HostError::Occupied`] if another mount is in place: it is neither hidden nor removed.
fn is_there(root: &Root, new: NewMount<'_>) -> Result<bool, HostError> {
    if is_usable(root, new.at, new.size) {
        return Ok(true);
    }
    let Ok(real) = fs::canonicalize(root.path(new.at)) else { return Ok(false) };
    let table = mount_table::read(root)?;
    let occupied = mount_table::mounts(&table, None).any(|mount| root.path(&mount.at) == real);
    match occupied {
        true => Err(HostError::Occupied { path: real }),
        false => Ok(false),
    }
}

/// Missing folders among `path` and those above it, the deepest first.
fn missing_folders(path: &Path) -> Vec<&Path> {
    path.ancestors().take_while(|folder| !folder.exists()).collect()
}

/// Removes each of `folders`, unless it is in use meanwhile.
fn remove_folders(folders: Vec<&Path>) {
    folders.into_iter().for_each(|folder| drop(fs::remove_dir(folder)));
}

fn mount_at(path: &Path, new: NewMount<'_>) -> Result<(), HostError> {
    fs::create_dir_all(path)
        .map_err(|source| HostError::MakeFolder { path: path.to_owned(), source })?;
    let options = new.options();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("hugetlbfs"), path, Some("hugetlbfs"), flags, Some(options.as_str()))
        .map_err(|source| HostError::Mount { path: path.to_owned(), options, source })?;
    if is_hugetlbfs(path, new.size) {
        return Ok(());
    }
    // A mount that is not as requested is removed again.
    let _ = umount2(path, nix::mount::MntFlags::MNT_DETACH);
    Err(not_there(path, new.size))
}

/// Makes systemd mount the hugetlbfs, so that the whole machine sees it; else like [`mount_hugetlbfs`].
///
/// # Errors
/// When the agent may not write to the folder, systemd cannot be reached or refuses, or another mount is in place.
pub async fn mount_by_systemd(
    systemd: &Systemd,
    root: &Root,
    new: NewMount<'_>,
) -> Result<(), HostError> {
    if is_there(root, new)? {
        return Ok(());
    }
    let path = root.path(new.at);
    let missing = missing_folders(&path);
    have_mounted(systemd, &path, new).await.inspect_err(|_| remove_folders(missing))
}

async fn have_mounted(systemd: &Systemd, path: &Path, new: NewMount<'_>) -> Result<(), HostError> {
    // The agent must be able to write to the folder: otherwise it could not remove the leftovers of dead targets.
    let folder = path.ancestors().find(|folder| folder.exists()).unwrap_or(path);
    access(folder, AccessFlags::W_OK)
        .map_err(|e| HostError::MakeFolder { path: path.to_owned(), source: e.into() })?;
    let options = new.options();
    let all = format!("{options},nosuid,nodev,noexec");
    let made = systemd.mount_hugetlbfs(path, &all).await.map_err(|source| {
        let (path, source) = (path.to_owned(), Box::new(source));
        HostError::MountUnit { path, options, source }
    })?;
    let deadline = Instant::now() + SEEN;
    while !is_hugetlbfs(path, new.size) {
        if Instant::now() >= deadline {
            // An unusable mount is removed if this call made it; a mount that was there before stays.
            if made {
                let _ = systemd.unmount(path).await;
            }
            return Err(not_there(path, new.size));
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn not_there(path: &Path, size: PageSize) -> HostError {
    HostError::MountReadBack { path: path.to_owned(), expected: size.to_string() }
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
    fn mount_that_names_no_page_size_has_pages_of_the_default_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/proc/self")).unwrap();
        // CentOS 7.9, kernel 3.10: what systemd mounted, and what `mount -o pagesize=2MB` did.
        let table = "37 18 0:32 / /dev/hugepages rw,relatime shared:26 - hugetlbfs hugetlbfs rw,seclabel\n\
            92 18 0:41 / /mnt/huge\\0402m rw,relatime shared:50 - hugetlbfs none rw,seclabel,pagesize=2MB\n";
        fs::write(root.path("/proc/self/mountinfo"), table).unwrap();
        let sizes = || {
            let mounts = hugetlb_mounts(&root).unwrap().into_iter();
            mounts.map(|mount| (mount.path, mount.page_size.to_string())).collect::<Vec<_>>()
        };
        let named = ("/mnt/huge 2m".to_string(), "2M".to_string());
        assert_eq!(sizes(), std::slice::from_ref(&named), "the default size is unknown");
        fs::write(root.path("/proc/meminfo"), "Hugepagesize:    1048576 kB\n").unwrap();
        assert_eq!(sizes(), [("/dev/hugepages".to_string(), "1G".to_string()), named]);
    }

    #[test]
    fn mounts_with_names_that_are_not_utf8_hide_only_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/proc/self")).unwrap();
        let table = b"36 18 0:31 / /mnt/caf\xe9 rw - ext4 /dev/caf\xe9 rw\n\
            37 18 0:32 / /mnt/huge\xff rw - hugetlbfs none\xff rw,pagesize=2M\n\
            38 18 0:33 / /mnt/odd rw - hugetlbfs none rw,pagesize=\xff\n\
            39 18 0:34 / /mnt/huge rw - hugetlbfs none rw,pagesize=2M\n\
            40 18 0:35 / /mnt/\xc3\xa9 rw - hugetlbfs none rw,pagesize=1G\n";
        fs::write(root.path("/proc/self/mountinfo"), table).unwrap();
        let mounts = hugetlb_mounts(&root).unwrap();
        let paths: Vec<&str> = mounts.iter().map(|mount| mount.path.as_str()).collect();
        assert_eq!(paths, ["/mnt/huge\u{fffd}", "/mnt/huge", "/mnt/\u{e9}"]);
        assert!(!mounts[0].reachable && mounts.iter().all(|mount| mount.writable));
        let new = NewMount { at: "/mnt/new", size: PageSize::MIB_2, owner: (0, 0), mode: 0o755 };
        fs::create_dir_all(root.path(new.at)).unwrap();
        assert!(!is_there(&root, new).unwrap(), "nothing is mounted there");
    }

    #[test]
    fn what_is_mounted_there_stays_as_it_is() {
        let new = NewMount { at: "/proc", size: PageSize::MIB_2, owner: (0, 0), mode: 0o755 };
        let refused = mount_hugetlbfs(&Root::new("/"), new).unwrap_err();
        assert!(matches!(refused, HostError::Occupied { .. }), "{refused:?}");
        assert!(fs::exists("/proc/self").unwrap());
    }

    #[test]
    fn a_mount_that_fails_leaves_no_folder_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir(root.path("/dev")).unwrap();
        // No kernel has huge pages of this size.
        let size = PageSize::from_kib(4).unwrap();
        let new = |at| NewMount { at, size, owner: (0, 0), mode: 0o755 };
        let mounted = mount_hugetlbfs(&root, new("/dev/new/huge"));
        assert!(matches!(mounted, Err(HostError::Mount { .. })), "{mounted:?}");
        assert!(root.path("/dev").exists() && !root.path("/dev/new").exists());
        fs::create_dir(root.path("/dev/old")).unwrap();
        mount_hugetlbfs(&root, new("/dev/old")).unwrap_err();
        assert!(root.path("/dev/old").exists(), "a folder that was there stays");
    }
}
