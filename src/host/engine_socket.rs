//! The engine's socket, and who listens on it: the engine itself, or systemd in its place.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::engine_process::unit_of;
use super::facts::init;
use super::files::{entries, read_table_text, read_text};
use super::{HostError, Root};
use crate::model::engine::Init;
use crate::model::engine_options::plain_run;
use crate::model::policy::EnginePolicy;

/// Unit of the engine that listens at its socket, else that of the settings, as where systemd does not listen and the
/// pid file is another: a connection starts nothing as long as that unit is not being stopped. `None` if a connection may start the engine: systemd may listen there in the engine's place
/// (systemd.socket(5)), and then the engine must already listen too. An engine that is being stopped first closes the
/// socket and then ends its containers: a connection in that time would start it again.
///
/// `last` keeps the pid of the engine, so that the next look need not go through all processes.
pub fn listening_unit(root: &Root, policy: &EnginePolicy, last: &AtomicU32) -> Option<String> {
    let usual = || Some(policy.unit.clone());
    if init(root) != Init::Systemd {
        return usual();
    }
    let listening = listening_at(root, &policy.socket).unwrap_or_default();
    // A socket that the kernel's table does not name by this path: only an engine that lives can be behind it.
    let is_unnamed = listening.is_empty();
    let listens = |pid: &str| is_unnamed || has_socket(root, pid, &listening);
    // An engine that was started by other means has another pid file.
    let written = read_text(&root.path(&policy.pid_file)).unwrap_or_default();
    let known = [written.trim().to_string(), last.load(Ordering::Relaxed).to_string()];
    let known = known.into_iter().find(|pid| is_engine(root, pid, policy) && listens(pid));
    if known.is_none() && !is_unnamed && !listens("1") {
        return usual();
    }
    let pid = known.or_else(|| engines(root, policy).find(|pid| listens(pid)))?;
    last.store(pid.parse().unwrap_or_default(), Ordering::Relaxed);
    unit_of(root, &pid).or_else(usual)
}

/// `true` if the process `pid` listens at the engine's socket.
pub(super) fn listens(root: &Root, pid: &str, policy: &EnginePolicy) -> bool {
    has_socket(root, pid, &listening_at(root, &policy.socket).unwrap_or_default())
}

/// Path to which `socket` leads, if it is a link.
pub fn link_target(root: &Root, socket: &str) -> Option<String> {
    let target = fs::read_link(root.path(socket)).ok()?;
    let folder = Path::new(socket).parent()?;
    Some(folder.join(target).display().to_string())
}

/// Path of podman's own socket, if `socket` is it or leads to it: the package podman-docker makes /run/docker.sock a
/// link to it. systemd listens there while podman does not run.
pub fn podman_socket(root: &Root, socket: &str) -> Option<String> {
    let at = root.path(socket);
    // Where podman's socket is not there, its link leads nowhere.
    let followed = fs::canonicalize(&at).or_else(|_| fs::read_link(&at)).unwrap_or(at);
    followed.ends_with("podman.sock").then(|| followed.display().to_string())
}

/// Pids of the processes with the name of the engine.
pub(super) fn engines(root: &Root, policy: &EnginePolicy) -> impl Iterator<Item = String> {
    let pids = entries(&root.path("/proc")).unwrap_or_default().into_iter().map(|(pid, _)| pid);
    pids.filter(|pid| is_engine(root, pid, policy))
}

/// `true` if that process has the name of the engine.
fn is_engine(root: &Root, pid: &str, policy: &EnginePolicy) -> bool {
    !pid.is_empty()
        && pid.bytes().all(|digit| digit.is_ascii_digit())
        && read_text(&root.path(format!("/proc/{pid}/comm")))
            .is_ok_and(|comm| policy.is_engine_name(comm.as_bytes()))
}

/// Inodes of the sockets that listen at the path `socket`, in the network namespace of PID 1 (proc_pid_net(5), `unix`).
/// Each has the form `socket:[inode]`, as in `/proc/PID/fd`.
fn listening_at(root: &Root, socket: &str) -> Result<Vec<String>, HostError> {
    /// `__SO_ACCEPTCON` of the kernel.
    const LISTENS: u32 = 0x10000;
    // The kernel's table has the path as it was bound.
    // Other links are followed, such as one to podman's socket.
    let followed = fs::canonicalize(root.path(socket)).ok();
    let followed = followed.as_deref().and_then(|it| it.strip_prefix(root.path("/")).ok());
    let wanted = followed.map_or(plain_run(socket).to_string(), |it| format!("/{}", it.display()));
    let table = read_table_text(&root.path("/proc/1/net/unix"))?;
    let listening = |line: &str| {
        let mut columns = line.splitn(7, ' ');
        let flags = u32::from_str_radix(columns.nth(3)?, 16).ok()?;
        // The column of the inode is padded; a path may have spaces.
        let (inode, path) = columns.nth(2)?.trim_start().split_once(' ')?;
        let listens = flags & LISTENS != 0 && plain_run(path) == wanted;
        listens.then(|| format!("socket:[{inode}]"))
    };
    Ok(table.lines().filter_map(listening).collect())
}

fn has_socket(root: &Root, pid: &str, sockets: &[String]) -> bool {
    let opened = match fs::read_dir(root.path(format!("/proc/{pid}/fd"))) {
        Ok(opened) => opened,
        // A process whose descriptors may not be read is taken for listening: it is alive.
        Err(e) => return e.kind() == io::ErrorKind::PermissionDenied,
    };
    opened.flatten().any(|entry| {
        fs::read_link(entry.path())
            .is_ok_and(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_podman_is_known_directly_and_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/run/podman")).unwrap();
        assert_eq!(podman_socket(&root, "/run/docker.sock"), None, "nothing is there");
        // As podman-docker's tmpfiles.d makes it.
        std::os::unix::fs::symlink("podman/podman.sock", root.path("/run/docker.sock")).unwrap();
        for started in [false, true] {
            for socket in ["/run/docker.sock", "/run/podman/podman.sock"] {
                let found = podman_socket(&root, socket).unwrap();
                assert!(found.ends_with("podman/podman.sock"), "{socket}, {started}: {found}");
            }
            fs::write(root.path("/run/podman/podman.sock"), "").unwrap();
        }
        fs::remove_file(root.path("/run/docker.sock")).unwrap();
        fs::write(root.path("/run/docker.sock"), "").unwrap();
        assert_eq!(podman_socket(&root, "/run/docker.sock"), None, "Docker's own");
    }

    #[test]
    fn connection_that_systemd_would_start_the_engine_for_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let policy = EnginePolicy { binary: "/usr/bin/dockerd".into(), ..EnginePolicy::default() };
        let last = AtomicU32::default();
        let may = || listening_unit(&root, &policy, &last).is_some();
        let opens = |pid: u32, inode: u32| {
            let link = root.path(format!("/proc/{pid}/fd/3"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(format!("socket:[{inode}]"), link).unwrap();
        };
        assert!(may(), "PID 1 is not systemd");
        fs::create_dir_all(root.path("/run/systemd/system")).unwrap();
        assert!(!may(), "the kernel does not say who listens");
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000: 00000002 00000000 00010000 0001 01 4711 /run/docker.sock\n\
            0001: 00000002 00000000 00000000 0001 03 4712 /run/docker.sock\n";
        fs::create_dir_all(root.path("/proc/1/net")).unwrap();
        let odd = b"0000: 00000002 00000000 00010000 0001 01 4700 /run/\xff\n".as_slice();
        fs::write(root.path("/proc/1/net/unix"), [odd, table.as_bytes()].concat()).unwrap();
        opens(1, 4713);
        assert!(may(), "another process listens, whatever its name");
        opens(1, 4711);
        assert!(!may(), "only systemd listens");
        fs::write(root.path("/run/docker.sock"), "").unwrap();
        std::os::unix::fs::symlink("docker.sock", root.path("/run/link.sock")).unwrap();
        let linked = EnginePolicy { socket: "/run/link.sock".into(), ..policy.clone() };
        assert_eq!(listening_unit(&root, &linked, &last), None, "through a link too");
        opens(7, 4712);
        fs::write(root.path("/proc/7/comm"), "dockerd\n").unwrap();
        assert!(!may(), "it is being stopped, and systemd listens");
        opens(7, 4711);
        assert!(may(), "it listens itself, whoever started it");
        fs::write(root.path("/proc/1/net/unix"), "").unwrap();
        assert!(may(), "an engine lives, and the table does not name its socket");
        fs::remove_dir_all(root.path("/proc/7")).unwrap();
        assert!(!may(), "nobody listens");
    }

    #[test]
    fn unit_of_the_listening_engine_is_named_and_its_pid_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let (policy, last) = (EnginePolicy::default(), AtomicU32::default());
        let put = |path: &str, text: &str| {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let opens = |pid: u32| {
            fs::create_dir_all(root.path(format!("/proc/{pid}/fd"))).unwrap();
            let link = root.path(format!("/proc/{pid}/fd/3"));
            std::os::unix::fs::symlink("socket:[4711]", link).unwrap();
        };
        let engine = |pid: u32, unit: &str| {
            put(&format!("/proc/{pid}/comm"), "dockerd\n");
            put(&format!("/proc/{pid}/cgroup"), &format!("0::/system.slice/{unit}\n"));
            opens(pid);
        };
        fs::create_dir_all(root.path("/run/systemd/system")).unwrap();
        let table = "Num\n0: 00000002 00000000 00010000 0001 01 4711 /run/docker.sock\n";
        put("/proc/1/net/unix", table);
        let unit = || listening_unit(&root, &policy, &last);
        assert_eq!(unit().as_deref(), Some("docker.service"), "systemd does not listen");
        opens(1);
        engine(7, "snap.docker.dockerd.service");
        assert_eq!(unit().as_deref(), Some("snap.docker.dockerd.service"));
        engine(5, "other.service");
        assert_eq!(
            unit().as_deref(),
            Some("snap.docker.dockerd.service"),
            "found again by its pid"
        );
        fs::remove_dir_all(root.path("/proc/7")).unwrap();
        assert_eq!(unit().as_deref(), Some("other.service"));
        put("/proc/5/cgroup", "0::/user.slice/session-1.scope\n");
        assert_eq!(unit().as_deref(), Some("docker.service"), "in no unit that is a service");
        put("/proc/5/comm", "python3\n");
        assert_eq!(unit(), None, "a pid is taken by another process");
    }
}
