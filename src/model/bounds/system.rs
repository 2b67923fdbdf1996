//! Folders of the system, which no setting opens to callers.

use super::paths::PathPurpose;

/// Closed part of a system folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FolderShare {
    /// Only the folder itself: callers may use folders below it.
    Itself,
    /// Folder and everything below it, except for paths of this purpose.
    AllBut(PathPurpose),
    /// Folder and everything below it.
    All,
}

use FolderShare::{All, AllBut, Itself};

const SHARED: &str = "many programs share it";
const PROGRAMS: &str = "programs and libraries are there, which root runs";
const KERNEL: &str = "it is the kernel's";
const KEYS: &str = "keys, passwords and rights are there";
const COMMANDS: &str = "what is there is run as root";
const OTHERS: &str = "it is another program's of the node";
const OWNERS: &str = "it is the engine's, systemd's or this agent's own";

/// Closed folders: (folder, closed part, reason). A `*` at the end stands for the rest of a name, and `/var/run` is
/// taken for `/run`.
const SYSTEM: [(&str, FolderShare, &str); 59] = [
    ("/", Itself, SHARED),
    ("/var", Itself, SHARED),
    ("/var/cache", Itself, SHARED),
    ("/var/lib", Itself, SHARED),
    ("/var/log", Itself, SHARED),
    ("/var/spool", Itself, SHARED),
    ("/var/tmp", Itself, SHARED),
    ("/tmp", Itself, SHARED),
    ("/run", Itself, SHARED),
    ("/home", Itself, SHARED),
    ("/opt", Itself, SHARED),
    ("/usr", All, PROGRAMS),
    ("/bin", All, PROGRAMS),
    ("/sbin", All, PROGRAMS),
    ("/lib*", All, PROGRAMS),
    ("/boot", All, KERNEL),
    ("/proc", All, KERNEL),
    ("/sys", All, KERNEL),
    ("/dev", All, KERNEL),
    ("/root", All, KEYS),
    ("/etc", Itself, SHARED),
    ("/etc/ssh", All, KEYS),
    ("/etc/ssl", All, KEYS),
    ("/etc/pki", All, KEYS),
    ("/etc/shadow*", All, KEYS),
    ("/etc/gshadow*", All, KEYS),
    ("/etc/passwd*", All, KEYS),
    ("/etc/sudoers*", All, KEYS),
    ("/etc/pam.d", All, KEYS),
    ("/etc/security", All, KEYS),
    ("/etc/cron*", All, COMMANDS),
    ("/etc/systemd", All, COMMANDS),
    ("/etc/kubernetes", All, KEYS),
    ("/etc/libvirt", All, OTHERS),
    ("/etc/ld.so*", All, COMMANDS),
    ("/etc/profile*", All, COMMANDS),
    ("/etc/init.d", All, COMMANDS),
    ("/etc/udev", All, COMMANDS),
    ("/run/crio", All, OTHERS),
    ("/run/dbus", All, OTHERS),
    ("/run/libvirt", Itself, OTHERS),
    ("/run/podman", All, OTHERS),
    ("/run/udev", All, OTHERS),
    ("/var/lib/containers", All, OTHERS),
    ("/var/lib/kubelet", All, OTHERS),
    ("/var/lib/libvirt", Itself, OTHERS),
    ("/etc/docker", All, OWNERS),
    ("/etc/vhost-agent", All, OWNERS),
    // Client configurations lie in `/etc`, and nothing else that a caller may name.
    ("/etc", AllBut(PathPurpose::ClientConf), "it is the node's configuration"),
    ("/var/spool/cron", All, COMMANDS),
    ("/var/lib/docker", All, OWNERS),
    ("/var/lib/containerd", All, OWNERS),
    ("/var/lib/systemd", All, OWNERS),
    ("/var/lib/vhost-agent", All, OWNERS),
    ("/run/docker*", All, OWNERS),
    ("/run/containerd", All, OWNERS),
    ("/run/systemd", All, OWNERS),
    ("/run/vhost-agent*", All, OWNERS),
    ("/run/secrets", All, KEYS),
];

/// Closed folder that contains `path`, and the reason; `None` if a path of the purpose `named` may lie there.
pub(super) fn closed(path: &str, named: PathPurpose) -> Option<(&'static str, &'static str)> {
    let moved = path.strip_prefix("/var").filter(|rest| is_in(rest, "/run").is_some());
    let path = moved.unwrap_or(path);
    let is_closed =
        |(folder, part, _): &&(&str, FolderShare, &str)| match (is_in(path, folder), part) {
            (None, _) => false,
            (Some(below), Itself) => !below,
            (Some(_), AllBut(other)) => *other != named,
            (Some(_), All) => true,
        };
    SYSTEM.iter().find(is_closed).map(|(folder, _, why)| (*folder, *why))
}

/// Position of `path`: `Some(false)` if it is `folder` itself, `Some(true)` if it lies below, `None` otherwise.
fn is_in(path: &str, folder: &str) -> Option<bool> {
    let rest = match folder.strip_suffix('*') {
        // The `*` covers the rest of that name, up to the next slash.
        Some(begin) => path.strip_prefix(begin)?.trim_start_matches(|c| c != '/'),
        None => path.strip_prefix(folder.trim_end_matches('/'))?,
    };
    match rest {
        "" | "/" => Some(false),
        rest => rest.starts_with('/').then_some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_shared_are_closed_themselves_and_those_of_root_with_all_in_them() {
        let folders = "/ /etc /var /var/lib /var/tmp /var/run /tmp /run /home /opt /usr /root /root/.ssh /boot/grub /proc/1 \
            /sys/kernel /dev/sda /bin/x /sbin /lib /lib64/x /libexec /usr/local/x /var/lib/docker/x /var/lib/containerd \
            /var/lib/vhost-agent/images /run/docker /run/docker.sock /run/containerd/x /run/systemd /run/vhost-agent.sock \
            /run/vhost-agent/x /var/run/docker.sock /var/run/systemd/x /etc/zbs /etc/x/y /var/spool/cron/root";
        for path in folders.split_whitespace() {
            assert!(closed(path, PathPurpose::SocketDir).is_some(), "{path}");
        }
        for path in "/var/tmp/x /tmp/x /run/x /var/run/x /opt/zbs /home/x /var/lib/zstack /rooted /srv /mnt/d /var/libx"
            .split_whitespace()
        {
            assert_eq!(closed(path, PathPurpose::SocketDir), None, "{path}");
        }
    }

    #[test]
    fn configurations_may_lie_in_etc_but_not_beside_keys_and_commands() {
        for path in ["/etc/zbs", "/etc/zbs/client.conf", "/etc/ceph/x"] {
            assert_eq!(closed(path, PathPurpose::ClientConf), None, "{path}");
        }
        for path in "/etc /etc/ssh /etc/ssl/private /etc/pki/x /etc/docker/daemon.json /etc/vhost-agent/tokens /etc/sudoers.d/x \
            /etc/pam.d /etc/security /etc/systemd/system /etc/crontab /etc/cron.d/x /etc/shadow /etc/shadow- /root/.config"
            .split_whitespace()
        {
            assert!(closed(path, PathPurpose::ClientConf).is_some(), "{path}");
        }
    }
}
