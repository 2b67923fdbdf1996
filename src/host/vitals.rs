//! Progress of an unresponsive process: its state, the CPU time of its threads, and whether its cgroup is frozen
//! (proc_pid_stat(5), `/proc/PID/task/TID/schedstat`, proc_pid_io(5), cgroups(7)).
//!
//! One sample is a set of facts; two samples show whether there was progress between them. Conclusions are drawn
//! elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::Root;
use super::files::{entries, read_text};
use super::process;
use crate::model::observation::Activity;

/// Sample of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VitalsSample {
    /// State of the process, as the kernel reports it.
    pub activity: Activity,
    threads: BTreeMap<String, Thread>,
    /// Content of `/proc/PID/io`: the process's I/O counters.
    io: Option<String>,
}

/// Sample of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Thread {
    /// Set for an SPDK reactor, which polls without end: a reactor that uses no CPU time is stuck.
    is_reactor: bool,
    can_run: bool,
    /// CPU time of the thread and its time of waiting for a CPU, as text; where the kernel does not tell these, its CPU
    /// time in ticks.
    times: String,
}

impl VitalsSample {
    /// `true` if the process made progress since the sample `before`. With reactors, each of them must have; without,
    /// one thread or some I/O suffices.
    pub fn went_on_since(&self, before: &VitalsSample) -> bool {
        let moved = |(tid, thread): (&String, &Thread)| {
            // A runnable thread counts as progress: it would run if it got a CPU, and its time is counted only then.
            thread.can_run || before.threads.get(tid).is_none_or(|then| then.times != thread.times)
        };
        let mut reactors = self.threads.iter().filter(|(_, thread)| thread.is_reactor).peekable();
        match reactors.peek() {
            Some(_) => reactors.all(moved),
            None => self.threads.iter().any(moved) || self.io != before.io,
        }
    }
}

/// Samples the process `pid`; `None` if there is none. Reads small files for each thread, and never waits for the
/// process.
pub fn look(root: &Root, pid: u32) -> Option<VitalsSample> {
    let folder = root.path(format!("/proc/{pid}"));
    let activity = match process::state(root, pid)? {
        'T' | 't' | 'Z' | 'X' => Activity::Stopped,
        _ if freezer(root, pid).is_some_and(|freezer| freezer.is_frozen()) => Activity::Paused,
        _ => Activity::Runs,
    };
    let threads = entries(&folder.join("task")).unwrap_or_default();
    let threads = threads.into_iter().filter_map(|(tid, path)| {
        let stat = process::stat(&path);
        let times = match read_text(&path.join("schedstat")) {
            // The third column, the number of time slices, adds no information.
            Ok(times) => {
                times.rsplit_once(' ').map_or(times.clone(), |(times, _)| times.to_string())
            }
            // A kernel without these statistics counts in ticks of some milliseconds.
            Err(_) => stat.as_ref().map(|stat| format!("{} {}", stat.utime, stat.stime))?,
        };
        let is_reactor = read_text(&path.join("comm")).is_ok_and(|it| it.starts_with("reactor_"));
        let can_run = stat.is_some_and(|stat| stat.state == 'R');
        Some((tid, Thread { is_reactor, can_run, times }))
    });
    let io = read_text(&folder.join("io")).ok();
    Some(VitalsSample { activity, threads: threads.collect(), io })
}

/// `true` if the machine is short of CPUs: over the last 10 s, some task waited for a CPU during more than 90 % of the
/// time (PSI). Always `false` if the kernel has no PSI.
pub fn is_starved(root: &Root) -> bool {
    const MOST_PERCENT: f64 = 90.0;
    let text = read_text(&root.path("/proc/pressure/cpu")).unwrap_or_default();
    let some = text.lines().find_map(|line| line.strip_prefix("some avg10="));
    let percent = some.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    percent.is_some_and(|percent| percent > MOST_PERCENT)
}

/// Freezer cgroup of a process.
enum Freezer {
    /// Cgroup of the v1 freezer hierarchy.
    V1(PathBuf),
    /// Cgroup of the unified hierarchy.
    V2(PathBuf),
}

impl Freezer {
    fn is_frozen(&self) -> bool {
        match self {
            Freezer::V1(folder) => {
                let state = read_text(&folder.join("freezer.state")).unwrap_or_default();
                matches!(state.trim(), "FROZEN" | "FREEZING")
            }
            Freezer::V2(folder) => {
                let events = read_text(&folder.join("cgroup.events")).unwrap_or_default();
                events.lines().any(|line| line == "frozen 1")
            }
        }
    }
}

fn freezer(root: &Root, pid: u32) -> Option<Freezer> {
    let text = read_text(&root.path(format!("/proc/{pid}/cgroup"))).ok()?;
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.trim_start_matches('/');
        match controllers {
            "" => {
                let folder = root.path("/sys/fs/cgroup").join(path);
                folder.join("cgroup.freeze").exists().then_some(Freezer::V2(folder))
            }
            "freezer" => Some(Freezer::V1(root.path("/sys/fs/cgroup/freezer").join(path))),
            _ => None,
        }
    })
}

/// Thaws the cgroup of the process `pid`, if the agent has the rights; the caller checks the effect.
pub fn thaw(root: &Root, pid: u32) {
    let _ = match freezer(root, pid) {
        Some(Freezer::V1(folder)) => fs::write(folder.join("freezer.state"), "THAWED"),
        Some(Freezer::V2(folder)) => fs::write(folder.join("cgroup.freeze"), "0"),
        None => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    struct Ends(Child);

    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(program: &str, args: &[&str]) -> (Ends, u32) {
        let child = Command::new(program).args(args).spawn().unwrap();
        let pid = child.id();
        // The start of a thread is progress too.
        sleep(Duration::from_millis(300));
        (Ends(child), pid)
    }

    fn goes_on(pid: u32) -> bool {
        let root = Root::new("/");
        let before = look(&root, pid).unwrap();
        sleep(Duration::from_millis(200));
        look(&root, pid).unwrap().went_on_since(&before)
    }

    #[test]
    fn process_that_computes_goes_on_and_one_that_sleeps_does_not() {
        let (_sleeps, pid) = start("sleep", &["60"]);
        assert!(!goes_on(pid));
        assert_eq!(look(&Root::new("/"), pid).unwrap().activity, Activity::Runs);
        let (_computes, pid) = start("sh", &["-c", "while :; do :; done"]);
        assert!(goes_on(pid));
    }

    #[test]
    fn a_stopped_process_is_recognized() {
        use nix::sys::signal::{Signal, kill};
        let (_stopped, pid) = start("sh", &["-c", "while :; do :; done"]);
        kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGSTOP).unwrap();
        sleep(Duration::from_millis(100));
        assert_eq!(look(&Root::new("/"), pid).unwrap().activity, Activity::Stopped);
        assert!(!goes_on(pid));
    }

    #[test]
    fn each_reactor_has_to_go_on_and_a_frozen_cgroup_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let put = |path: &str, text: &str| {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let stat = |name: &str| format!("7 ({name}) S {}\n", "0 ".repeat(49));
        put("/proc/7/stat", &stat("vhost"));
        put("/proc/7/cgroup", "9:freezer:/docker/a\n0::/system.slice\n");
        put("/sys/fs/cgroup/freezer/docker/a/freezer.state", "THAWED\n");
        let thread = |tid: u32, name: &str, time: u32| {
            put(&format!("/proc/7/task/{tid}/comm"), name);
            put(&format!("/proc/7/task/{tid}/stat"), &stat(name));
            put(&format!("/proc/7/task/{tid}/schedstat"), &format!("{time} 0 5\n"));
        };
        let look = || look(&root, 7).unwrap();
        thread(7, "reactor_0", 1);
        thread(8, "reactor_1", 1);
        thread(9, "dpdk-intr", 1);
        let before = look();
        thread(8, "reactor_1", 2);
        thread(9, "dpdk-intr", 2);
        assert!(!look().went_on_since(&before), "reactor_0 did not");
        thread(7, "reactor_0", 2);
        assert!(look().went_on_since(&before));
        assert_eq!(look().activity, Activity::Runs);
        put("/sys/fs/cgroup/freezer/docker/a/freezer.state", "FROZEN\n");
        assert_eq!(look().activity, Activity::Paused);
        thaw(&root, 7);
        assert_eq!(look().activity, Activity::Runs);
        // A kernel without CONFIG_SCHED_INFO (proc_pid_schedstat(5)).
        for tid in [7, 8] {
            fs::remove_file(root.path(format!("/proc/7/task/{tid}/schedstat"))).unwrap();
        }
        let before = look();
        assert!(!look().went_on_since(&before));
        for tid in [7, 8] {
            let ticks = format!("{tid} (reactor_0) S {}5 6 {}\n", "0 ".repeat(10), "0 ".repeat(37));
            put(&format!("/proc/7/task/{tid}/stat"), &ticks);
        }
        assert!(look().went_on_since(&before), "by the ticks");
        put("/proc/pressure/cpu", "some avg10=95.10 avg60=1.00 avg300=0.50 total=1\n");
        assert!(is_starved(&root));
    }
}
