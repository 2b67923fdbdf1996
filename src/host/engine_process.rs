//! The engine's daemon, found by its pid file or its name and verified in procfs, and the command line of its next start.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::unistd::geteuid;

use super::engine_socket::{engines, listens};
use super::files::{read_number, read_text};
use super::pidfd::{Signal, WatchedProcess};
use super::proc_cmdline::{command_line, words};
use super::{HostError, Root, footprint, process};
use crate::model::engine::{CommandLine, EngineProcess, UnitState};
use crate::model::engine_options::{config_file, values};
use crate::model::policy::EnginePolicy;
use crate::model::unit_command::{Environment, expanded, read_environment};

/// Unit of Docker's snap, and the configuration file that the snap's wrapper names to the daemon.
pub const SNAP_UNIT: &str = "snap.docker.dockerd.service";
const SNAP_CONFIG: &str = "/var/snap/docker/current/config/daemon.json";
/// Executable of the daemon in Docker's snap.
pub const SNAP_BINARY: &str = "/snap/docker/current/bin/dockerd";
/// Names of the daemon in packages, beside the one in the settings.
const USUAL_NAMES: [&str; 2] = ["dockerd", "dockerd-current"];

/// Finds the engine's daemon: the process whose pid is in the pid file of the settings, else the only process of root with
/// the name of the engine that listens at the engine's socket, or runs in the engine's unit. Others with that name are
/// engines of users, of other products or in containers.
pub fn engine_process(root: &Root, policy: &EnginePolicy) -> Option<EngineProcess> {
    let written = read_text(&root.path(&policy.pid_file)).unwrap_or_default();
    if let Some(process) = seen(root, written.trim(), policy) {
        return Some(process);
    }
    let is_own = |pid: &str| {
        let is_in_unit =
            unit_of(root, pid).is_some_and(|unit| unit == policy.unit || unit == SNAP_UNIT);
        is_of_root(root, pid) && (is_in_unit || listens(root, pid, policy))
    };
    let all: Vec<String> = engines(root, policy).filter(|pid| is_own(pid)).collect();
    match all.as_slice() {
        [pid] => seen(root, pid, policy),
        _ => None,
    }
}

/// Facts of the process `pid`; `None` if it is not alive or has another name than the engine.
fn seen(root: &Root, pid: &str, policy: &EnginePolicy) -> Option<EngineProcess> {
    let unit = unit_of(root, pid);
    let pid: u32 = pid.parse().ok()?;
    let folder = root.path(format!("/proc/{pid}"));
    let (comm, started) = process::name_and_start(root, pid)?;
    if !policy.is_engine_name(comm.as_bytes()) {
        return None;
    }
    let args: Vec<String> = words(&command_line(&folder)?)
        .skip(1)
        .filter(|arg| !arg.is_empty())
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect();
    // The daemon writes its pid file when it starts, by the clock of that moment: the time of the boot changes with
    // the clock.
    let own_file = values(&args, "pidfile", Some('p')).pop().unwrap_or(&policy.pid_file);
    let own_file = root.path(own_file);
    let written =
        fs::metadata(&own_file).ok().filter(|_| read_number(&own_file).ok() == Some(pid.into()));
    let started_at = match written {
        Some(meta) => u64::try_from(meta.mtime()).ok()?,
        None => {
            let ticks = procfs::ticks_per_second().max(1);
            footprint::boot_time(root).ok()?.as_secs() + started / ticks
        }
    };
    Some(EngineProcess { pid, started_at, args, unit })
}

/// `true` if the process belongs to the agent's own user, which is root.
fn is_of_root(root: &Root, pid: &str) -> bool {
    let own = geteuid().as_raw();
    fs::metadata(root.path(format!("/proc/{pid}"))).is_ok_and(|meta| meta.uid() == own)
}

/// systemd unit of the process `pid`, by the cgroup that systemd made for it (cgroups(7), `/proc/PID/cgroup`).
pub(super) fn unit_of(root: &Root, pid: &str) -> Option<String> {
    let groups = read_text(&root.path(format!("/proc/{pid}/cgroup"))).ok()?;
    groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (hierarchy, path) = rest.split_once(':')?;
        let unit = path.rsplit('/').next().filter(|name| name.ends_with(".service"))?;
        matches!(hierarchy, "" | "name=systemd").then(|| unit.to_string())
    })
}

/// Makes the daemon reload its configuration by SIGHUP, as systemd does.
///
/// # Errors
/// When the process `seen` no longer exists, or cannot be signalled.
pub fn reload(root: &Root, seen: &EngineProcess, policy: &EnginePolicy) -> Result<(), HostError> {
    let source = io::ErrorKind::NotFound.into();
    let gone = || HostError::Signal { program: policy.binary.clone(), pid: seen.pid, source };
    match WatchedProcess::of(root, seen.pid) {
        // Checked with a reference at hand: it is to the process `seen`, not to a later one with the same pid.
        Some(process) if engine_process(root, policy).as_ref() == Some(seen) => {
            process.signal(Signal::HUP)
        }
        _ => Err(gone()),
    }
}

/// Arguments with which `unit` will start the daemon. Without a unit, those with which the agent starts it.
pub fn next_command_line(
    root: &Root,
    unit: Option<&UnitState>,
    policy: &EnginePolicy,
) -> CommandLine {
    let Some(unit) = unit else {
        // A link to the daemon's own socket is no socket of its own.
        let is_link = fs::symlink_metadata(root.path(&policy.socket))
            .is_ok_and(|meta| meta.file_type().is_symlink());
        return CommandLine::Known(policy.own_arguments(!is_link));
    };
    // The unit of packages that are yet to be installed may read other files than the one that is known now.
    if unit.load == "not-found" {
        return CommandLine::Known(Vec::new());
    }
    let assignments = unit.environment.iter().filter_map(|it| it.split_once('='));
    let mut environment: Environment =
        assignments.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let Some((program, args)) = unit.args.split_first() else {
        return CommandLine::Unknown(format!("systemd does not say how {} starts it", unit.name));
    };
    if unit.name == SNAP_UNIT {
        return CommandLine::Known(vec![format!("--config-file={SNAP_CONFIG}")]);
    }
    if !is_daemon(program, policy) {
        return CommandLine::Unknown(format!("{} starts it by {program}", unit.name));
    }
    for (path, may_be_absent) in &unit.environment_files {
        match read_text(&root.path(path)) {
            Ok(text) => read_environment(&text, &mut environment),
            Err(_) if *may_be_absent && !path.contains(['*', '?', '[']) => {}
            Err(_) => {
                let why =
                    format!("{} takes variables from {path}, which cannot be read", unit.name);
                return CommandLine::Unknown(why);
            }
        }
    }
    CommandLine::Known(expanded(args, &environment))
}

/// `true` if `unit` is one that starts the engine, and not one from which it was started by hand.
pub fn is_unit_of(unit: &UnitState, policy: &EnginePolicy) -> bool {
    unit.name == policy.unit
        || unit.name == SNAP_UNIT && unit.load == "loaded"
        || unit.args.first().is_some_and(|program| is_daemon(program, policy))
}

/// `true` if `program`, the name or path of an executable, is the engine's daemon.
pub fn is_daemon(program: &str, policy: &EnginePolicy) -> bool {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_string();
    name(program) == name(&policy.binary) || USUAL_NAMES.contains(&name(program).as_str())
}

/// Path of the configuration file that a daemon with this command line reads.
pub fn config_path(line: &CommandLine, policy: &EnginePolicy) -> String {
    config_file(line.args(), &policy.daemon_json)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node {
        _folder: tempfile::TempDir,
        root: Root,
    }

    impl Node {
        fn new() -> Node {
            let folder = tempfile::tempdir().unwrap();
            let root = Root::new(folder.path());
            let node = Node { _folder: folder, root };
            node.put("/proc/stat", "btime 1700000000\n");
            node
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// Adds a process that was started 3 s after the boot.
        fn process(&self, pid: u32, comm: &str, cmdline: &str) {
            let before = "0 ".repeat(18);
            let after = "0 ".repeat(30);
            self.put(
                &format!("/proc/{pid}/stat"),
                &format!("{pid} ({comm}) S {before}300 {after}\n"),
            );
            self.put(&format!("/proc/{pid}/comm"), &format!("{comm}\n"));
            self.put(&format!("/proc/{pid}/cmdline"), &cmdline.replace(' ', "\0"));
        }

        fn seen(&self) -> Option<EngineProcess> {
            engine_process(&self.root, &EnginePolicy::default())
        }
    }

    /// `true` if a process that the kernel calls `comm` is taken for `binary`.
    fn taken(comm: &str, binary: &str) -> bool {
        let node = Node::new();
        node.process(7, comm, "x");
        node.put("/run/docker.pid", "7");
        let pid_file = "/run/docker.pid".to_string();
        let policy = EnginePolicy { binary: binary.into(), pid_file, ..EnginePolicy::default() };
        engine_process(&node.root, &policy).is_some()
    }

    #[test]
    fn a_process_is_the_engines_by_its_whole_name() {
        assert!(taken("dockerd", "dockerd"));
        assert!(taken("dockerd", "/opt/engine/dockerd"));
        assert!(!taken("docker", "dockerd"), "the command line tool is not the daemon");
        assert!(!taken("dockerd-rootles", "dockerd"));
        assert!(!taken("", "dockerd"));
    }

    #[test]
    fn of_a_long_name_as_much_is_compared_as_the_kernel_keeps() {
        assert!(taken("dockerd-patched", "dockerd-patched-by-us"));
        assert!(!taken("dockerd-patche", "dockerd-patched-by-us"));
    }

    // Docker's snap has its pid file below /var/snap, and a unit of another name; an engine in a container has a pid of
    // its own there.
    #[test]
    fn engine_without_the_usual_pid_file_is_found_by_its_name() {
        let node = Node::new();
        node.process(
            7,
            "dockerd",
            "dockerd --group docker --pidfile=/var/snap/docker/1/run/docker.pid",
        );
        node.put(
            "/proc/7/cgroup",
            "4:cpuset:/\n1:name=systemd:/system.slice/snap.docker.dockerd.service\n",
        );
        // One in a container, of another product, or of a user.
        node.process(9, "dockerd", "dockerd --storage-driver vfs");
        node.process(11, "docker", "docker ps");
        let seen = node.seen().unwrap();
        assert_eq!((seen.pid, seen.unit.as_deref()), (7, Some(SNAP_UNIT)));
        assert_eq!(seen.args[..2], ["--group", "docker"]);
        assert_eq!(seen.started_at, 1_700_000_003);
        node.put("/var/snap/docker/1/run/docker.pid", "7");
        assert!(node.seen().unwrap().started_at > 1_700_000_003, "the time of its pid file");
        node.put("/proc/9/cgroup", "0::/system.slice/docker.service\n");
        assert_eq!(node.seen(), None, "two engines in units of the engine");
        fs::remove_dir_all(node.root.path("/proc/7")).unwrap();
        assert_eq!(node.seen().unwrap().pid, 9);
        node.put("/proc/9/cgroup", "0::/system.slice/other.service\n");
        assert_eq!(node.seen(), None, "a name alone makes no engine");
    }

    fn unit(args: &[&str]) -> UnitState {
        let args = args.iter().map(ToString::to_string).collect();
        UnitState {
            name: "docker.service".into(),
            load: "loaded".into(),
            args,
            ..UnitState::default()
        }
    }

    #[test]
    fn next_start_has_the_options_of_the_unit_with_its_variables() {
        let node = Node::new();
        let line =
            |unit: &UnitState| next_command_line(&node.root, Some(unit), &EnginePolicy::default());
        let known =
            |args: &[&str]| CommandLine::Known(args.iter().map(ToString::to_string).collect());
        node.put("/etc/default/docker", "DOCKER_OPTS=\"--config-file /etc/d.json\"\n");
        let debian = UnitState {
            environment: vec!["DOCKER_OPTS=--debug".into()],
            environment_files: vec![
                ("/etc/default/docker".into(), true),
                ("/etc/none".into(), true),
            ],
            ..unit(&["/usr/sbin/dockerd", "-H", "fd://", "$DOCKER_OPTS"])
        };
        let seen = line(&debian);
        assert_eq!(seen, known(&["-H", "fd://", "--config-file", "/etc/d.json"]));
        assert_eq!(config_path(&seen, &EnginePolicy::default()), "/etc/d.json");
        let absent = UnitState { load: "not-found".into(), ..UnitState::default() };
        assert_eq!(line(&absent), known(&[]), "the unit of the packages is not known yet");
        let snap = UnitState {
            name: SNAP_UNIT.into(),
            ..unit(&["/usr/bin/snap", "run", "docker.dockerd"])
        };
        assert_eq!(config_path(&line(&snap), &EnginePolicy::default()), SNAP_CONFIG);
    }

    #[test]
    fn start_by_another_program_or_from_an_unreadable_file_is_unknown() {
        let node = Node::new();
        for (unit, word) in [
            (unit(&["/bin/sh", "-c", "exec dockerd $OPTS"]), "docker.service starts it by /bin/sh"),
            (unit(&[]), "systemd does not say how docker.service starts it"),
            (
                UnitState {
                    environment_files: vec![("/etc/docker.d/*.env".into(), true)],
                    ..unit(&["/usr/bin/dockerd"])
                },
                "/etc/docker.d/*.env",
            ),
        ] {
            match next_command_line(&node.root, Some(&unit), &EnginePolicy::default()) {
                CommandLine::Unknown(why) => assert!(why.contains(word), "{why}"),
                known => panic!("{known:?}"),
            }
        }
    }
}
