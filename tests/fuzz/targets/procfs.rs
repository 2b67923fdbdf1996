//! Mounts, processes and sockets as a node's procfs tells them.
#![no_main]

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU32;

use libfuzzer_sys::fuzz_target;
use vhost_agent::host::engine_process::engine_process;
use vhost_agent::host::facts::{boot_id, hostname, init, kernel};
use vhost_agent::host::{Root, cpu_users, engine_socket, guests, leftovers, mounts, process};
use vhost_agent::model::policy::{EnginePolicy, VolumePolicy};
use vhost_agent_fuzz::Tree;

const PID_FILE: &str = "/run/docker.pid";
const SOCKET: &str = "/s/v";
const BINARY: &str = "/usr/bin/dockerd";

fuzz_target!(|input: &[u8]| {
    let tree = Tree::of(input);
    let root = Root::new(tree.path());
    for mount in mounts::hugetlb_mounts(&root).unwrap_or_default() {
        assert!(!mount.reachable, "a file is no hugetlbfs");
    }
    let cpu_users = cpu_users::holders(&root, Some(1));
    assert!(cpu_users.len() <= 1024);
    for holder in cpu_users {
        assert!(!holder.name.is_empty() && !holder.name.contains(char::is_control), "{holder:?}");
        assert!(holder.name.chars().count() <= 128);
    }
    let sockets = BTreeSet::from([SOCKET.to_string()]);
    let (policy, mut versions) = (VolumePolicy::default(), guests::QemuVersions::default());
    let guests = guests::guests(&root, &sockets, &policy, &mut versions);
    for (path, guest) in guests {
        let Some(guest) = guest else { continue };
        assert!(path == SOCKET && !guest.machine.contains(char::is_control), "{guest:?}");
    }
    let policy = EnginePolicy {
        pid_file: PID_FILE.to_string(),
        binary: BINARY.to_string(),
        ..EnginePolicy::default()
    };
    if let Some(engine) = engine_process(&root, &policy) {
        assert!(engine.args.iter().all(|arg| !arg.is_empty()));
        assert!(process::started(&root, engine.pid).is_some());
    }
    let last = AtomicU32::new(0);
    let _ = engine_socket::listening_unit(&root, &EnginePolicy::default(), &last);
    let _ = (boot_id(&root), hostname(&root), kernel(&root), init(&root));
    let removed = leftovers::clear_sockets(&root, "/sockets").unwrap_or_default();
    assert!(removed.iter().all(|path| path.starts_with(root.path("/sockets"))));
    let removed = leftovers::clear_memory(&root, "/huge").unwrap_or_default();
    assert!(removed.iter().all(|path| path.starts_with(root.path("/huge"))));
});
