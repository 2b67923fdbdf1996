//! Package manager of the system: detection, its command lines, and the meaning of its failures.

use super::Root;
use super::process::find_executable;
use super::spawn::{Invocation, RunEnd};
use crate::model::engine::PackageManager;

/// Detects the package manager of this machine.
pub fn find(root: &Root) -> Option<PackageManager> {
    PackageManager::ALL
        .into_iter()
        .find(|manager| find_executable(root, manager.command()).is_some())
}

/// Command that installs `packages`, with the additional arguments `extra`.
pub fn install(
    manager: PackageManager,
    packages: &[String],
    extra: &[String],
    lock_timeout_s: u64,
) -> Invocation {
    let mut args: Vec<String> = match manager {
        PackageManager::Apt => apt_install(lock_timeout_s),
        PackageManager::Dnf => vec![
            "--assumeyes".to_string(),
            // Without this option dnf would wait for the lock without end.
            "--setopt=exit_on_lock=True".to_string(),
            "install".to_string(),
        ],
        PackageManager::Yum => vec![
            "--assumeyes".to_string(),
            "--setopt=exit_on_lock=1".to_string(),
            "install".to_string(),
        ],
        PackageManager::Zypper => vec!["--non-interactive".to_string(), "install".to_string()],
    };
    args.extend_from_slice(extra);
    args.push("--".to_string());
    args.extend_from_slice(packages);
    invocation(manager.command(), args, lock_timeout_s)
}

fn apt_install(lock_timeout_s: u64) -> Vec<String> {
    vec![
        format!("-oDPkg::Lock::Timeout={lock_timeout_s}"),
        // Configuration files that the operator changed are kept; dpkg's question about them would block for ever.
        format!("-oDpkg::Options::={KEEP_CONFIGURATION}"),
        "install".to_string(),
        "--yes".to_string(),
        // On a machine without systemd the recommended packages would install systemd, which would take over at the
        // next boot.
        "--no-install-recommends".to_string(),
        // No installed package is removed: the containerd on the node may serve its kubelet.
        "--no-remove".to_string(),
    ]
}

/// dpkg option that keeps the operator's configuration files and asks nothing.
const KEEP_CONFIGURATION: &str = "--force-confold";

/// Commands that finish an interrupted run, in order; none if the package manager does that by itself. The second runs
/// even if the first fails: dpkg alone cannot configure a package whose dependency is not unpacked yet, and the second
/// command installs that dependency.
pub fn mend(manager: PackageManager, lock_timeout_s: u64) -> Vec<Invocation> {
    if manager != PackageManager::Apt {
        return Vec::new();
    }
    let configure = ["--configure", "-a", KEEP_CONFIGURATION].map(str::to_string).to_vec();
    let mut complete = apt_install(lock_timeout_s);
    // No package names follow: with some, `--fix-broken` would refuse.
    complete.push("--fix-broken".to_string());
    vec![
        invocation("dpkg", configure, lock_timeout_s),
        invocation(manager.command(), complete, lock_timeout_s),
    ]
}

/// Command that unpacks `packages` again, even if apt counts them as installed; `None` if `packages` is empty.
pub fn unpack_anew(packages: &[String], lock_timeout_s: u64) -> Option<Invocation> {
    let mut args = apt_install(lock_timeout_s);
    args.extend(["--reinstall", "--"].map(str::to_string));
    args.extend_from_slice(packages);
    let call = invocation(PackageManager::Apt.command(), args, lock_timeout_s);
    (!packages.is_empty()).then_some(call)
}

/// Command that asks rpm with `program` whether `packages` are installed: its exit code is 0 if all of them are (rpm(8),
/// "QUERY OPTIONS").
pub fn ask_rpm(program: String, packages: &[String]) -> Invocation {
    let args = std::iter::once("-q".to_string()).chain(packages.iter().cloned()).collect();
    Invocation { program, args, env: vec![("LC_ALL".to_string(), "C".to_string())] }
}

/// Arguments of an installation that uses the package repositories with these ids alone; none for managers that select no
/// repository by such an id, and where no id is given.
pub fn only_from(manager: PackageManager, repositories: &[String]) -> Vec<String> {
    match manager {
        PackageManager::Dnf | PackageManager::Yum if !repositories.is_empty() => {
            vec!["--disablerepo=*".to_string(), format!("--enablerepo={}", repositories.join(","))]
        }
        _ => Vec::new(),
    }
}

/// Command that refreshes the package lists; `None` for managers that do so by themselves.
pub fn refresh(manager: PackageManager, lock_timeout_s: u64) -> Option<Invocation> {
    let args = match manager {
        PackageManager::Apt => {
            vec![format!("-oDPkg::Lock::Timeout={lock_timeout_s}"), "update".to_string()]
        }
        PackageManager::Zypper => vec!["--non-interactive".to_string(), "refresh".to_string()],
        PackageManager::Dnf | PackageManager::Yum => return None,
    };
    Some(invocation(manager.command(), args, lock_timeout_s))
}

fn invocation(program: &str, args: Vec<String>, lock_timeout_s: u64) -> Invocation {
    // Messages are parsed below, so they must not be translated; and no program may ask questions.
    let env = [
        ("LC_ALL", "C"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("NEEDRESTART_SUSPEND", "1"),
        ("APT_LISTCHANGES_FRONTEND", "none"),
        ("ZYPP_LOCK_TIMEOUT", &lock_timeout_s.to_string()),
    ];
    let env = env.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
    Invocation { program: program.to_string(), args, env }
}

/// Cause of a failed installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No configured repository has the packages; packages of other names may be available.
    NotAvailable,
    /// The packages conflict with installed ones.
    Conflict,
    /// Listed packages could not be fetched: the lists may be stale, or the network is down.
    Fetch,
    /// Another package manager holds the lock.
    Locked,
    /// An earlier run was interrupted.
    Interrupted,
    DiskFull,
    Other,
}

/// Classifies the failure of a run by its exit code and its output; `None` on success.
pub fn failure(manager: PackageManager, end: &RunEnd) -> Option<Failure> {
    let missing = says(&end.output, &NOT_AVAILABLE);
    let ended_well = match (manager, end.code) {
        // Success with a hint: a reboot or a restart is needed, a repository was skipped, a script of a package
        // failed (zypper(8), "EXIT CODES").
        (PackageManager::Zypper, Some(100..=103 | 106 | 107)) => true,
        (_, code) => code == Some(0),
    };
    // yum reports success when it installed only some of several packages, because the others do not exist.
    if ended_well && !(manager == PackageManager::Yum && missing) {
        return None;
    }
    let reason = if says(&end.output, &LOCKED) {
        Failure::Locked
    } else if says(&end.output, &INTERRUPTED) {
        Failure::Interrupted
    } else if says(&end.output, &DISK_FULL) {
        Failure::DiskFull
    } else if says(&end.output, &CONFLICT) {
        Failure::Conflict
    } else if missing {
        Failure::NotAvailable
    } else if says(&end.output, &FETCH) {
        Failure::Fetch
    } else {
        Failure::Other
    };
    Some(reason)
}

const NOT_AVAILABLE: [&str; 9] = [
    "Unable to locate package",
    "has no installation candidate",
    "Unable to find a match",
    "No match for argument",
    "No package ",
    "not found in package names",
    "No provider of",
    "Nothing provides",
    "nothing provides",
];
const CONFLICT: [&str; 2] = ["but remove is disabled", " conflicts with "];

/// Command that only simulates the installation; `None` for apt, which `--no-remove` forbids to remove packages. dnf
/// and yum replace installed packages that a new one obsoletes.
pub fn rehearse(
    manager: PackageManager,
    packages: &[String],
    extra: &[String],
    lock_timeout_s: u64,
) -> Option<Invocation> {
    let mut call = install(manager, packages, extra, lock_timeout_s);
    match manager {
        PackageManager::Apt => return None,
        PackageManager::Dnf | PackageManager::Yum => call.args[0] = "--assumeno".to_string(),
        PackageManager::Zypper => call.args.insert(2, "--dry-run".to_string()),
    }
    Some(call)
}

/// Packages that an installation would remove, from `output`, the text of a simulation or of apt's refusal.
pub fn would_remove(output: &str) -> Vec<&str> {
    let (mut removed, mut in_list, mut each_word) = (Vec::new(), false, false);
    for line in output.lines() {
        if !line.starts_with(' ') {
            // apt and zypper list names alone, dnf and yum one package per line with its details.
            each_word = line.ends_with("REMOVED:");
            in_list = each_word || line.starts_with("Removing") && line.ends_with(':');
            continue;
        }
        let mut words = line.split_whitespace();
        match (in_list, each_word) {
            (true, true) => removed.extend(words),
            (true, false) => removed.extend(words.next()),
            (false, _) if words.next() == Some("replacing") => removed.extend(words.next()),
            (false, _) => {}
        }
    }
    removed
}

/// Messages of a run that did not get the lock. Messages printed while it waits are not among them: it may get the lock
/// after all, and fail for another reason.
const LOCKED: [&str; 6] = [
    "E: Could not get lock",
    "Unable to acquire the dpkg frontend lock",
    "is another process using it",
    "System management is locked",
    "already locked by",
    "another copy is running as pid",
];
const INTERRUPTED: [&str; 3] =
    ["dpkg was interrupted", "Try 'apt --fix-broken install'", "in a very bad inconsistent state"];
const DISK_FULL: [&str; 3] =
    ["No space left on device", "You don't have enough free space", "needs more space on the"];
const FETCH: [&str; 8] = [
    "Failed to fetch",
    "Unable to fetch some archives",
    "Temporary failure resolving",
    "Could not resolve host",
    "Failed to download",
    "Cannot download",
    "Download (curl) error",
    "Valid metadata not found",
];

/// Texts of lines that give details of an error but do not begin like one: the lock's holder, the unreachable host.
const ERROR_WORDS: [&str; 4] =
    ["held by process", "locked by", "The application with PID", "Curl error"];

fn says(output: &str, words: &[&str]) -> bool {
    words.iter().any(|word| output.contains(word))
}

/// First two lines of `end.output` about package lists that could not be fetched; `None` if there are none. apt reports
/// success in that case, and continues with old lists or with none.
pub fn fetch_trouble(end: &RunEnd) -> Option<String> {
    let mut lines: Vec<&str> =
        end.output.lines().filter(|line| FETCH.iter().any(|word| line.contains(word))).collect();
    lines.truncate(2);
    (!lines.is_empty()).then(|| lines.join(" | "))
}

/// Lines of `output` that give the reason of a failure, at most the last three; if none does, the last three lines.
pub fn reason_lines(output: &str) -> String {
    let is_error = |line: &&str| {
        let line = line.trim_start();
        let error = line.starts_with("E:") || line.contains("rror:") || line.starts_with("Error");
        error || ERROR_WORDS.iter().any(|word| line.contains(word))
    };
    let mut lines: Vec<&str> = output.split(['\n', '\r']).filter(is_error).map(str::trim).collect();
    if lines.is_empty() {
        lines = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    }
    lines.dedup();
    let first = lines.len().saturating_sub(3);
    lines[first..].join(" | ")
}

#[cfg(test)]
#[path = "packages_tests.rs"]
mod tests;
