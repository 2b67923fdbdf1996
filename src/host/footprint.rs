//! Resource use of the agent's own process, from procfs (proc_pid_stat(5)).

use std::fs;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use procfs::FromRead;
use procfs::process::Stat;

use super::files::read_table_text;
use super::{HostError, Root};
use crate::model::footprint::Footprint;

/// Files in procfs that describe the agent's process.
#[derive(Debug, Clone)]
pub struct OwnProcess {
    root: Root,
    /// Boot time of the machine, as the time since 1970. Cached: `/proc/stat` is long on machines with many CPUs.
    boot: Arc<OnceLock<Duration>>,
}

impl OwnProcess {
    /// Reader for the current process, in the `/proc` under `root`.
    pub fn new(root: &Root) -> OwnProcess {
        OwnProcess { root: root.clone(), boot: Arc::default() }
    }

    /// Reads the agent's current resource use. Blocks for some reads of procfs.
    ///
    /// # Errors
    /// When a file in `/proc` cannot be read or parsed.
    pub fn read(&self) -> Result<Footprint, HostError> {
        let path = self.root.path("/proc/self/stat");
        let failed = |source| HostError::Read { path: path.clone(), source };
        let stat = Stat::from_file(&path).map_err(|e| failed(std::io::Error::other(e)))?;
        let ticks = |ticks: u64| {
            let each = procfs::ticks_per_second().max(1);
            Duration::from_millis(ticks.saturating_mul(1000) / each)
        };
        Ok(Footprint {
            cpu: ticks(stat.utime + stat.stime),
            resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
            virtual_bytes: stat.vsize,
            threads: u64::try_from(stat.num_threads).unwrap_or_default(),
            open_files: self.open_files()?,
            most_files: most_files(),
            started: self.boot()? + ticks(stat.starttime),
        })
    }

    fn open_files(&self) -> Result<u64, HostError> {
        let path = self.root.path("/proc/self/fd");
        let listing = fs::read_dir(&path).map_err(|source| HostError::Read { path, source })?;
        // One of the entries is the descriptor of this listing itself.
        Ok(listing.count().saturating_sub(1) as u64)
    }

    fn boot(&self) -> Result<Duration, HostError> {
        if let Some(boot) = self.boot.get() {
            return Ok(*boot);
        }
        let boot = boot_time(&self.root)?;
        Ok(*self.boot.get_or_init(|| boot))
    }
}

/// Reads the time of the boot, since 1970. It changes when the clock is set.
///
/// # Errors
/// When `/proc/stat` cannot be read, or has no such line.
pub(super) fn boot_time(root: &Root) -> Result<Duration, HostError> {
    let path = root.path("/proc/stat");
    let text = read_table_text(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    let seconds: Option<u64> = line.and_then(|seconds| seconds.trim().parse().ok());
    seconds.map(Duration::from_secs).ok_or_else(|| HostError::Parse {
        path,
        value: line.unwrap_or_default().chars().take(80).collect(),
        expected: "a table with the line 'btime' and seconds",
    })
}

fn most_files() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footprint_is_read_from_the_process_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(root.path("/proc/self/fd")).unwrap();
        for fd in 0..4 {
            fs::write(root.path(format!("/proc/self/fd/{fd}")), "").unwrap();
        }
        // utime 150 and stime 50 ticks, 9 threads, started 300 ticks after the boot, 1000 pages in RAM.
        let stat = "7 (vhost-agent) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 9 0 300 8192000 1000 \
                    18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        fs::write(root.path("/proc/self/stat"), stat).unwrap();
        fs::write(root.path("/proc/stat"), "cpu 1 2\nbtime 1700000000\nprocesses 9\n").unwrap();
        let seen = OwnProcess::new(&root).read().unwrap();
        assert_eq!(procfs::ticks_per_second(), 100, "as on every machine that the agent is for");
        assert_eq!(seen.cpu, Duration::from_secs(2));
        assert_eq!(seen.resident_bytes, 1000 * procfs::page_size());
        assert_eq!((seen.virtual_bytes, seen.threads, seen.open_files), (8_192_000, 9, 3));
        assert_eq!(seen.started, Duration::from_secs(1_700_000_003));
    }

    #[test]
    fn the_footprint_of_this_process_is_read_on_this_machine() {
        let seen = OwnProcess::new(&Root::new("/")).read().unwrap();
        assert!(seen.resident_bytes > 100_000 && seen.threads >= 1 && seen.open_files >= 3);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(seen.started <= now + Duration::from_secs(1));
    }

    #[test]
    fn where_it_cannot_be_read_the_path_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = OwnProcess::new(&Root::new(dir.path())).read().unwrap_err();
        assert!(error.to_string().contains("proc/self/stat"), "{error}");
    }
}
