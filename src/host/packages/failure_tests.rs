//! Output of package managers.

use PackageManager::{Apt, Dnf, Yum, Zypper};

use super::*;

fn end(code: i32, output: &str) -> RunEnd {
    RunEnd { code: Some(code), output: output.into(), log: "x".into(), timed_out: false }
}

const TAKES_AWAY: &str = "Reading package lists...\n\
    The following packages will be REMOVED:\n  containerd\n  cri-tools runc\n\
    The following NEW packages will be installed:\n  containerd.io docker-ce\n\
    E: Packages need to be removed but remove is disabled.\n";

#[test]
fn packages_that_an_installation_would_remove_are_named() {
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
}

#[test]
fn what_package_managers_print_is_understood() {
    let cases = [
        (Apt, 100, "E: Package 'docker-ce' has no installation candidate", NotAvailable),
        (Apt, 100, "E: Unable to locate package containerd.io", NotAvailable),
        (
            Apt,
            100,
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)",
            Locked,
        ),
        (
            Apt,
            100,
            "E: dpkg was interrupted, you must manually run 'dpkg --configure -a'",
            Interrupted,
        ),
        (Apt, 100, "E: Failed to fetch http://x/y.deb  404  Not Found", Fetch),
        (Apt, 100, "E: You don't have enough free space in /var/cache/apt/archives/.", DiskFull),
        (
            Dnf,
            1,
            "No match for argument: docker-ce\nError: Unable to find a match: docker-ce",
            NotAvailable,
        ),
        (Dnf, 200, "metadata already locked by 1736", Locked),
        (
            Dnf,
            1,
            "Error: Failed to download metadata for repo 'local': Cannot download repomd.xml",
            Fetch,
        ),
        (
            Dnf,
            1,
            "Error: \n Problem: conflicting requests\n  - nothing provides libx needed by docker-ce",
            NotAvailable,
        ),
        (Yum, 200, "Existing lock /var/run/yum.pid: another copy is running as pid 1736.", Locked),
        (Yum, 0, "No package docker-ce available.", NotAvailable),
        (Zypper, 104, "'docker-ce' not found in package names. Trying capabilities.", NotAvailable),
        (Zypper, 4, "Download (curl) error for 'http://x/repodata/repomd.xml':", Fetch),
        (Zypper, 7, "System management is locked by the application with pid 9", Locked),
        (Apt, 100, TAKES_AWAY, Conflict),
        (
            Dnf,
            1,
            "Error: \n Problem: package engine-1-1.noarch conflicts with runc provided by runc-1-1.noarch",
            Conflict,
        ),
        (Apt, 1, "something new", Other),
    ];
    for (manager, code, output, reason) in cases {
        assert_eq!(failure(manager, &end(code, output)), Some(reason), "{output}");
    }
    for (manager, code) in [(Apt, 0), (Zypper, 102), (Zypper, 106), (Zypper, 107), (Dnf, 0)] {
        assert_eq!(failure(manager, &end(code, "Setting up docker.io")), None);
    }
}

#[test]
fn a_lock_that_was_waited_for_and_had_is_not_the_reason_of_a_later_failure() {
    let waiting = "Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)...\r";
    for (words, reason) in [
        ("E: Unable to locate package docker-ce", NotAvailable),
        (
            "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
            Locked,
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
    let (cause, lines) = list_trouble(&away).unwrap();
    assert_eq!(
        (cause, lines.as_str()),
        (Fetch, "W: Failed to fetch http://m/Release  Connection refused")
    );
    assert_eq!(list_trouble(&end(0, "Hit:1 a\nReading package lists...\n")), None);
}

/// dnf of CentOS 8 with podman-docker installed, from a public walk-through; modules that were filtered out are cut.
const PODMAN_IN_THE_WAY: &str = "Docker CE Stable - x86_64    347  B/s | 3.8 kB     00:11\nError: \n \
    Problem 1: problem with installed package podman-docker-1.6.4-10.module_el8.2.0.noarch\n  - \
    package podman-docker-1.6.4-10.module_el8.2.0.noarch conflicts with docker-ce provided by \
    docker-ce-3:19.03.13-3.el8.x86_64\n  - conflicting requests\n \
    Problem 2: problem with installed package podman-1.6.4-10.module_el8.2.0.x86_64\n  - \
    package podman-1.6.4-10.module_el8.2.0.x86_64 requires runc >= 1.0.0-57, but none of the providers can be \
    installed\n  - \
    package containerd.io-1.3.7-3.1.el8.x86_64 obsoletes runc provided by runc-1.0.0-60.rc8.module_el8.1.0.x86_64\n\
    (try to add '--allowerasing' to command line to replace conflicting packages or '--skip-broken' to skip \
    uninstallable packages)\n";

#[test]
fn reasons_are_whole_and_name_what_is_in_the_way() {
    let cases = [
        (
            PODMAN_IN_THE_WAY,
            Conflict,
            "Error: Problem 1: problem with installed package podman-docker-1.6.4-10.module_el8.2.0.noarch | - package \
             podman-docker-1.6.4-10.module_el8.2.0.noarch conflicts with docker-ce provided by \
             docker-ce-3:19.03.13-3.el8.x86_64 | - conflicting requests | Problem 2: problem with installed package \
             podman-1.6.4-10.module_el8.2.0.x86_64 | - package podman-1.6.4-10.module_el8.2.0.x86_64 requires runc >= \
             1.0.0-57, but none of the providers can be installed | - package containerd.io-1.3.7-3.1.el8.x86_64 \
             obsoletes runc provided by runc-1.0.0-60.rc8.module_el8.1.0.x86_64",
        ),
        // docker/for-linux issue 577: yum of CentOS 7 without the repository "extras".
        (
            "--> Finished Dependency Resolution
Error: Package: 3:docker-ce-18.09.1-3.el7.x86_64 (docker-ce-stable)
           Requires: container-selinux >= 2.9
 You could try using --skip-broken to work around the problem
 You could try running: rpm -Va --nofiles --nodigest
",
            NotAvailable,
            "Error: Package: 3:docker-ce-18.09.1-3.el7.x86_64 (docker-ce-stable) | Requires: container-selinux >= 2.9",
        ),
        // goharbor/harbor issue 18236: apt of Ubuntu 22.04 beside Microsoft's moby.
        (
            "The following information may help to resolve the situation:

The following packages have unmet dependencies:
 containerd.io : Conflicts: containerd
                 Conflicts: runc
 moby-containerd : Conflicts: containerd.io
E: Error, pkgProblemResolver::Resolve generated breaks, this may be caused by held packages.
",
            Conflict,
            "The following packages have unmet dependencies: containerd.io : Conflicts: containerd | Conflicts: runc | \
             moby-containerd : Conflicts: containerd.io | E: Error, pkgProblemResolver::Resolve generated breaks, this \
             may be caused by held packages.",
        ),
        // geerlingguy/ansible-role-docker pull request 520: zypper of Leap 15.6, made shorter.
        (
            "Resolving package dependencies...

Problem: 1: the to be installed containerd-1.7.27-150000.123.1.x86_64 requires 'runc', but this requirement cannot be provided
not installable providers: runc-1.3.1-lp156.187.1.x86_64[docker-ce]
                   runc-1.1.12-150000.64.1.x86_64[repo-oss]
 Solution 1: Following actions will be done:
  deinstallation of runc-1.3.1-lp156.187.1.x86_64
Choose from above solutions by number or cancel [1/2/c/d/?] (c): c
",
            NotAvailable,
            "Problem: 1: the to be installed containerd-1.7.27-150000.123.1.x86_64 requires 'runc', but this requirement \
             cannot be provided | not installable providers: runc-1.3.1-lp156.187.1.x86_64[docker-ce] | \
             runc-1.1.12-150000.64.1.x86_64[repo-oss]",
        ),
        // dpkg where Debian's podman-docker owns a file of docker-ce-cli.
        (
            "dpkg: error processing archive /var/cache/apt/archives/docker-ce-cli_24.deb (--unpack):
 trying to overwrite '/usr/bin/docker', which is also in package podman-docker 4.3.1+ds1-8
Errors were encountered while processing:
 /var/cache/apt/archives/docker-ce-cli_24.deb
E: Sub-process /usr/bin/dpkg returned an error code (1)
",
            Conflict,
            "dpkg: error processing archive /var/cache/apt/archives/docker-ce-cli_24.deb (--unpack): trying to overwrite \
             '/usr/bin/docker', which is also in package podman-docker 4.3.1+ds1-8 | Errors were encountered while \
             processing: /var/cache/apt/archives/docker-ce-cli_24.deb | E: Sub-process /usr/bin/dpkg returned an error \
             code (1)",
        ),
        // rpm-software-management/dnf pull request 1378, and AAROC/DevOps issue 151.
        (
            "Error: Transaction test error:
  installing package docker-ce-3:24.0.7-1.el8.x86_64 needs 119MB on the / filesystem

Error Summary
-------------
Disk Requirements:
   At least 119MB more space needed on the / filesystem.
",
            DiskFull,
            "Error: Transaction test error: installing package docker-ce-3:24.0.7-1.el8.x86_64 needs 119MB on the / \
             filesystem | Error Summary | At least 119MB more space needed on the / filesystem.",
        ),
    ];
    for (output, cause, reason) in cases {
        assert_eq!(failure(Dnf, &end(1, output)), Some(cause), "{output}");
        assert_eq!(reason_lines(output), reason);
    }
    let many: String = (0..20).map(|n| format!("  - package a-{n} conflicts with b\n")).collect();
    let reason = reason_lines(&format!("Error:\n{many}"));
    assert!(reason.ends_with("a-10 conflicts with b | and 9 lines more"), "{reason}");
}

#[test]
fn trouble_with_repositories_is_told_by_its_cause() {
    for (output, cause) in [
        // apt, acquire-item.cc: the clock of the node is behind, or ahead of a mirror that nobody keeps.
        (
            "E: Release file for http://deb.debian.org/debian/dists/bookworm-updates/InRelease is not valid yet (invalid \
             for another 5h 41min 53s). Updates for this repository will not be applied.",
            Dates,
        ),
        (
            "E: Release file for http://deb.debian.org/debian/dists/buster/InRelease is expired (invalid since 32d 1h \
             2min 3s). Updates for this repository will not be applied.",
            Dates,
        ),
        // apt 3 with sqv.
        (
            "Sub-process /usr/bin/sqv returned an error code (1), error message is: Verifying signature: Not live until 2024-12-02T00:00:00Z",
            Dates,
        ),
        // curl below dnf, and GnuTLS below apt.
        (
            "Curl error (60): SSL peer certificate or SSH remote key was not OK for https://a/repodata/repomd.xml [SSL \
             certificate problem: certificate is not yet valid]",
            Dates,
        ),
        (
            "W: Failed to fetch https://a/InRelease  Certificate verification failed: The certificate is NOT trusted. The \
             certificate chain uses expired certificate.",
            Dates,
        ),
        // docker/for-linux issue 1474.
        (
            "W: GPG error: https://download.docker.com/linux/debian bookworm InRelease: The following signatures couldn't \
             be verified because the public key is not available: NO_PUBKEY 7EA0A9C3F273FCD8\nE: The repository \
             'https://download.docker.com/linux/debian bookworm InRelease' is not signed.",
            Untrusted,
        ),
        // geerlingguy/ansible-role-docker issue 385.
        (
            "E: There were unauthenticated packages and -y was used without --allow-unauthenticated",
            Untrusted,
        ),
        // ansible/awx pull request 13803.
        (
            "The GPG keys listed for the \"CentOS Stream 9 - BaseOS\" repository are already installed but they are not \
             correct for this package.\nPublic key for a.rpm is not installed. Failing package is: a\nError: GPG check \
             FAILED",
            Untrusted,
        ),
        (
            "Signature verification failed for file 'repomd.xml' from repository 'docker'.",
            Untrusted,
        ),
        ("E: Failed to fetch http://a/InRelease  Temporary failure resolving 'a'", Fetch),
        (
            "W: Failed to fetch http://a/InRelease  Could not connect to a:80 (10.0.0.1). - connect (113: No route to host)",
            Fetch,
        ),
        ("E: The repository 'http://a bookworm Release' does not have a Release file.", Fetch),
        // yum of CentOS 7, whose mirrors have ended.
        ("Cannot find a valid baseurl for repo: base/7/x86_64", Fetch),
        (
            "Curl error (6): Couldn't resolve host name for http://a/repodata/repomd.xml [Could not resolve host: a]",
            Fetch,
        ),
    ] {
        assert_eq!(failure(Apt, &end(100, output)), Some(cause), "{output}");
        let (of_lists, lines) = list_trouble(&end(0, output)).unwrap();
        assert_eq!(of_lists, cause, "{output}");
        assert!(output.contains(lines.split(" | ").next().unwrap()), "{lines}");
    }
    let missing =
        end(100, "W: Failed to fetch http://a/InRelease\nE: Unable to locate package docker-ce");
    assert_eq!(failure(Apt, &missing), Some(NotAvailable), "another set may be elsewhere");
    assert_eq!(list_trouble(&missing).unwrap().0, Fetch);
}

#[test]
fn simulation_foretells_what_stands_in_the_way() {
    let table = "Installing:\n docker-ce   x86_64   3:24   docker   34 M\n";
    let replaces = format!("{table}     replacing  runc.x86_64 1.1-1\n\nOperation aborted.\n");
    let resolved = format!("{table}Operation aborted.\n");
    // dnf5 goes on without a repository that it cannot reach.
    let without = format!(
        "Failed to download metadata for repo 'a'\n{table}Operation aborted by the user.\n"
    );
    let by_yum = format!("{table}Exiting on user command\n");
    let partly = format!("No package docker-ce-cli available.\n{by_yum}");
    for (manager, code, output, foretells) in [
        (Dnf, 1, PODMAN_IN_THE_WAY, Some(Conflict)),
        (Dnf, 1, replaces.as_str(), Some(Conflict)),
        (Dnf, 1, resolved.as_str(), None),
        (Dnf, 1, without.as_str(), None),
        (Yum, 1, by_yum.as_str(), None),
        (Yum, 1, partly.as_str(), Some(NotAvailable)),
        (Zypper, 0, table, None),
        (Dnf, 1, "something new", None),
    ] {
        assert_eq!(foretold(manager, &end(code, output)), foretells, "{output}");
    }
}
