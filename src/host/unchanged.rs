//! Whether files are still what they were when they were read, and a process still lives, told by the
//! kernel (inotify(7), proc_pid_mounts(5), pidfd_open(2)): two calls that answer out of its memory,
//! where reading again might wait for a disk.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Root;

/// Tells that nothing has happened at some paths, nor to a process. Made before they are read, it
/// misses nothing.
#[derive(Debug)]
pub struct Unchanged {
    inotify: Inotify,
    /// A mount hides what lies below it without touching it.
    mounts: File,
    process: Option<OwnedFd>,
}

impl Unchanged {
    /// Watches `paths`, whether they are there or not; `None` when the kernel has no watch left.
    pub fn since_now<P: AsRef<Path>>(root: &Root, paths: &[P]) -> Option<Unchanged> {
        let mounts = File::open(root.path("/proc/self/mountinfo")).ok()?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        let events = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MOVE_SELF;
        for path in paths {
            // Each folder on the way: any of them may be replaced, or appear.
            for path in root.path(path).ancestors() {
                match inotify.add_watch(path, events) {
                    Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                    Err(_) => return None,
                }
            }
        }
        Some(Unchanged { inotify, mounts, process: None })
    }

    /// Also has to live: a process of which the caller then makes sure that it is the one it means.
    /// `None` when there is none, or the kernel cannot tell (before Linux 5.3).
    pub fn while_lives(self, pid: u32) -> Option<Unchanged> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Unchanged { process: Some(process), ..self })
    }

    /// Whether nothing has happened since. Does not block; once false, it is worth nothing more.
    pub fn still_holds(&self) -> bool {
        let mut told = vec![PollFd::new(&self.mounts, PollFlags::PRI)];
        // Readable when it has ended.
        told.extend(self.process.iter().map(|process| PollFd::new(process, PollFlags::IN)));
        matches!(self.inotify.read_events(), Err(Errno::EAGAIN))
            && poll(&mut told, Some(&Timespec::default())) == Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
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

    /// Whether `change` is seen by one who watched before.
    fn sees(root: &Root, change: impl FnOnce()) -> bool {
        let unchanged = Unchanged::since_now(root, &[CONF]).unwrap();
        assert!(unchanged.still_holds());
        let _ = fs::read(root.path(CONF));
        assert!(unchanged.still_holds(), "reading changes nothing");
        change();
        !unchanged.still_holds()
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
    }

    #[test]
    fn the_end_of_a_process_is_seen_though_nobody_has_waited_for_it() {
        let (_dir, root) = root();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let unchanged = Unchanged::since_now(&root, &[CONF]).unwrap().while_lives(child.id());
        let unchanged = unchanged.unwrap();
        assert!(unchanged.still_holds());
        drop(child.stdin.take());
        while unchanged.still_holds() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(Unchanged::since_now(&root, &[CONF]).unwrap().while_lives(child.id()).is_none());
    }
}
