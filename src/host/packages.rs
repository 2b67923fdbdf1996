//! Package manager of the system: detection and its command lines; `failure` has the meaning of what it prints.

mod failure;

pub use self::failure::{Failure, failure, foretold, list_trouble, reason_lines, would_remove};
use super::Root;
use super::process::find_executable;
use super::spawn::{Invocation, QueryEnd};
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

/// rpm's answer about `packages`: their names with the versions, or nothing where one of them is missing; `None` if it
/// could not say. Where it cannot read its database, it prints the reason and counts every package as not installed.
pub fn rpm_answer(end: &QueryEnd, packages: &[String]) -> Option<Vec<String>> {
    let lines = || end.output.lines().map(str::trim);
    let missing = |name: &String| format!("package {name} is not installed");
    let is_missing = packages.iter().map(missing).any(|missing| lines().any(|it| it == missing));
    match end.code {
        Some(0) => Some(lines().map(str::to_string).collect()),
        Some(_) if is_missing && !lines().any(|line| line.starts_with("error:")) => {
            Some(Vec::new())
        }
        _ => None,
    }
}

/// Arguments of an installation that uses the package repositories with these ids alone; none where no id is given.
/// `None` for apt, which selects no repository.
pub fn only_from(manager: PackageManager, repositories: &[String]) -> Option<Vec<String>> {
    match manager {
        _ if repositories.is_empty() => Some(Vec::new()),
        PackageManager::Dnf | PackageManager::Yum => {
            let enabled = format!("--enablerepo={}", repositories.join(","));
            Some(vec!["--disablerepo=*".to_string(), enabled])
        }
        PackageManager::Zypper => {
            Some(repositories.iter().map(|id| format!("--repo={id}")).collect())
        }
        PackageManager::Apt => None,
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
    // Messages are parsed, so they must not be translated; and no program may ask questions.
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

#[cfg(test)]
#[path = "packages_tests.rs"]
mod tests;
