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
        assert_eq!(only_from(manager, &ids).unwrap(), selected);
    }
    let by_zypper = only_from(PackageManager::Zypper, &ids).unwrap();
    assert_eq!(by_zypper, ["--repo=zstack-mn", "--repo=qemu-kvm-ev-mn"]);
    assert_eq!(only_from(PackageManager::Apt, &ids), None);
    for manager in PackageManager::ALL {
        assert_eq!(only_from(manager, &[]), Some(Vec::new()), "{manager}");
    }
    let asked = ask_rpm("/usr/bin/rpm".into(), &["libcbd".to_string()]);
    assert_eq!(
        (asked.program.as_str(), asked.args),
        ("/usr/bin/rpm", vec!["-q".into(), "libcbd".into()])
    );
}

/// Output of rpm 4.11 and 4.18, the broken database as in Red Hat's solution 6903: rpm says of every package that it is
/// not installed then.
#[test]
fn rpm_that_cannot_read_its_database_has_not_answered() {
    let packages = ["libcbd".to_string(), "qemu-kvm".to_string()];
    let answer = |code, output: &str| {
        let end = QueryEnd { code, output: output.to_string(), ..QueryEnd::default() };
        rpm_answer(&end, &packages)
    };
    let both = ["libcbd-1.2-3.el7.x86_64".to_string(), "qemu-kvm-7.2-1.x86_64".to_string()];
    let printed = format!("{}\n{}\n", both[0], both[1]);
    assert_eq!(answer(Some(0), &printed), Some(both.to_vec()));
    let missing = "libcbd-1.2-3.el7.x86_64\npackage qemu-kvm is not installed\n";
    assert_eq!(answer(Some(1), missing), Some(Vec::new()));
    let broken = "package libcbd is not installed\npackage qemu-kvm is not installed\n\
        error: rpmdb: BDB0113 Thread/process 11/140 failed: BDB1507 Thread died in Berkeley DB library\n\
        error: cannot open Packages database in /var/lib/rpm\n";
    assert_eq!(answer(Some(2), broken), None);
    for (code, output) in [(Some(1), ""), (Some(127), "rpm: not found"), (None, missing)] {
        assert_eq!(answer(code, output), None, "{code:?} {output}");
    }
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
