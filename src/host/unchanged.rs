//! Check that files have not changed since they were read and that a process is still alive, without reading them
//! again. The kernel answers from memory (inotify(7), proc_pid_mounts(5), pidfd_open(2)), where a read might wait for a
//! disk.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Root;

/// Watch on some paths and a process. Create it before the paths are read. Dropping it waits for the kernel, so drop it
/// on a thread that may block.
#[derive(Debug)]
pub struct Unchanged {
    inotify: Inotify,
    /// Mount table, which is watched too: a mount hides the files below it without touching them.
    mounts: File,
    process: Option<OwnedFd>,
    since: Instant,
    over: AtomicBool,
}

/// Maximum age of a watch: some file systems do not report changes by other machines.
const MOST_AGE: Duration = Duration::from_secs(60);
/// Events that can mean a changed file.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_MODIFY
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_MOVE_SELF);
/// Maximum number of links per path, as in path_resolution(7).
const MOST_LINKS: usize = 40;

/// Watches the file `path` and each folder on the way to it, from `root` down, because any of them may be replaced or
/// appear. A link's destination is watched in the same way; `links` is the number of links that may still follow.
fn watch_way(inotify: &Inotify, root: &Path, path: &Path, links: usize) -> Option<()> {
    let above_root = |place: &&Path| root != *place && root.starts_with(place);
    let way: Vec<&Path> = path.ancestors().filter(|place| !above_root(place)).collect();
    for place in way.into_iter().rev() {
        match inotify.add_watch(place, EVENTS) {
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(_) => return None,
        }
        if let (Ok(target), Some(folder)) = (fs::read_link(place), place.parent()) {
            watch_way(inotify, root, &folder.join(target), links.checked_sub(1)?)?;
        }
    }
    Some(())
}

impl Unchanged {
    /// Watches `paths`, existing or not, and the process with the pid `process`; the caller verifies that process's
    /// identity afterwards. `None` if there is no such process, the kernel has no pidfds (before Linux 5.3), or no
    /// watch is left.
    pub fn since_now<P: AsRef<Path>>(
        root: &Root,
        paths: &[P],
        process: Option<u32>,
    ) -> Option<Unchanged> {
        let process = match process {
            Some(pid) => Some(super::pidfd::open(pid)?),
            None => None,
        };
        let mounts = File::open(root.path("/proc/self/mountinfo")).ok()?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        for path in paths {
            watch_way(&inotify, &root.path("/"), &root.path(path), MOST_LINKS)?;
        }
        let over = AtomicBool::new(false);
        Some(Unchanged { inotify, mounts, process, since: Instant::now(), over })
    }

    /// `true` if nothing has changed since [`Unchanged::since_now`]. Does not block. Once `false`, always `false`.
    pub fn still_holds(&self) -> bool {
        // The result is kept, because the kernel reports an event only once.
        if self.over.load(Ordering::Relaxed) || self.has_events() {
            self.over.store(true, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn has_events(&self) -> bool {
        let mut polled = vec![PollFd::new(&self.mounts, PollFlags::PRI)];
        // The pidfd is readable once the process has exited.
        polled.extend(self.process.iter().map(|process| PollFd::new(process, PollFlags::IN)));
        self.since.elapsed() >= MOST_AGE
            || !matches!(self.inotify.read_events(), Err(Errno::EAGAIN))
            || poll(&mut polled, Some(&Timespec::default())) != Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const CONF: &str = "/etc/docker/daemon.json";

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(root.path("/proc/self")).unwrap();
        fs::write(root.path("/proc/self/mountinfo"), "").unwrap();
        fs::create_dir_all(root.path("/etc")).unwrap();
        (dir, root)
    }

    /// `true` if a watch created before `change` reports it.
    fn sees(root: &Root, change: impl FnOnce()) -> bool {
        let unchanged = Unchanged::since_now(root, &[CONF], None).unwrap();
        assert!(unchanged.still_holds());
        let _ = fs::read(root.path(CONF));
        assert!(unchanged.still_holds(), "reading changes nothing");
        change();
        let sees = !unchanged.still_holds();
        assert_eq!(sees, !unchanged.still_holds(), "it does not forget");
        sees
    }

    #[test]
    fn whatever_can_happen_to_a_file_is_seen() {
        let (_dir, root) = root();
        let (conf, folder) = (root.path(CONF), root.path("/etc/docker"));
        assert!(sees(&root, || fs::create_dir(&folder).unwrap()), "its folder appears");
        assert!(sees(&root, || fs::write(&conf, "{}").unwrap()), "it appears");
        assert!(sees(&root, || fs::write(&conf, "[]").unwrap()), "it is written to");
        let other = root.path("/etc/docker/other");
        fs::write(&other, "{}").unwrap();
        assert!(sees(&root, || fs::rename(&other, &conf).unwrap()), "it is replaced");
        assert!(sees(&root, || fs::remove_file(&conf).unwrap()), "it goes");
        let moved = root.path("/etc/moved");
        assert!(sees(&root, || fs::rename(&folder, &moved).unwrap()), "its folder is moved away");
        assert!(sees(&root, || symlink(&moved, &folder).unwrap()), "its folder is a link");
        let retarget = || {
            fs::create_dir(folder.with_extension("2")).unwrap();
            symlink(folder.with_extension("2"), folder.with_extension("new")).unwrap();
            fs::rename(folder.with_extension("new"), &folder).unwrap();
        };
        assert!(sees(&root, retarget), "the link leads elsewhere");
    }

    #[test]
    fn a_change_where_a_symbolic_link_leads_to_is_seen() {
        let (_dir, root) = root();
        let far = root.path("/far.json");
        fs::write(&far, "{}").unwrap();
        fs::create_dir(root.path("/etc/docker")).unwrap();
        symlink(&far, root.path(CONF)).unwrap();
        assert!(sees(&root, || fs::write(&far, "[]").unwrap()));
        assert!(sees(&root, || fs::remove_file(&far).unwrap()));
        // Configuration tools deploy in this way: a link in the middle of the path is replaced.
        for version in ["/srv/1", "/srv/2"] {
            fs::create_dir_all(root.path(version)).unwrap();
            fs::write(root.path(version).join("daemon.json"), version).unwrap();
        }
        symlink("1", root.path("/srv/current")).unwrap();
        fs::remove_file(root.path(CONF)).unwrap();
        symlink("../../srv/current/daemon.json", root.path(CONF)).unwrap();
        let swap = || {
            symlink("2", root.path("/srv/new")).unwrap();
            fs::rename(root.path("/srv/new"), root.path("/srv/current")).unwrap();
        };
        assert!(sees(&root, swap));
    }

    #[test]
    fn the_end_of_a_process_is_seen_though_nobody_has_waited_for_it() {
        if !crate::host::pidfd::is_there() {
            return;
        }
        let (_dir, root) = root();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let unchanged = Unchanged::since_now(&root, &[CONF], Some(child.id())).unwrap();
        assert!(unchanged.still_holds());
        drop(child.stdin.take());
        while unchanged.still_holds() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(Unchanged::since_now(&root, &[CONF], Some(child.id())).is_none());
    }
}
