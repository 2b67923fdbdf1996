//! Plan for the packages of the storage's client, which a controller requires before it has a node prepared.

use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::StoragePolicy;
use crate::model::storage::{Dependencies, DependenciesSeen, InstallDependencies};

/// Plans the installation of `wanted`; `None` if nothing has to be done. Installed packages are left as they are unless
/// the settings say otherwise: virtual machines run with the library that the package has.
///
/// # Errors
/// If the settings forbid an installation that is needed, or the machine has no package manager.
pub fn install(
    wanted: &Dependencies,
    seen: &DependenciesSeen,
    policy: &StoragePolicy,
) -> Result<Option<InstallDependencies>, Fault> {
    let unlisted = |names: &[String], listed: &[String]| {
        names.iter().find(|name| !listed.contains(name)).cloned()
    };
    let refused = unlisted(wanted.packages(), &policy.packages)
        .map(|name| (format!("the package {name}"), "storage.packages"))
        .or_else(|| {
            let name = unlisted(wanted.repositories(), &policy.repositories)?;
            Some((format!("the package repository {name}"), "storage.repositories"))
        });
    match (seen.installed, policy.update, refused) {
        (true, false, _) | (true, true, Some(_)) => return Ok(None),
        (false, _, Some((what, setting))) => return Err(not_allowed(wanted, &what, setting)),
        (_, _, None) => {}
    }
    let Some(manager) = seen.manager else {
        let packages = wanted.packages().join(" ");
        let text = format!(
            "{packages} is not installed, and none of apt-get, dnf, yum, zypper is there to install it: install it by hand"
        );
        return Err(Fault::new(Code::NoPackageManager, text));
    };
    Ok(Some(InstallDependencies {
        manager,
        packages: wanted.packages().to_vec(),
        repositories: wanted.repositories().to_vec(),
    }))
}

fn not_allowed(wanted: &Dependencies, what: &str, setting: &str) -> Fault {
    let packages = wanted.packages().join(" ");
    let text = format!(
        "{packages} is not installed completely, and {setting} does not list {what}: install it by hand, or list it there"
    );
    Fault::new(Code::DependencyNotInstalled, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::engine::PackageManager;

    const ABSENT: DependenciesSeen =
        DependenciesSeen { installed: false, manager: Some(PackageManager::Yum) };
    const THERE: DependenciesSeen = DependenciesSeen { installed: true, ..ABSENT };

    fn wanted(packages: &str, repositories: &str) -> Dependencies {
        Dependencies::parse(packages, repositories).unwrap()
    }

    fn code(wanted: &Dependencies, seen: &DependenciesSeen, policy: &StoragePolicy) -> Code {
        install(wanted, seen, policy).unwrap_err().code
    }

    #[test]
    fn installed_packages_are_left_whoever_asks_for_them() {
        let policy = StoragePolicy::default();
        for packages in ["libcbd", "libcbd,qemu-kvm", "kernel"] {
            assert_eq!(install(&wanted(packages, "evil"), &THERE, &policy), Ok(None), "{packages}");
        }
        let update = StoragePolicy { update: true, ..policy };
        let plan = install(&wanted("libcbd", "zstack-mn"), &THERE, &update).unwrap().unwrap();
        assert_eq!(plan.repositories, ["zstack-mn"]);
        assert_eq!(install(&wanted("kernel", ""), &THERE, &update), Ok(None), "but not this one");
    }

    #[test]
    fn only_what_the_settings_list_is_installed() {
        let policy = StoragePolicy::default();
        let plan = install(&wanted("libcbd", ""), &ABSENT, &policy).unwrap().unwrap();
        assert_eq!((plan.manager, plan.packages), (PackageManager::Yum, vec!["libcbd".into()]));
        for (packages, repositories) in
            [("kernel", ""), ("libcbd,kernel", "zstack-mn"), ("libcbd", "zstack-mn,evil")]
        {
            let refused = code(&wanted(packages, repositories), &ABSENT, &policy);
            assert_eq!(refused, Code::DependencyNotInstalled, "{packages} {repositories}");
        }
        let closed = StoragePolicy { packages: Vec::new(), ..policy };
        assert_eq!(code(&wanted("libcbd", ""), &ABSENT, &closed), Code::DependencyNotInstalled);
    }

    #[test]
    fn without_a_package_manager_nothing_can_be_installed() {
        let bare = DependenciesSeen { manager: None, ..ABSENT };
        let policy = StoragePolicy::default();
        assert_eq!(code(&wanted("libcbd", ""), &bare, &policy), Code::NoPackageManager);
        let there = DependenciesSeen { installed: true, ..bare };
        assert_eq!(install(&wanted("libcbd", ""), &there, &policy), Ok(None));
    }
}
