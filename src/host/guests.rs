//! Virtual machines that have a volume's socket on their command line, as procfs shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Root;
use super::files::{entries, read_text};
use super::holders::{MOST_PROCESSES, command_line, is_machine, machine_name, shown, words};
use crate::model::guest::{Guest, Guests, client_sockets};

/// What a QEMU prints before its version, which stands in its code as one text with that.
const MARK: &[u8] = b"QEMU emulator version ";
/// More than a version has.
const MOST_VERSION: usize = 32;
/// More than a QEMU has before its debug information.
const MOST_BYTES: u64 = 256 << 20;

/// A version of a file: where it lies, and when it was written.
type FileId = (u64, u64, i64, i64);

/// Versions of the QEMUs that run.
///
/// They are read from the code that runs, `/proc/<pid>/exe`. A machine type on a command line (`pc-q35-7.2`) is older
/// than its QEMU after a migration, the package that is installed newer after an upgrade, and both say nothing of the
/// process. To run it for its `--version` would be to run as root what a process of another user brought. Reading
/// takes some milliseconds, once for each file.
#[derive(Debug, Default)]
pub struct QemuVersions(BTreeMap<FileId, Option<String>>);

impl QemuVersions {
    /// The version of the process with that folder.
    fn of(&mut self, process: &Path) -> Option<(FileId, Option<String>)> {
        // Also of a file that was replaced since: the kernel keeps what runs.
        let file = File::open(process.join("exe")).ok()?;
        let meta = file.metadata().ok().filter(fs::Metadata::is_file)?;
        let id = (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec());
        let version = match self.0.get(&id) {
            Some(version) => version.clone(),
            // One that could not be read is read again.
            None => version_in(file.take(MOST_BYTES)).ok()?,
        };
        Some((id, version))
    }
}

/// The guests that connect to these sockets; of several at one, the one that waits longest. Blocks, for some 10 µs for each
/// process of the machine.
///
/// Processes come and go: one that cannot be read is none.
pub fn guests(root: &Root, sockets: &BTreeSet<String>, versions: &mut QemuVersions) -> Guests {
    let processes = entries(&root.path("/proc")).unwrap_or_default();
    let machines = processes.into_iter().filter_map(|(name, folder)| {
        let pid: u32 = name.parse().ok()?;
        let comm = read_text(&folder.join("comm")).ok().filter(|comm| is_machine(comm))?;
        Some((pid, comm, folder))
    });
    let (mut guests, mut running) = (Guests::new(), BTreeMap::new());
    for (pid, comm, folder) in machines.take(MOST_PROCESSES) {
        let Some(command_line) = command_line(&folder) else { continue };
        let connects = client_sockets(words(&command_line)).into_iter();
        let ours: Vec<_> = connects.filter(|(path, _)| sockets.contains(path)).collect();
        if ours.is_empty() {
            continue;
        }
        let name = machine_name(&command_line).unwrap_or_else(|| shown(&comm));
        let version = versions.of(&folder);
        let qemu = version.as_ref().and_then(|(_, version)| version.clone());
        running.extend(version);
        for (path, reconnect) in ours {
            let machine = format!("{name} (pid {pid})");
            let guest = Guest { machine, reconnect, qemu: qemu.clone() };
            let known = guests.get(&path);
            if known.is_none_or(|known| known.reconnect.slower(reconnect) != known.reconnect) {
                guests.insert(path, guest);
            }
        }
    }
    versions.0 = running;
    guests
}

/// The version that a QEMU's code holds; none where it is no QEMU's.
fn version_in(mut code: impl Read) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    loop {
        // What is at the end of a piece may go on in the next one.
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

    /// Puts a process with these chardevs into procfs; its code is the file of that name.
    fn put(root: &Root, pid: u32, comm: &str, chardevs: &[&str], code: &str) {
        let folder = root.path(format!("/proc/{pid}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("comm"), format!("{comm}\n")).unwrap();
        let mut cmdline = format!("qemu\0-name\0guest=web-{pid},debug-threads=on\0");
        chardevs.iter().for_each(|chardev| cmdline += &format!("-chardev\0{chardev}\0"));
        fs::write(folder.join("cmdline"), cmdline).unwrap();
        symlink(root.path(code), folder.join("exe")).unwrap();
    }

    fn sockets(paths: &[&str]) -> BTreeSet<String> {
        paths.iter().map(|path| path.to_string()).collect()
    }

    fn seconds(count: u64) -> Reconnect {
        Reconnect::each(Duration::from_secs(count))
    }

    #[test]
    fn guests_of_the_sockets_are_told_with_the_version_of_what_runs() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::write(root.path("/qemu"), "\0QEMU emulator version 7.2.22 (Debian 1:7.2)\0").unwrap();
        put(&root, 70, "qemu-system-x86", &[CHARDEV, "socket,path=/s/w"], "/qemu");
        put(&root, 71, "qemu-system-x86", &["socket,path=/other"], "/qemu");
        put(&root, 72, "bash", &["socket,path=/s/x"], "/qemu");
        put(&root, 73, "kvm", &["socket,path=/s/y,reconnect=1"], "/gone");
        let mut versions = QemuVersions::default();
        let all = sockets(&["/s/v", "/s/w", "/s/x", "/s/y", "/s/z"]);
        let found = guests(&root, &all, &mut versions);
        let guest = |machine: &str, reconnect, qemu: Option<&str>| Guest {
            machine: machine.to_string(),
            reconnect,
            qemu: qemu.map(str::to_string),
        };
        let expected = [
            ("/s/v", guest("web-70 (pid 70)", seconds(10), Some("7.2.22"))),
            ("/s/w", guest("web-70 (pid 70)", Reconnect::NEVER, Some("7.2.22"))),
            ("/s/y", guest("web-73 (pid 73)", seconds(1), None)),
        ];
        assert_eq!(found, expected.map(|(path, guest)| (path.to_string(), guest)).into());
        assert_eq!(versions.0.len(), 1, "read once");
        fs::remove_dir_all(root.path("/proc/70")).unwrap();
        guests(&root, &all, &mut versions);
        assert!(versions.0.is_empty(), "what runs no more is forgotten");
    }

    #[test]
    fn of_two_guests_at_one_socket_the_one_that_waits_longer_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        put(&root, 70, "kvm", &[CHARDEV], "/gone");
        put(&root, 71, "kvm", &["socket,path=/s/v"], "/gone");
        put(&root, 72, "kvm", &["socket,path=/s/v,reconnect=1"], "/gone");
        let found = guests(&root, &sockets(&["/s/v"]), &mut QemuVersions::default());
        assert_eq!(found["/s/v"].machine, "web-71 (pid 71)");
    }

    #[test]
    fn a_version_is_found_wherever_it_stands() {
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
