//! Command lines of package managers.

use super::*;

#[test]
fn a_lock_is_not_waited_for_without_end() {
    use PackageManager::{Dnf, Yum};
    for (manager, option) in [(Dnf, "--setopt=exit_on_lock=True"), (Yum, "--setopt=exit_on_lock=1")]
    {
        let call = install(manager, &["docker-ce".into()], &[], 60);
        assert!(call.args.iter().any(|arg| arg == option), "{manager}");
    }
}

#[test]
fn a_package_name_is_never_an_option() {
    let call = install(PackageManager::Apt, &["docker.io".into()], &[], 60);
    let end_of_options = call.args.iter().position(|arg| arg == "--").unwrap();
    assert_eq!(call.args[end_of_options + 1..], ["docker.io"]);
}

#[test]
fn repositories_are_selected_where_the_manager_knows_them_by_id() {
    let ids = ["zstack-mn".to_string(), "qemu-kvm-ev-mn".to_string()];
    let selected = ["--disablerepo=*", "--enablerepo=zstack-mn,qemu-kvm-ev-mn"];
    for manager in [PackageManager::Dnf, PackageManager::Yum] {
        assert_eq!(only_from(manager, &ids), selected);
        assert_eq!(only_from(manager, &[]), [] as [&str; 0]);
    }
    for manager in [PackageManager::Apt, PackageManager::Zypper] {
        assert_eq!(only_from(manager, &ids), [] as [&str; 0]);
    }
    let asked = ask_rpm("/usr/bin/rpm".into(), &["libcbd".to_string()]);
    assert_eq!(
        (asked.program.as_str(), asked.args),
        ("/usr/bin/rpm", vec!["-q".into(), "libcbd".into()])
    );
}

#[test]
fn only_apt_is_mended_and_takes_nothing_away_by_it() {
    let calls = mend(PackageManager::Apt, 60);
    let words: Vec<String> =
        calls.iter().map(|call| format!("{} {}", call.program, call.args.join(" "))).collect();
    assert_eq!(words[0], "dpkg --configure -a --force-confold");
    assert!(words[1].ends_with("--no-remove --fix-broken"), "{}", words[1]);
    assert!(!words[1].contains("--force-yes") && !words[1].contains(" -- "), "{}", words[1]);
    for manager in [PackageManager::Dnf, PackageManager::Yum, PackageManager::Zypper] {
        assert_eq!(mend(manager, 60), []);
    }
}

#[test]
fn simulation_changes_nothing_and_apt_is_forbidden_to_remove() {
    let packages = ["docker.io".to_string()];
    assert_eq!(rehearse(PackageManager::Apt, &packages, &[], 60), None);
    let words = |manager| rehearse(manager, &packages, &[], 60).unwrap().args.join(" ");
    assert!(words(PackageManager::Dnf).starts_with("--assumeno --setopt"));
    assert_eq!(words(PackageManager::Zypper), "--non-interactive install --dry-run -- docker.io");
    let calls = [install(PackageManager::Apt, &packages, &[], 60)].into_iter();
    let calls = calls.chain(mend(PackageManager::Apt, 60)).chain(unpack_anew(&packages, 60));
    for call in calls.filter(|call| call.program == "apt-get") {
        assert!(call.args.iter().any(|arg| arg == "--no-remove"), "{call:?}");
    }
}
