//! Plan for the packages of the storage's client, which a controller requires before it has a node prepared.

use crate::model::code::Code;
use crate::model::engine::PackageManager;
use crate::model::fault::Fault;
use crate::model::policy::StoragePolicy;
use crate::model::storage::{Dependencies, DependenciesSeen, InstallDependencies};

/// Plans the installation of `wanted`; `None` if nothing has to be done. Installed packages are left as they are unless
/// the settings say otherwise: virtual machines run with the library that the package has. `may_install` is the operator's
/// consent to installations by the agent (`engine.install`).
///
/// # Errors
/// If the settings forbid an installation that is needed, or the machine has no package manager.
pub fn install(
    wanted: &Dependencies,
    seen: &DependenciesSeen,
    policy: &StoragePolicy,
    may_install: bool,
) -> Result<Option<InstallDependencies>, Fault> {
    let refused = refusal(wanted, seen, policy, may_install);
    match (seen.versions.is_some(), policy.update, refused) {
        (true, false, _) | (true, true, Some(_)) => return Ok(None),
        (false, _, Some(why)) => return Err(not_allowed(wanted, &why)),
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

/// Reason why `wanted` must not or cannot be installed, with the remedy; `None` if it can be.
fn refusal(
    wanted: &Dependencies,
    seen: &DependenciesSeen,
    policy: &StoragePolicy,
    may_install: bool,
) -> Option<String> {
    let unlisted = |names: &[String], listed: &[String]| {
        names.iter().find(|name| !listed.contains(name)).cloned()
    };
    let changeable = |why: String| Some(format!("{why}: install it by hand, or change that"));
    if !may_install {
        return changeable("engine.install forbids the agent to install packages".to_string());
    }
    if let Some(name) = unlisted(wanted.packages(), &policy.packages) {
        return changeable(format!("storage.packages does not list the package {name}"));
    }
    let chosen = wanted.repositories().join(" and ");
    if seen.manager == Some(PackageManager::Apt) && !chosen.is_empty() {
        return Some(format!(
            "the call requires it from {chosen} alone (zstackRepo), as yum, dnf and zypper can install, but not apt-get: \
             run `apt-get install {}` by hand, with the storage's packages in apt's sources, then call again",
            wanted.packages().join(" ")
        ));
    }
    let unlisted = unlisted(wanted.repositories(), &policy.repositories)?;
    changeable(format!("storage.repositories does not list the repository {unlisted}"))
}

fn not_allowed(wanted: &Dependencies, why: &str) -> Fault {
    let packages = wanted.packages().join(" ");
    let text = format!("{packages} is not installed completely, and {why}");
    Fault::new(Code::DependencyNotInstalled, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node with this package manager, on which the packages are missing.
    fn absent(manager: Option<PackageManager>) -> DependenciesSeen {
        DependenciesSeen { versions: None, manager }
    }

    /// Node on which the packages are installed.
    fn there(manager: Option<PackageManager>) -> DependenciesSeen {
        DependenciesSeen { versions: Some(vec!["1.2-3".to_string()]), manager }
    }

    const YUM: Option<PackageManager> = Some(PackageManager::Yum);

    fn wanted(packages: &str, repositories: &str) -> Dependencies {
        Dependencies::parse(packages, repositories).unwrap()
    }

    fn code(wanted: &Dependencies, seen: &DependenciesSeen, policy: &StoragePolicy) -> Code {
        install(wanted, seen, policy, true).unwrap_err().code
    }

    #[test]
    fn installed_packages_are_left_whoever_asks_for_them() {
        let policy = StoragePolicy::default();
        for packages in ["libcbd", "libcbd,qemu-kvm", "kernel"] {
            assert_eq!(
                install(&wanted(packages, "evil"), &there(YUM), &policy, true),
                Ok(None),
                "{packages}"
            );
        }
        let update = StoragePolicy { update: true, ..policy };
        let plan =
            install(&wanted("libcbd", "zstack-mn"), &there(YUM), &update, true).unwrap().unwrap();
        assert_eq!(plan.repositories, ["zstack-mn"]);
        assert_eq!(
            install(&wanted("kernel", ""), &there(YUM), &update, true),
            Ok(None),
            "but not this one"
        );
    }

    #[test]
    fn only_what_the_settings_list_is_installed() {
        let policy = StoragePolicy::default();
        let plan = install(&wanted("libcbd", ""), &absent(YUM), &policy, true).unwrap().unwrap();
        assert_eq!((plan.manager, plan.packages), (PackageManager::Yum, vec!["libcbd".into()]));
        for (packages, repositories) in
            [("kernel", ""), ("libcbd,kernel", "zstack-mn"), ("libcbd", "zstack-mn,evil")]
        {
            let refused = code(&wanted(packages, repositories), &absent(YUM), &policy);
            assert_eq!(refused, Code::DependencyNotInstalled, "{packages} {repositories}");
        }
        let closed = StoragePolicy { packages: Vec::new(), ..policy };
        assert_eq!(
            code(&wanted("libcbd", ""), &absent(YUM), &closed),
            Code::DependencyNotInstalled
        );
    }

    #[test]
    fn without_a_package_manager_nothing_can_be_installed() {
        let policy = StoragePolicy::default();
        assert_eq!(code(&wanted("libcbd", ""), &absent(None), &policy), Code::NoPackageManager);
        assert_eq!(install(&wanted("libcbd", ""), &there(None), &policy, true), Ok(None));
    }

    #[test]
    fn operator_that_forbids_installations_forbids_these_too() {
        let (policy, libcbd) = (StoragePolicy::default(), wanted("libcbd", ""));
        let refused = install(&libcbd, &absent(YUM), &policy, false).unwrap_err();
        assert_eq!(refused.code, Code::DependencyNotInstalled);
        assert!(refused.text.contains("engine.install"), "{refused}");
        let update = StoragePolicy { update: true, ..policy };
        assert_eq!(install(&libcbd, &there(YUM), &update, false), Ok(None));
    }

    #[test]
    fn repository_that_apt_cannot_choose_is_refused_rather_than_passed_over() {
        let policy = StoragePolicy::default();
        let apt = absent(Some(PackageManager::Apt));
        let refused = install(&wanted("libcbd", "zstack-mn"), &apt, &policy, true).unwrap_err();
        assert_eq!(refused.code, Code::DependencyNotInstalled);
        for words in ["from zstack-mn alone (zstackRepo)", "`apt-get install libcbd` by hand"] {
            assert!(refused.text.contains(words), "{refused}");
        }
        assert!(!refused.text.contains("change that"), "no setting helps: {refused}");
        assert!(install(&wanted("libcbd", ""), &apt, &policy, true).unwrap().is_some());
    }
}
