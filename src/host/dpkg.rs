//! Incomplete dpkg installations, read from dpkg's own records without starting a process.
//!
//! dpkg first unpacks a package, then configures it, and records each step. A package that was interrupted in between
//! looks installed on the disk and may lack files that it needs (dpkg(1), "PACKAGE STATES"). The file `status` has the
//! states; the folder `updates` has newer ones that dpkg has not merged yet.

use std::collections::BTreeMap;
use std::fs::{self, File};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_UNLCK, F_WRLCK, SEEK_SET, c_short, flock};

use super::Root;
use super::files::{entries, read_text};
use super::proc_cmdline::shown;

/// Locks of dpkg and apt, in the order in which they are taken.
const LOCKS: [&str; 4] = [
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
];

#[derive(Debug, Default)]
struct PackageState {
    /// Set if dpkg was interrupted while it replaced the package's files: they must be unpacked again.
    reinstall: bool,
    /// Set if the package's installation is incomplete.
    half_way: bool,
    installed: bool,
    version: String,
}

/// `true` if the installation of one of `packages` is incomplete or in progress.
pub fn half_installed(root: &Root, packages: &[Vec<String>]) -> bool {
    let states = states(root);
    packages.iter().flatten().any(|name| states.get(name).is_some_and(|state| state.half_way))
}

/// Versions of `packages`, in this order; `None` if one of them is not installed completely.
pub fn installed_versions(root: &Root, packages: &[String]) -> Option<Vec<String>> {
    let states = states(root);
    let installed = |name: &String| states.get(name).filter(|state| state.installed);
    packages.iter().map(|name| installed(name).map(|state| state.version.clone())).collect()
}

/// Packages whose files must be unpacked again before dpkg can continue. apt does not do that by itself: it counts such
/// packages as installed.
pub fn wanted_anew(root: &Root) -> Vec<String> {
    let states = states(root).into_iter();
    states.filter(|(_, state)| state.reinstall).map(|(name, _)| name).collect()
}

/// Process that holds a lock of dpkg or apt, such as `process 7 (apt)`; `None` if no process does (fcntl(2), F_GETLK).
pub fn lock_holder(root: &Root) -> Option<String> {
    let holder = |lock: &&str| {
        let file = File::open(root.path(lock)).ok()?;
        let mut seen = flock {
            l_type: F_WRLCK as c_short,
            l_whence: SEEK_SET as c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_GETLK(&mut seen)).ok()?;
        // No pid is reported for a holder in another PID namespace, nor for a lock that belongs to an open file
        // description.
        (seen.l_type != F_UNLCK as c_short && seen.l_pid > 0).then_some(seen.l_pid)
    };
    let pid = LOCKS.iter().find_map(holder)?;
    let name = read_text(&root.path(format!("/proc/{pid}/comm"))).unwrap_or_default();
    Some(format!("process {pid} ({})", shown(&name)))
}

/// States of all packages by name. Of several records for a package the last one counts, which is the newest.
fn states(root: &Root) -> BTreeMap<String, PackageState> {
    let mut files = vec![root.path("/var/lib/dpkg/status")];
    let newer = entries(&root.path("/var/lib/dpkg/updates")).unwrap_or_default();
    files.extend(newer.into_iter().map(|(_, path)| path));
    // A maintainer's name in another encoding hides no package.
    let bytes: Vec<u8> = files.iter().filter_map(|path| fs::read(path).ok()).flatten().collect();
    let text = String::from_utf8_lossy(&bytes);
    let (mut states, mut package) = (BTreeMap::new(), "");
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = name;
        } else if let Some(status) = line.strip_prefix("Status: ")
            && is_name(package)
        {
            states.insert(package.to_string(), state(status));
        } else if let Some(version) = line.strip_prefix("Version: ")
            && let Some(state) = states.get_mut(package)
        {
            state.version = version.to_string();
        }
    }
    states
}

/// `true` if `name` is valid for a package (Debian policy, 5.6.7). Checked because the name becomes an argument of apt.
fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b))
}

/// Parses the value of `Status`, three words: desired action, error flag, current state.
fn state(status: &str) -> PackageState {
    let words: Vec<&str> = status.split_whitespace().collect();
    let half = ["half-installed", "unpacked", "half-configured"];
    PackageState {
        reinstall: words.get(1) == Some(&"reinstreq"),
        half_way: words.get(2).is_some_and(|state| half.contains(state)),
        installed: words.get(2) == Some(&"installed"),
        version: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    fn package(name: &str, error: &str, state: &str) -> String {
        format!("Package: {name}\nStatus: install {error} {state}\nVersion: 1.2-3\n\n")
    }

    fn machine(status: &str, updates: &[&str]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/var/lib/dpkg/updates")).unwrap();
        fs::write(root.path("/var/lib/dpkg/status"), status).unwrap();
        for (number, update) in updates.iter().enumerate() {
            fs::write(root.path(format!("/var/lib/dpkg/updates/{number:04}")), update).unwrap();
        }
        (folder, root)
    }

    fn sets() -> [Vec<String>; 2] {
        [vec!["docker-ce".to_string()], vec!["docker.io".to_string()]]
    }

    #[test]
    fn what_was_unpacked_and_not_configured_is_half_installed() {
        for state in ["half-installed", "unpacked", "half-configured"] {
            let (_folder, root) = machine(&package("docker.io", "ok", state), &[]);
            assert!(half_installed(&root, &sets()), "{state}");
        }
        for state in ["installed", "not-installed", "config-files"] {
            let (_folder, root) = machine(&package("docker.io", "ok", state), &[]);
            assert!(!half_installed(&root, &sets()), "{state}");
        }
    }

    #[test]
    fn the_newest_word_counts() {
        let half = package("docker.io", "reinstreq", "half-installed");
        let updates =
            [package("docker.io", "ok", "unpacked"), package("docker.io", "ok", "installed")];
        let (_folder, root) = machine(&half, &[&updates[0], &updates[1]]);
        assert!(!half_installed(&root, &sets()));
        assert_eq!(wanted_anew(&root), [] as [&str; 0]);
    }

    #[test]
    fn what_else_is_half_way_on_the_machine_is_not_the_engines() {
        let status =
            package("docker.io", "ok", "installed") + &package("docker.io-doc", "ok", "unpacked");
        let (_folder, root) = machine(&status, &[]);
        assert!(!half_installed(&root, &sets()));
    }

    #[test]
    fn packages_that_must_be_unpacked_anew_are_named() {
        let status = package("runc", "ok", "unpacked")
            + &package("docker.io", "reinstreq", "half-installed")
            + &package("tini", "ok", "installed");
        let (_folder, root) = machine(&status, &[]);
        assert_eq!(wanted_anew(&root), ["docker.io"]);
    }

    #[test]
    fn who_holds_a_lock_is_named() {
        let (_folder, root) = machine("", &[]);
        assert_eq!(lock_holder(&root), None, "there is no lock");
        fs::write(root.path(LOCKS[1]), "").unwrap();
        assert_eq!(lock_holder(&root), None, "nobody holds it");
        // A process's own locks are not reported to it.
        let hold = "use Fcntl; open(my $f, '>', $ARGV[0]) or die; \
                    fcntl($f, F_SETLK, pack('s s l! l! i', F_WRLCK, SEEK_SET, 0, 0, 0)) or die; \
                    $| = 1; print 'held'; <STDIN>";
        let mut holder = Command::new("perl")
            .args(["-e", hold])
            .arg(root.path(LOCKS[1]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut held = [0; 4];
        holder.stdout.as_mut().unwrap().read_exact(&mut held).unwrap();
        let pid = holder.id();
        let comm = root.path(format!("/proc/{pid}/comm"));
        fs::create_dir_all(comm.parent().unwrap()).unwrap();
        fs::write(comm, "unattended-upgr\n").unwrap();
        assert_eq!(lock_holder(&root), Some(format!("process {pid} (unattended-upgr)")));
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert_eq!(lock_holder(&root), None);
    }

    #[test]
    fn what_is_no_packages_name_is_not_handed_to_the_package_manager() {
        let broken = |name: &str| package(name, "reinstreq", "half-installed");
        let status = "Status: install reinstreq half-installed\n\n".to_string()
            + &broken("--help")
            + &broken("a b")
            + &broken("g++-12");
        let (_folder, root) = machine(&status, &[]);
        assert_eq!(wanted_anew(&root), ["g++-12"]);
    }

    #[test]
    fn packages_are_installed_when_all_of_them_are_completely() {
        let status = package("libcbd", "ok", "installed") + &package("qemu", "ok", "unpacked");
        let (_folder, root) = machine(&status, &[&package("old", "ok", "config-files")]);
        let versions = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            installed_versions(&root, &names)
        };
        assert_eq!(versions(&["libcbd"]), Some(vec!["1.2-3".to_string()]));
        for names in [&["libcbd", "qemu"][..], &["qemu"], &["old"], &["libcbd-dev"]] {
            assert_eq!(versions(names), None, "{names:?}");
        }
    }

    #[test]
    fn a_machine_without_dpkg_has_nothing_half_way() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert!(!half_installed(&root, &sets()));
        assert_eq!(wanted_anew(&root), [] as [&str; 0]);
    }
}
