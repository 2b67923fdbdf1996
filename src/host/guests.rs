//! Virtual machines with a volume's socket on their command line, from procfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Root;
use super::cpu_users::{MOST_PROCESSES, is_machine};
use super::files::{entries, read_text};
use super::proc_cmdline::{command_line, machine_name, shown, words};
use crate::model::guest::{Guest, Guests};
use crate::model::policy::VolumePolicy;
use crate::model::qemu_args::{client_sockets, shares_memory};

/// Text that QEMU prints before its version. QEMU's binary holds this text and the version as one string.
const MARK: &[u8] = b"QEMU emulator version ";
/// Upper bound on the length of a version, in bytes.
const MOST_VERSION: usize = 32;
/// Upper bound on the bytes of binaries read per scan: more than precede the debug information in a QEMU binary.
const MOST_BYTES: u64 = 256 << 20;

/// Identity of a file's content: device, inode, modification time (seconds, nanoseconds).
type FileId = (u64, u64, i64, i64);

/// Versions of the running QEMUs.
///
/// The version is read from the running binary, `/proc/<pid>/exe`. The machine type on the command line (`pc-q35-7.2`)
/// is older than its QEMU after a migration, and the installed package is newer after an upgrade. Running the binary
/// with `--version` would run another user's program as root. Reading takes some milliseconds, once for each file.
#[derive(Debug)]
pub struct QemuVersions {
    read: BTreeMap<FileId, Option<String>>,
    /// Upper bound on the bytes of binaries read per scan.
    most: u64,
}

impl Default for QemuVersions {
    fn default() -> QemuVersions {
        QemuVersions { read: BTreeMap::new(), most: MOST_BYTES }
    }
}

impl QemuVersions {
    /// Identity and version of the binary of the process with the folder `process`. `left` is the number of bytes that
    /// this scan may still read. `None` if the binary is unreadable, or larger than `left`.
    fn of(&mut self, process: &Path, left: &mut u64) -> Option<(FileId, Option<String>)> {
        // Opens the running binary even if another file has replaced it since: the kernel keeps it.
        let file = File::open(process.join("exe")).ok()?;
        let meta = file.metadata().ok().filter(fs::Metadata::is_file)?;
        let id = (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec());
        let version = match self.read.get(&id) {
            Some(version) => version.clone(),
            // If the binary is unreadable or larger than `left`, a later scan tries again.
            None => {
                let bytes = meta.len().min(self.most);
                *left = left.checked_sub(bytes)?;
                let version = version_in(file.take(bytes)).ok()?;
                self.read.insert(id, version.clone());
                version
            }
        };
        Some((id, version))
    }
}

/// Guests that connect to each of `sockets`. A socket's guest is `None` unless exactly one virtual machine was started
/// with it. Blocks for some 10 µs per process of the machine.
///
/// A process that cannot be read is skipped: it may have exited meanwhile.
pub fn guests(
    root: &Root,
    sockets: &BTreeSet<String>,
    policy: &VolumePolicy,
    versions: &mut QemuVersions,
) -> Guests {
    let processes = entries(&root.path("/proc")).unwrap_or_default();
    let machines = processes.into_iter().filter_map(|(name, folder)| {
        let pid: u32 = name.parse().ok()?;
        let comm = read_text(&folder.join("comm")).ok().filter(|comm| is_machine(comm))?;
        may_connect(&folder, policy).then_some(())?;
        Some((pid, comm, folder))
    });
    let mut named: BTreeMap<_, _> = sockets.iter().map(|path| (path, Vec::new())).collect();
    let (mut running, mut left) = (BTreeSet::new(), versions.most);
    for (pid, comm, folder) in machines.take(MOST_PROCESSES) {
        let Some(command_line) = command_line(&folder) else { continue };
        let connects = client_sockets(words(&command_line)).into_iter();
        let ours = connects.filter_map(|(path, pause)| Some((sockets.get(&path)?, pause)));
        let ours: Vec<_> = ours.collect();
        if ours.is_empty() {
            continue;
        }
        let name = machine_name(&command_line).unwrap_or_else(|| shown(&comm));
        let (file, qemu) = versions.of(&folder, &mut left).unzip();
        running.extend(file);
        let qemu = qemu.flatten();
        let shares_memory = shares_memory(words(&command_line));
        for (path, reconnect) in ours {
            let machine = format!("{name} (pid {pid})");
            let guest = Guest { machine, reconnect, shares_memory, qemu: qemu.clone() };
            named.entry(path).or_default().push(guest);
        }
    }
    versions.read.retain(|file, _| running.contains(file));
    // Of several machines it is unknown which one is connected: one may have released the socket since.
    let only = |mut all: Vec<Guest>| all.pop().filter(|_| all.is_empty());
    named.into_iter().map(|(path, all)| (path.clone(), only(all))).collect()
}

/// `true` if the process with the folder `folder` may open the socket of a volume. A process that may not is no guest,
/// whatever it calls itself: every user chooses the name and command line of their own processes.
fn may_connect(folder: &Path, policy: &VolumePolicy) -> bool {
    // The folder's owner does not tell the process's user: root owns the folder of a process that allows no dumps
    // (proc(5)).
    let Ok(status) = read_text(&folder.join("status")) else { return false };
    let ids = |key| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect()
    };
    // The real and the effective ids must all be trusted: a user who runs a setuid program chooses its name and
    // arguments.
    let all = |key, trusted: &[u32]| {
        let ids = ids(key);
        !ids.is_empty() && ids.iter().all(|id| trusted.contains(id))
    };
    let lets = |bit| policy.socket_mode & bit != 0;
    let group = policy.socket_gid;
    all("Uid:", &[0, policy.socket_uid])
        || lets(0o020) && (all("Gid:", &[group]) || ids("Groups:").contains(&group))
        || lets(0o002)
}

/// Finds the version in `code`, the bytes of a QEMU binary; `None` if they are no QEMU's.
fn version_in(mut code: impl Read) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    loop {
        // The end of the previous piece is kept: a match may begin there and continue in the next piece.
        let rest = bytes.len().saturating_sub(MARK.len() + MOST_VERSION);
        bytes.drain(..rest);
        let kept = bytes.len();
        (&mut code).take(1 << 20).read_to_end(&mut bytes)?;
        let is_last = bytes.len() == kept;
        let is_mark = |at: &[u8]| at.first() == MARK.first() && at == MARK;
        let begin = bytes.windows(MARK.len()).position(is_mark).map(|at| at + MARK.len());
        let version = begin.and_then(|begin| bytes.get(begin..)).unwrap_or_default();
        if begin.is_some() && (version.len() >= MOST_VERSION || is_last) {
            let of_version = |byte: &&u8| byte.is_ascii_digit() || **byte == b'.';
            let version = version.iter().take(MOST_VERSION).take_while(of_version);
            let version: String = version.map(|byte| char::from(*byte)).collect();
            return Ok(Some(version).filter(|version| !version.is_empty()));
        }
        if is_last {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;
    use crate::model::guest::Reconnect;

    const CHARDEV: &str = "socket,id=a,path=/s/v,reconnect=10";

    /// Puts a process into procfs: these chardevs are on its command line, and its binary is the given file.
    fn put(root: &Root, pid: u32, comm: &str, chardevs: &[&str], code: &str) {
        let folder = root.path(format!("/proc/{pid}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("comm"), format!("{comm}\n")).unwrap();
        let mut cmdline = format!("qemu\0-name\0guest=web-{pid},debug-threads=on\0");
        chardevs.iter().for_each(|chardev| cmdline += &format!("-chardev\0{chardev}\0"));
        fs::write(folder.join("cmdline"), cmdline).unwrap();
        fs::write(folder.join("status"), status([0; 4], [0; 4], "")).unwrap();
        symlink(root.path(code), folder.join("exe")).unwrap();
    }

    /// Content of a process's `status`, with its real, effective, saved and file system ids (proc_pid_status(5)).
    fn status(uids: [u32; 4], gids: [u32; 4], groups: &str) -> String {
        let tabbed = |ids: [u32; 4]| ids.map(|id| id.to_string()).join("\t");
        let (uids, gids) = (tabbed(uids), tabbed(gids));
        format!(
            "Name:\tkvm\nUmask:\t0022\nUid:\t{uids}\nGid:\t{gids}\nFDSize:\t64\nGroups:\t{groups} \n"
        )
    }

    /// Guests of these sockets under the default settings, where the sockets belong to root.
    fn seen(root: &Root, paths: &[&str], versions: &mut QemuVersions) -> Guests {
        let sockets = paths.iter().map(|path| path.to_string()).collect();
        guests(root, &sockets, &VolumePolicy::default(), versions)
    }

    fn seconds(count: u64) -> Reconnect {
        Reconnect::each(Duration::from_secs(count))
    }

    #[test]
    fn guests_are_found_by_socket_with_the_version_that_runs() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::write(root.path("/qemu"), "\0QEMU emulator version 7.2.22 (Debian 1:7.2)\0").unwrap();
        put(&root, 70, "qemu-system-x86", &[CHARDEV, "socket,path=/s/w"], "/qemu");
        put(&root, 71, "qemu-system-x86", &["socket,path=/other"], "/qemu");
        put(&root, 72, "bash", &["socket,path=/s/x"], "/qemu");
        put(&root, 73, "kvm", &["socket,path=/s/y,reconnect=1"], "/gone");
        let mut versions = QemuVersions::default();
        let all = ["/s/v", "/s/w", "/s/x", "/s/y", "/s/z"];
        let found = seen(&root, &all, &mut versions);
        let guest = |machine: &str, reconnect, qemu: Option<&str>| {
            let (machine, qemu) = (machine.to_string(), qemu.map(str::to_string));
            Some(Guest { machine, reconnect, shares_memory: false, qemu })
        };
        let expected = [
            ("/s/v", guest("web-70 (pid 70)", seconds(10), Some("7.2.22"))),
            ("/s/w", guest("web-70 (pid 70)", Reconnect::NEVER, Some("7.2.22"))),
            ("/s/x", None),
            ("/s/y", guest("web-73 (pid 73)", seconds(1), None)),
            ("/s/z", None),
        ];
        assert_eq!(found, expected.map(|(path, guest)| (path.to_string(), guest)).into());
        assert_eq!(versions.read.len(), 1, "read once");
        fs::remove_dir_all(root.path("/proc/70")).unwrap();
        seen(&root, &all, &mut versions);
        assert!(versions.read.is_empty(), "what runs no more is forgotten");
    }

    #[test]
    fn a_socket_that_two_machines_name_is_of_neither() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        put(&root, 70, "kvm", &[CHARDEV], "/gone");
        put(&root, 71, "kvm", &[CHARDEV, CHARDEV, "socket,path=/s/w"], "/gone");
        let found = seen(&root, &["/s/v", "/s/w"], &mut QemuVersions::default());
        assert_eq!((found["/s/v"].is_some(), found["/s/w"].is_some()), (false, true));
    }

    #[test]
    fn a_look_reads_each_code_once_and_only_so_many_bytes_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for (code, version) in [("/a", "7.2.22"), ("/b", "9.2.0")] {
            fs::write(root.path(code), format!("QEMU emulator version {version}\0")).unwrap();
        }
        for (pid, path, code) in [(70, "/s/v", "/a"), (71, "/s/w", "/a"), (72, "/s/x", "/b")] {
            put(&root, pid, "kvm", &[&format!("socket,path={path}")], code);
        }
        let mut versions = QemuVersions { most: 29, ..QemuVersions::default() };
        let mut look = || {
            let found = seen(&root, &["/s/v", "/s/w", "/s/x"], &mut versions);
            found.into_values().map(|guest| guest.unwrap().qemu).collect::<Vec<_>>()
        };
        let version = |version: &str| Some(version.to_string());
        assert_eq!(look(), [version("7.2.22"), version("7.2.22"), None]);
        assert_eq!(look(), [version("7.2.22"), version("7.2.22"), version("9.2.0")]);
    }

    #[test]
    fn processes_that_may_not_connect_are_no_guests() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        put(&root, 70, "kvm", &[CHARDEV], "/gone");
        let is_guest = |status: &str, mode| {
            fs::write(root.path("/proc/70/status"), status).unwrap();
            let policy = VolumePolicy {
                socket_uid: 107,
                socket_gid: 36,
                socket_mode: mode,
                ..VolumePolicy::default()
            };
            let sockets = ["/s/v".to_string()].into();
            guests(&root, &sockets, &policy, &mut QemuVersions::default())["/s/v"].is_some()
        };
        let (qemu, user) = ([107; 4], [1000; 4]);
        for (uids, gids, groups, mode, expected) in [
            ([0; 4], [0; 4], "", 0o600, true),
            (qemu, [107; 4], "", 0o600, true),
            ([0, 107, 107, 107], [0; 4], "", 0o600, true),
            (user, user, "", 0o660, false),
            (user, [36; 4], "", 0o660, true),
            (user, user, "27 36", 0o660, true),
            (user, user, "27 136", 0o660, false),
            (user, [36; 4], "36", 0o600, false),
            (user, user, "", 0o666, true),
            // A setuid or setgid program has its file owner's rights, but its user chooses its name and arguments.
            ([1000, 0, 0, 0], user, "", 0o660, false),
            (user, [1000, 36, 36, 36], "", 0o660, false),
        ] {
            let status = status(uids, gids, groups);
            assert_eq!(is_guest(&status, mode), expected, "{mode:o} {status}");
        }
        assert!(!is_guest("Name:\tkvm\n", 0o660), "nothing is known of it");
    }

    #[test]
    fn many_processes_that_may_not_connect_hide_no_guest() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for pid in (1000..).take(MOST_PROCESSES) {
            put(&root, pid, "kvm", &["socket,path=/s/w"], "/gone");
            let status = status([1000; 4], [1000; 4], "");
            fs::write(root.path(format!("/proc/{pid}/status")), status).unwrap();
        }
        put(&root, 9999, "kvm", &[CHARDEV], "/gone");
        let found = seen(&root, &["/s/v", "/s/w"], &mut QemuVersions::default());
        assert_eq!((found["/s/v"].is_some(), found["/s/w"].is_some()), (true, false));
    }

    #[test]
    fn a_version_is_found_anywhere_in_the_text() {
        let of = |code: &[u8]| version_in(code).unwrap();
        let mark = b"QEMU emulator version 10.0.2 (x)";
        for before in [0, 1, (1 << 20) - 40, (1 << 20) - 7, 1 << 20, (2 << 20) - 24, (2 << 20) + 3]
        {
            let mut code = vec![b'Q'; before];
            code.extend(mark);
            assert_eq!(of(&code).as_deref(), Some("10.0.2"), "{before}");
            code.resize(4 << 20, 0);
            assert_eq!(of(&code).as_deref(), Some("10.0.2"), "{before}");
        }
        for code in [&b""[..], b"QEMU", b"QEMU emulator version ", b"QEMU emulator version %s\n"] {
            assert_eq!(of(code), None);
        }
    }
}
