//! Command lines of package managers, and their output.

use super::*;

fn end(code: i32, output: &str) -> RunEnd {
    RunEnd { code: Some(code), output: output.into(), log: "x".into(), timed_out: false }
}

const TAKES_AWAY: &str = "Reading package lists...\n\
    The following packages will be REMOVED:\n  containerd\n  cri-tools runc\n\
    The following NEW packages will be installed:\n  containerd.io docker-ce\n\
    E: Packages need to be removed but remove is disabled.\n";

#[test]
fn nothing_is_taken_away_for_the_engine_and_what_would_be_is_named() {
    assert_eq!(would_remove(TAKES_AWAY), ["containerd", "cri-tools", "runc"]);
    assert_eq!(would_remove("E: Unable to locate package containerd.io"), [""; 0]);
    let table = "Dependencies resolved.\n Package     Arch    Version   Repository   Size\n\
        Installing:\n containerd.io   x86_64   1.6.33-3.1   docker   34 M\n     replacing  containerd.x86_64 1.6-1\n\
        Removing dependent packages:\n cri-tools   x86_64   1.29   @k8s   40 M\n\nTransaction Summary\n Install 1 Package\n";
    assert_eq!(would_remove(table), ["containerd.x86_64", "cri-tools"]);
    let zypper = "The following package is going to be REMOVED:\n  runc\n\n1 package to remove.\n";
    assert_eq!(would_remove(zypper), ["runc"]);
    // A dry run of 1.14.42 for a package that obsoletes another.
    let obsoleting = "Resolving package dependencies...\n\n\
        The following 2 NEW packages are going to be installed:\n  engine engine-cli\n\n\
        The following 3 packages are going to be REMOVED:\n  containerd cri-tools\n  node-runtime\n\n\
        2 new packages to install, 3 to remove.\nOverall download size: 11.0 KiB.\n    Note: Checking for file conflicts\n";
    assert_eq!(would_remove(obsoleting), ["containerd", "cri-tools", "node-runtime"]);
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

#[test]
fn what_package_managers_print_is_understood() {
    use PackageManager::{Apt, Dnf, Yum, Zypper};
    let cases = [
        (Apt, 100, "E: Package 'docker-ce' has no installation candidate", Failure::NotAvailable),
        (Apt, 100, "E: Unable to locate package containerd.io", Failure::NotAvailable),
        (
            Apt,
            100,
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)",
            Failure::Locked,
        ),
        (
            Apt,
            100,
            "E: dpkg was interrupted, you must manually run 'dpkg --configure -a'",
            Failure::Interrupted,
        ),
        (Apt, 100, "E: Failed to fetch http://x/y.deb  404  Not Found", Failure::Fetch),
        (
            Apt,
            100,
            "E: You don't have enough free space in /var/cache/apt/archives/.",
            Failure::DiskFull,
        ),
        (
            Dnf,
            1,
            "No match for argument: docker-ce\nError: Unable to find a match: docker-ce",
            Failure::NotAvailable,
        ),
        (Dnf, 200, "metadata already locked by 1736", Failure::Locked),
        (
            Dnf,
            1,
            "Error: Failed to download metadata for repo 'local': Cannot download repomd.xml",
            Failure::Fetch,
        ),
        (
            Dnf,
            1,
            "Error: \n Problem: conflicting requests\n  - nothing provides libx needed by docker-ce",
            Failure::NotAvailable,
        ),
        (
            Yum,
            200,
            "Existing lock /var/run/yum.pid: another copy is running as pid 1736.",
            Failure::Locked,
        ),
        (Yum, 0, "No package docker-ce available.", Failure::NotAvailable),
        (
            Zypper,
            104,
            "'docker-ce' not found in package names. Trying capabilities.",
            Failure::NotAvailable,
        ),
        (Zypper, 4, "Download (curl) error for 'http://x/repodata/repomd.xml':", Failure::Fetch),
        (Zypper, 7, "System management is locked by the application with pid 9", Failure::Locked),
        (Apt, 100, TAKES_AWAY, Failure::Conflict),
        (
            Dnf,
            1,
            "Error: \n Problem: package engine-1-1.noarch conflicts with runc provided by runc-1-1.noarch",
            Failure::Conflict,
        ),
        (Apt, 1, "something new", Failure::Other),
    ];
    for (manager, code, output, reason) in cases {
        assert_eq!(failure(manager, &end(code, output)), Some(reason), "{output}");
    }
    for (manager, code) in [(Apt, 0), (Zypper, 102), (Zypper, 106), (Zypper, 107), (Dnf, 0)] {
        assert_eq!(failure(manager, &end(code, "Setting up docker.io")), None);
    }
}

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
fn a_lock_that_was_waited_for_and_had_is_not_the_reason_of_a_later_failure() {
    let waiting = "Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)...\r";
    for (words, reason) in [
        ("E: Unable to locate package docker-ce", Failure::NotAvailable),
        (
            "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
            Failure::Locked,
        ),
    ] {
        let end = end(100, &format!("{waiting}\n{words}"));
        assert_eq!(failure(PackageManager::Apt, &end), Some(reason));
    }
}

#[test]
fn the_reason_names_the_holder_of_a_lock_once() {
    let output = "Waiting for cache lock: Could not get lock /l. It is held by process 7 (apt)...\r\
                  Waiting for cache lock: Could not get lock /l. It is held by process 7 (apt)...\r\n\
                  Reading package lists...\n\
                  E: Unable to acquire the dpkg frontend lock (/l), is another process using it?\n";
    let reason = reason_lines(output);
    assert_eq!(reason.matches("held by process 7 (apt)").count(), 1, "{reason}");
    assert!(reason.ends_with("is another process using it?"), "{reason}");
    assert!(!reason.contains("Reading"), "{reason}");
}

#[test]
fn without_an_error_line_the_last_words_are_the_reason() {
    assert_eq!(reason_lines("one\ntwo\n\nthree\nfour\n"), "two | three | four");
    assert_eq!(reason_lines(""), "");
}

#[test]
fn an_update_with_old_lists_reports_unreachable_mirrors() {
    let away = end(0, "Hit:1 a\nW: Failed to fetch http://m/Release  Connection refused\n");
    assert!(fetch_trouble(&away).unwrap().contains("http://m/Release"));
    assert_eq!(fetch_trouble(&end(0, "Hit:1 a\nReading package lists...\n")), None);
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
