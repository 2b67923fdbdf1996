//! Virtual machines and targets, which may rely on CPUs of their own. Found in procfs, so that libvirt need not be
//! asked and manual pinning is observed as well.

use std::collections::BTreeSet;
use std::path::Path;

use super::Root;
use super::files::{entries, parse_list, read_text};
use super::proc_cmdline::{command_line, machine_name, shown, words};
use crate::model::cpu::{Holder, HolderKind};

/// Upper bound on the virtual machines and targets found; a node has fewer.
pub(super) const MOST_PROCESSES: usize = 1024;
/// Upper bound on the threads read of one process: a machine has one for each virtual CPU, and some for I/O.
const MOST_THREADS: usize = 1024;
/// Process names of virtual machines. The kernel keeps 15 bytes of a name; `qemu-img` and the kernel's own threads
/// (`kvm-nx-…`) are no machines.
const MACHINES: [&str; 2] = ["kvm", "qemu-kvm"];
const MACHINES_BEGIN: &str = "qemu-system-";
/// Prefix of SPDK's thread names; the first thread gives the process its name.
const REACTORS_BEGIN: &str = "reactor_";
/// Name of this program. With `target` as its first argument it is the built-in target.
const OWN: &str = "vhost-agent";
const OWN_TARGET: &[u8] = b"target";

/// Finds all virtual machines and targets except the process `own`, the observed target.
///
/// A process that cannot be read is skipped: it may have exited meanwhile.
pub fn holders(root: &Root, own: Option<u32>) -> Vec<Holder> {
    let processes = entries(&root.path("/proc")).unwrap_or_default();
    processes
        .into_iter()
        .filter_map(|(name, folder)| Some((name.parse().ok()?, folder)))
        .filter(|(pid, _)| Some(*pid) != own)
        .filter_map(|(pid, folder)| holder(pid, &folder))
        .take(MOST_PROCESSES)
        .collect()
}

fn holder(pid: u32, folder: &Path) -> Option<Holder> {
    let comm = read_text(&folder.join("comm")).ok()?;
    let kind = match comm.as_str() {
        comm if is_machine(comm) => HolderKind::Machine,
        comm if comm.starts_with(REACTORS_BEGIN) => HolderKind::Target,
        OWN if words(&command_line(folder)?).nth(1) == Some(OWN_TARGET) => HolderKind::Target,
        _ => return None,
    };
    let given = match kind {
        HolderKind::Machine => machine_name(&command_line(folder)?),
        HolderKind::Target => None,
    };
    let name = given.unwrap_or_else(|| format!("{} (pid {pid})", shown(&comm)));
    // Of an SPDK application's threads only the reactors poll, so only their CPUs count.
    let threads = if comm.starts_with(REACTORS_BEGIN) { REACTORS_BEGIN } else { "" };
    Some(Holder { kind, name, allowed: allowed(folder, threads) })
}

/// `true` if `comm` is the process name of a virtual machine.
pub(super) fn is_machine(comm: &str) -> bool {
    MACHINES.contains(&comm) || comm.starts_with(MACHINES_BEGIN)
}

/// Distinct CPU affinity lists of the threads whose names begin with `begin`.
fn allowed(folder: &Path, begin: &str) -> BTreeSet<Vec<u32>> {
    let threads = entries(&folder.join("task")).unwrap_or_default();
    threads
        .into_iter()
        .take(MOST_THREADS)
        .filter_map(|(_, thread)| {
            let status = read_text(&thread.join("status")).ok()?;
            let name = status.lines().find_map(|line| line.strip_prefix("Name:"));
            name.filter(|name| name.trim_start().starts_with(begin))?;
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            parse_list(list).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::proc_cmdline::MOST_ARGUMENTS;
    use super::*;

    /// Puts a process into procfs. Its threads may run on the CPUs in the given lists.
    fn put(root: &Root, pid: u32, comm: &str, cmdline: &str, threads: &[&str]) {
        let folder = root.path(format!("/proc/{pid}"));
        for (tid, list) in (pid..).zip(threads) {
            let thread = folder.join(format!("task/{tid}"));
            fs::create_dir_all(&thread).unwrap();
            let status = format!(
                "Name:\t{comm}\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\nMems_allowed_list:\t0\n"
            );
            fs::write(thread.join("status"), status).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(folder.join("cmdline"), cmdline.replace(' ', "\0")).unwrap();
    }

    fn found(root: &Root, own: Option<u32>) -> Vec<(HolderKind, String, Vec<Vec<u32>>)> {
        holders(root, own)
            .into_iter()
            .map(|holder| (holder.kind, holder.name, holder.allowed.into_iter().collect()))
            .collect()
    }

    #[test]
    fn machines_are_told_by_their_names_with_the_cpus_of_each_thread() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let named = "/usr/bin/qemu-system-x86_64 -name guest=web-1,debug-threads=on -m 1";
        put(&root, 70, "qemu-system-x86", named, &["0-7", "2", "3", "3"]);
        put(&root, 71, "qemu-kvm", "qemu-kvm -name db", &["4-5"]);
        put(&root, 72, "kvm", "kvm -m 1", &["0-7"]);
        let machine = |name: &str, lists: &[&[u32]]| {
            let lists = lists.iter().map(|list| list.to_vec()).collect();
            (HolderKind::Machine, name.to_string(), lists)
        };
        let all = [0, 1, 2, 3, 4, 5, 6, 7];
        let expected = [
            machine("web-1", &[&all, &[2], &[3]]),
            machine("db", &[&[4, 5]]),
            machine("kvm (pid 72)", &[&all]),
        ];
        assert_eq!(found(&root, None), expected);
    }

    #[test]
    fn targets_are_told_but_the_one_that_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        put(&root, 80, "reactor_6", "/usr/local/bin/vhost -m [6]", &["6"]);
        put(&root, 81, "vhost-agent", "/vhost-agent target -m [7]", &["7"]);
        put(&root, 82, "vhost-agent", "/usr/bin/vhost-agent serve", &["5"]);
        let kinds = |own| found(&root, own).into_iter().map(|(kind, name, _)| (kind, name));
        let target = |name: &str| (HolderKind::Target, name.to_string());
        let both = [target("reactor_6 (pid 80)"), target("vhost-agent (pid 81)")];
        assert_eq!(kinds(None).collect::<Vec<_>>(), both);
        assert_eq!(kinds(Some(81)).collect::<Vec<_>>(), both[..1]);
    }

    #[test]
    fn of_a_target_only_the_reactors_have_their_cpus_for_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        put(&root, 90, "reactor_6", "/usr/local/bin/vhost -m [6,7]", &["6", "7", "0-5"]);
        let other = root.path("/proc/90/task/92/status");
        fs::write(&other, fs::read_to_string(&other).unwrap().replace("reactor_6", "dpdk-event"))
            .unwrap();
        assert_eq!(found(&root, None)[0].2, [vec![6], vec![7]]);
    }

    #[test]
    fn a_process_cannot_name_itself_so_that_a_terminal_obeys() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        put(&root, 83, "reactor_\x1b[2J\n", "vhost", &["6"]);
        put(&root, 84, "kvm", "kvm -name \x1b]0;x\x07", &["7"]);
        let names = found(&root, None).into_iter().map(|(_, name, _)| name);
        assert_eq!(names.collect::<Vec<_>>(), ["reactor_[2J (pid 83)", "]0;x"]);
    }

    #[test]
    fn a_command_line_that_has_no_end_is_no_machines() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        put(&root, 70, "kvm", "kvm -name web-1", &["0-7"]);
        let cmdline = root.path("/proc/70/cmdline");
        let file = fs::File::options().write(true).open(&cmdline).unwrap();
        file.set_len(MOST_ARGUMENTS).unwrap();
        assert_eq!(found(&root, None).len(), 1);
        // A command line as long as a mapping of the process's memory can be: more than the agent could hold.
        file.set_len(1 << 40).unwrap();
        assert_eq!(found(&root, None), []);
    }

    #[test]
    fn what_is_no_machine_or_has_gone_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert_eq!(found(&root, None), [], "no procfs");
        for (pid, comm) in [(1, "systemd"), (2, "kvm-nx-lpage-re"), (3, "qemu-img"), (4, "")] {
            put(&root, pid, comm, "-name x", &["1"]);
        }
        fs::create_dir_all(root.path("/proc/5")).unwrap();
        fs::create_dir_all(root.path("/proc/self")).unwrap();
        assert_eq!(found(&root, None), []);
    }
}
