//! What callers name, by the field that they name it in.

use serde_json::json;

use super::*;
use crate::model::volume::VolumeName;

fn path(text: &str) -> CleanPath {
    text.parse().unwrap()
}

fn usual() -> TargetSpec {
    let settings = TargetSettings::default();
    settings.spec("a".parse().unwrap(), settings.kind).unwrap()
}

fn authorize(spec: &TargetSpec, known: Option<&TargetSpec>, paths: Paths<'_>) -> Result<(), Code> {
    authorize_target(spec, known, &TargetSettings::default(), paths).map_err(|fault| {
        let words = ["target.", "closed", "in time"];
        assert!(words.iter().any(|word| fault.text.contains(word)), "{fault}");
        fault.code
    })
}

/// A target with one path of its own.
fn with(named: PathPurpose, at: &str) -> TargetSpec {
    let at = path(at);
    match named {
        PathPurpose::SocketDir => {
            TargetSpec { control_sock: path(&at.join("vhost.sock")), socket_dir: at, ..usual() }
        }
        PathPurpose::ControlSock => TargetSpec { control_sock: at, ..usual() },
        PathPurpose::ClientConf => TargetSpec { client_conf: Some(at), ..usual() },
        PathPurpose::ImageTar => TargetSpec { image_tar: Some(at), ..usual() },
        PathPurpose::Aio => usual(),
    }
}

const ALLOWED: [(PathPurpose, &str); 8] = [
    (PathPurpose::SocketDir, "/var/tmp/vhost-sockets"),
    (PathPurpose::SocketDir, "/var/tmp/vhost-sockets/a"),
    (PathPurpose::SocketDir, "/var/zbsvhost/sockets"),
    (PathPurpose::ControlSock, "/var/tmp/vhost-sockets/b.sock"),
    (PathPurpose::ControlSock, "/var/zbsvhost/sockets/b.sock"),
    (PathPurpose::ClientConf, "/etc/zbs/other.conf"),
    (PathPurpose::ClientConf, "/etc/ceph/ceph.conf"),
    (PathPurpose::ImageTar, "/var/lib/zstack/vhost.tar"),
];

#[test]
fn what_lies_in_an_allowed_folder_is_taken_as_named_and_with_links_followed() {
    for (named, at) in ALLOWED {
        let spec = with(named, at);
        assert_eq!(authorize(&spec, None, Paths::AsNamed), Ok(()), "{at}");
        let paths = paths_of_target(&spec, &TargetSettings::default());
        let led = |path: CleanPath| (path.clone(), ResolvedPath { path, is_block_device: false });
        let links: Links = paths.into_iter().map(led).collect();
        assert_eq!(authorize(&spec, None, Paths::Followed(&links)), Ok(()), "{at}");
    }
    assert_eq!(paths_of_target(&usual(), &TargetSettings::default()), [], "the operator's own");
    assert_eq!(authorize(&usual(), None, Paths::Followed(&Links::new())), Ok(()));
}

#[test]
fn cgroup_parent_is_the_settings_own_a_listed_or_a_known_one() {
    let below = |parent: &str| TargetSpec { cgroup_parent: parent.parse().ok(), ..usual() };
    let listed = below("zstone.vhost.slice");
    assert_eq!(authorize(&listed, None, Paths::AsNamed), Ok(()));
    for parent in ["machine.slice", "system.slice", "/docker", "/machine.slice/vm"] {
        let other = below(parent);
        assert!(other.cgroup_parent.is_some(), "{parent}");
        assert_eq!(authorize(&other, None, Paths::AsNamed), Err(Code::PathNotAllowed), "{parent}");
        let known = authorize(&other, Some(&other), Paths::AsNamed);
        assert_eq!(known, Ok(()), "it was authorized when it was new");
        let own = TargetSettings { cgroup_parent: parent.into(), ..TargetSettings::default() };
        assert_eq!(authorize_target(&other, None, &own, Paths::AsNamed), Ok(()), "{parent}");
    }
}

#[test]
fn folders_of_the_system_and_all_that_no_list_names_are_refused() {
    let hostile = [
        "/",
        "/etc",
        "/etc/shadow",
        "/root/.ssh",
        "/run",
        "/run/docker.sock",
        "/tmp/x",
        "/var/tmp",
        "/var/tmp/vhost-sockets-evil",
        "/var/tmp/vhost",
        "/usr/bin",
        "/dev/sda",
        "/proc/1/root",
        "/home/x",
        "/etc/zbs",
        "/etc/ssh/x",
        "/var/lib/docker/x",
        "/var/run/docker.sock",
    ];
    for at in hostile {
        for named in [PathPurpose::SocketDir, PathPurpose::ControlSock, PathPurpose::ImageTar] {
            let authorized = authorize(&with(named, at), None, Paths::AsNamed);
            assert_eq!(authorized, Err(Code::PathNotAllowed), "{named:?} {at}");
        }
    }
    for at in ["/etc", "/etc/zbs.conf", "/etc/ssh/x", "/root/.ssh/x", "/var/lib/zstack/x"] {
        let authorized = authorize(&with(PathPurpose::ClientConf, at), None, Paths::AsNamed);
        assert_eq!(authorized, Err(Code::PathNotAllowed), "{at}");
    }
    assert!("/var/tmp/vhost-sockets/../../..".parse::<CleanPath>().is_err());
}

#[test]
fn links_that_lead_out_are_refused_and_so_is_what_nobody_could_look_at() {
    for (named, at) in ALLOWED {
        let spec = with(named, at);
        let out = |to: &str| {
            let paths = paths_of_target(&spec, &TargetSettings::default());
            let to = ResolvedPath { path: path(to), is_block_device: false };
            let links: Links = paths.into_iter().map(|path| (path, to.clone())).collect();
            authorize(&spec, None, Paths::Followed(&links))
        };
        // Also where the folder itself is the link: no list opens these.
        for to in ["/", "/root/.ssh", "/run/docker.sock", "/etc/shadow", "/dev/sda"] {
            if !paths_of_target(&spec, &TargetSettings::default()).is_empty() {
                assert_eq!(out(to), Err(Code::PathNotAllowed), "{at} {to}");
            }
        }
        let unseen = authorize(&spec, None, Paths::Followed(&Links::new()));
        let own = spec == usual();
        assert_eq!(unseen.is_ok(), own, "{at}");
    }
    let spec = with(PathPurpose::SocketDir, "/var/zbsvhost/sockets/a");
    let led = |from: &str, to: &str| {
        (path(from), ResolvedPath { path: path(to), is_block_device: false })
    };
    let authorized = |links: Links| authorize(&spec, None, Paths::Followed(&links));
    let control = "/var/zbsvhost/sockets/a/vhost.sock";
    let moved = [
        led("/var/zbsvhost/sockets", "/data/sockets"),
        led("/var/zbsvhost/sockets/a", "/data/sockets/a"),
        led(control, "/data/sockets/a/vhost.sock"),
    ];
    assert_eq!(authorized(moved.clone().into()), Ok(()), "the operator's folder lies elsewhere");
    let mut out = Links::from(moved);
    out.extend([led("/var/zbsvhost/sockets/a", "/data/other")]);
    assert_eq!(authorized(out), Err(Code::PathNotAllowed));
}

#[test]
fn what_is_desired_already_is_not_judged_again() {
    for (named, at) in [
        (PathPurpose::SocketDir, "/srv/s"),
        (PathPurpose::ClientConf, "/root/c"),
        (PathPurpose::ImageTar, "/tmp/t"),
    ] {
        let known = TargetSpec { image: Some("old:1".into()), ..with(named, at) };
        let again = TargetSpec { memory_mib: 7, ..known.clone() };
        for paths in [Paths::AsNamed, Paths::Followed(&Links::new())] {
            assert_eq!(authorize(&again, Some(&known), paths), Ok(()), "{at}");
        }
        assert!(authorize(&again, Some(&usual()), Paths::AsNamed).is_err(), "{at}");
    }
    let known = with(PathPurpose::SocketDir, "/srv/s");
    let other = TargetSpec { control_sock: path("/srv/s/b.sock"), ..known.clone() };
    assert_eq!(authorize(&other, Some(&known), Paths::AsNamed), Ok(()), "in its own folder");
    let image_url = Some("http://old/a.tar".parse().unwrap());
    let known = TargetSpec { image_url, ..usual() };
    assert_eq!(authorize(&known, Some(&known), Paths::AsNamed), Ok(()));
    assert_eq!(authorize(&known, None, Paths::AsNamed), Err(Code::ImageUrlNotAllowed));
    let image = TargetSpec { image: Some("evil:1".into()), ..usual() };
    assert_eq!(authorize(&image, None, Paths::AsNamed), Err(Code::ImageNotAllowed));
}

fn volume(backing: serde_json::Value) -> VolumeSpec {
    let name: VolumeName = "v".parse().unwrap();
    let backing = serde_json::from_value(backing).unwrap();
    VolumeSpec { bdev: name.clone(), name, backing, read_only: false, cpumask: None }
}

fn aio(path: &str) -> VolumeSpec {
    volume(json!({"kind": "aio", "path": path}))
}

fn disks() -> TargetSettings {
    TargetSettings {
        aio_roots: vec![path("/srv/disks")],
        aio_devices: vec!["/dev/mapper/vg0-*".into()],
        raw_methods: vec!["bdev_null_create".into(), "bdev_uring_create".into()],
        ..TargetSettings::default()
    }
}

fn authorized(spec: &VolumeSpec, settings: &TargetSettings, paths: Paths<'_>) -> Result<(), Code> {
    authorize_volume(spec, None, settings, paths).map_err(|fault| fault.code)
}

#[test]
fn files_of_volumes_lie_where_the_settings_say_and_devices_fit_a_pattern() {
    for at in ["/srv/disks/a", "/srv/disks/a/b.img", "/dev/mapper/vg0-a"] {
        assert_eq!(authorized(&aio(at), &disks(), Paths::AsNamed), Ok(()), "{at}");
        let none = authorized(&aio(at), &TargetSettings::default(), Paths::AsNamed);
        assert_eq!(none, Err(Code::PathNotAllowed), "{at}: nothing is named");
        assert_eq!(
            authorize_volume(&aio(at), Some(&aio(at)), &TargetSettings::default(), Paths::AsNamed),
            Ok(())
        );
    }
    for at in [
        "/srv/disk",
        "/srv/disks-evil/a",
        "/etc/shadow",
        "/dev/sda",
        "/dev/mapper/vg1-a",
        "/dev/mapper/vg0-a/b",
    ] {
        assert_eq!(
            authorized(&aio(at), &disks(), Paths::AsNamed),
            Err(Code::PathNotAllowed),
            "{at}"
        );
    }
    let led = |from: &str, to: &str, is_block_device| {
        let links = [(path(from), ResolvedPath { path: path(to), is_block_device })].into();
        authorized(&aio(from), &disks(), Paths::Followed(&links))
    };
    assert_eq!(led("/dev/mapper/vg0-a", "/dev/dm-3", true), Ok(()), "as the system makes them");
    assert_eq!(led("/srv/disks/a", "/srv/disks/b", false), Ok(()));
    assert_eq!(led("/srv/disks/a", "/dev/mapper/vg0-a", true), Ok(()), "it may be named itself");
    for (from, to, is_block_device) in [
        ("/dev/mapper/vg0-a", "/etc/shadow", false),
        ("/dev/mapper/vg0-a", "/dev/mem", false),
        ("/srv/disks/a", "/dev/sda", true),
        ("/srv/disks/a", "/etc/shadow", false),
        ("/srv/disks/a", "/srv/other", false),
    ] {
        assert_eq!(led(from, to, is_block_device), Err(Code::PathNotAllowed), "{from} {to}");
    }
}

#[test]
fn raw_methods_are_listed_and_the_files_that_they_name_are_judged() {
    let raw = |method: &str, more: serde_json::Value| {
        let mut backing = json!({"kind": "raw", "method": method});
        backing.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        authorized(&volume(backing), &disks(), Paths::AsNamed)
    };
    assert_eq!(raw("bdev_null_create", json!({})), Ok(()));
    assert_eq!(raw("bdev_null_create", json!({"deleteMethod": "bdev_null_delete"})), Ok(()));
    for (method, more) in [
        ("bdev_aio_create", json!({})),
        ("bdev_null", json!({})),
        ("bdev_null_create_", json!({})),
        ("bdev_null_create", json!({"deleteMethod": "bdev_zbs_delete"})),
    ] {
        assert_eq!(raw(method, more.clone()), Err(Code::RawMethodNotAllowed), "{method} {more}");
    }
    let file = |at: &str| raw("bdev_uring_create", json!({"params": {"filename": at}}));
    assert_eq!(file("/srv/disks/a"), Ok(()));
    assert_eq!(file("/etc/shadow"), Err(Code::PathNotAllowed));
    assert_eq!(file("/srv/disks/../x"), Err(Code::InvalidPath));
    assert_eq!(raw_method_problem("bdev_rbd_create"), None);
    for method in ["spdk_kill_instance", "bdev_null", "BDEV_null_create", ""] {
        assert!(raw_method_problem(method).is_some(), "{method}");
    }
}
