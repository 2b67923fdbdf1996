//! An attack on every field of every route: paths, images, addresses and names that a caller has no business with. Nothing
//! outside of what the settings allow is opened, mounted, connected to or written.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::calls::{ZBS, calls, in_each_text, native_calls};
use crate::support::engine::{Changes, noting_engine};
use crate::support::http::{receive, request};
use crate::support::network::{Far, alone, call_on};
use crate::support::{Place, task};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// Folders that nobody may come near, each with a file in it.
const SECRET: [&str; 6] =
    ["root/.ssh", "boot", "home/user", "srv/other", "var/lib/docker/volumes", "etc/ssh"];

/// What stands ready to be touched.
struct Bait {
    /// Hears of each touch of a secret file or its folder.
    touched: Inotify,
    /// Connections that came to where none should.
    connected: Arc<AtomicUsize>,
    port: u16,
}

impl Bait {
    async fn lay(place: &Place) -> Bait {
        let touched = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let events = AddWatchFlags::IN_ACCESS
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_OPEN
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE;
        for folder in SECRET {
            fs::create_dir_all(place.path(folder)).unwrap();
            fs::write(place.path(&format!("{folder}/secret")), "not-to-be-told").unwrap();
        }
        fs::write(place.path("etc/shadow"), "not-to-be-told").unwrap();
        let sockets = place.path("var/tmp/vhost-sockets");
        fs::create_dir_all(&sockets).unwrap();
        // Links inside an allowed folder that lead out of it.
        symlink("../../../root/.ssh", sockets.join("out")).unwrap();
        symlink("../../../root/.ssh/secret", sockets.join("out.sock")).unwrap();
        fs::create_dir_all(place.path("etc/zbs")).unwrap();
        symlink("../shadow", place.path("etc/zbs/link.conf")).unwrap();
        let connected = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = connected.clone();
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let evil = UnixListener::bind(place.path("srv/other/evil.sock")).unwrap();
        let count = connected.clone();
        tokio::spawn(async move {
            while evil.accept().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        for folder in SECRET {
            touched.add_watch(&place.path(folder), events).unwrap();
            touched.add_watch(&place.path(&format!("{folder}/secret")), events).unwrap();
        }
        touched.add_watch(&place.path("etc/shadow"), events).unwrap();
        Bait { touched, connected, port }
    }

    /// Texts that a caller may try in a field.
    fn texts(&self) -> Vec<String> {
        let port = self.port;
        let mut texts: Vec<String> = [
            "/",
            "/etc",
            "/etc/shadow",
            "/etc/ssh",
            "/etc/ssh/secret",
            "/root",
            "/root/.ssh",
            "/root/.ssh/secret",
            "/boot",
            "/proc",
            "/proc/1/root",
            "/sys/kernel",
            "/dev",
            "/dev/sda",
            "/run",
            "/run/docker.sock",
            "/var/run",
            "/var/lib/docker",
            "/var/lib/docker/volumes",
            "/home/user",
            "/srv/other",
            "/srv/other/evil.sock",
            "/tmp",
            "/var/tmp",
            "/var/tmp/vhost-sockets/../../../root/.ssh",
            "/var/tmp/vhost-sockets/out",
            "/var/tmp/vhost-sockets/out/x.sock",
            "/var/tmp/vhost-sockets/out.sock",
            "/var/tmp/vhost-sockets-evil",
            "/etc/zbs/link.conf",
            "/etc/zbs/../shadow",
            "/etc/zbsx/a",
            "//root//.ssh",
            "/./root/.ssh",
            "../../../../root/.ssh/secret",
            "..",
            ".",
            "-v",
            "--privileged",
            "a b",
            "a\u{0}b",
            "$(id)",
            "{{a}}",
            "%2e%2e",
            "alpine",
            "docker.io/library/alpine:3",
            "evil.example/zbs-vhost-x:1",
            "zbs-vhost-x/evil",
            "zbs-vhostx:1",
            "zbs-vhost:1@sha256:00",
            "file:///etc/shadow",
            "http://169.254.169.254/latest/meta-data",
            "ftp://127.0.0.1/x",
            "bdev_aio_create",
            "spdk_kill_instance",
            "zbs://../../etc/shadow",
            "pool/../../etc/shadow",
        ]
        .map(str::to_string)
        .to_vec();
        texts.extend([
            format!("http://127.0.0.1:{port}/x.tar"),
            format!("http://localhost:{port}/x.tar"),
            format!("http://[::ffff:127.0.0.1]:{port}/x.tar"),
            format!("http://2130706433:{port}/x.tar"),
            format!("http://0:{port}/x.tar"),
            format!("http://allowed.example@127.0.0.1:{port}/x.tar"),
            format!("127.0.0.1:{port}/zbs-vhost-x:1"),
        ]);
        texts
    }
}

/// Whether an engine may be asked for that: only what the settings allow is mounted, and only from allowed images.
fn judge(method: &str, path: &str, body: &[u8]) {
    if !path.contains("/containers/create") {
        assert!(
            !path.contains("/images/create") && !path.contains("/images/load"),
            "{method} {path}"
        );
        return;
    }
    let body: Value = serde_json::from_slice(body).unwrap();
    let image = body["Image"].as_str().unwrap();
    assert!(image.starts_with("zbs-vhost:") || image.starts_with("vhost-agent-target:"), "{image}");
    let host = &body["HostConfig"];
    let binds = host["Binds"].as_array().cloned().unwrap_or_default();
    for bind in binds.iter().map(|bind| bind.as_str().unwrap()) {
        let source = bind.split(':').next().unwrap();
        let allowed = source == "/var/tmp/vhost-sockets"
            || source == "/var/zbsvhost/sockets"
            || source.starts_with("/var/tmp/vhost-sockets/good")
            || source.starts_with("/dev/hugepages");
        assert!(allowed, "{bind}");
    }
    assert_ne!(host["Privileged"], true);
    let parent = &host["CgroupParent"];
    assert!(parent.is_null() || parent == "zstone.vhost.slice", "{parent}");
    let known: BTreeSet<&str> = ["SYS_NICE"].into();
    let added = host["CapAdd"].as_array().cloned().unwrap_or_default();
    assert!(added.iter().all(|it| known.contains(it.as_str().unwrap())), "{added:?}");
}

/// Sends a request on a kept connection, and judges that the answer is one.
async fn attack(line: &mut Option<TcpStream>, far: (&Far, u16), bytes: &str, what: &str) {
    if line.is_none() {
        *line = Some(far.0.connect(far.1).await);
    }
    let stream = line.as_mut().unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let reply = receive(stream).await;
    assert!(
        [200, 400, 403, 404, 409, 422, 500, 502, 503, 504].contains(&reply.status),
        "{what}: {}",
        reply.status
    );
    assert_ne!(reply.json()["code"], "internal", "{what}: {}", reply.text());
    assert!(!reply.text().contains("not-to-be-told"), "{what}: {}", reply.text());
    if reply.header("connection").is_some_and(|it| it.eq_ignore_ascii_case("close")) {
        *line = None;
    }
}

#[test]
fn nothing_outside_of_what_is_allowed_is_touched_whatever_a_caller_names() {
    alone(async || attack_all("").await);
}

#[test]
fn nor_where_the_settings_list_addresses_folders_and_methods() {
    alone(async || {
        attack_all(
            "[target]\nimage_urls = [\"http://127.0.0.1:1/zbs\"]\naio_roots = [\"/srv/disks\"]\n\
             raw_methods = [\"bdev_null_create\"]\n",
        )
        .await;
    });
}

/// From another machine, which may call: what comes from the node itself may lead back to it.
async fn attack_all(lists: &str) {
    let far = Far::new();
    let settings = "engine.socket = \"/run/docker.sock\"\n[target]\nready_timeout = \"50ms\"\ncall_timeout = \"1s\"\n\
                    capabilities = [\"SYS_NICE\"]\n[log]\nlevel = \"warn\"\n[access]\nallow = [\"10.8.0.0/24\"]\n";
    // What stands in a file of its own adds to the section.
    let place = Place::on("two-node").settings(settings).env("VHOST_AGENT_LISTEN", "[::]:0");
    let drop_ins = place.folder().join("config.d");
    std::fs::create_dir_all(&drop_ins).unwrap();
    std::fs::write(drop_ins.join("lists.toml"), lists).unwrap();
    let changes: Changes = noting_engine(&place);
    let bait = Bait::lay(&place).await;
    let mut agent = place.ready().await;
    let before = place.snapshot();
    // The test itself has looked.
    let _ = bait.touched.read_events();
    // What is allowed does come to the engine: else all of this would show nothing.
    let good = r#"{"kind":"zbs","image":"zbs-vhost:1","cores":"[1]","socketDir":"/var/tmp/vhost-sockets/good"}"#;
    let stream = far.connect(agent.address.port()).await;
    call_on(stream, "PUT", "/v1/targets/good", &[], good).await;
    let creates = |changes: &Changes| {
        changes.lock().unwrap().iter().filter(|(_, path, _)| path.contains("/create")).count()
    };
    assert_eq!(creates(&changes), 1, "{}", agent.log());
    let (mut line, from) = (None, (&far, agent.address.port()));
    let mut count = 0;
    for text in bait.texts() {
        let compatible = calls().into_iter().map(|(path, body)| ("POST", path, body));
        for (method, path, body) in compatible.chain(native_calls()) {
            for body in in_each_text(&body, &text) {
                let body = body.to_string();
                let bytes = request(method, &path, &[], &body);
                attack(&mut line, from, &bytes, &format!("{method} {path} {body}")).await;
                count += 1;
            }
        }
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for (method, path) in [
            ("PUT", format!("/v1/targets/{escaped}")),
            ("DELETE", format!("/v1/targets/{escaped}")),
            ("GET", format!("/v1/targets/{escaped}/health")),
            ("GET", format!("/v1/targets/good/health?controlSock={escaped}")),
            ("GET", format!("/v1/targets/good/health?deep=true&controlSock={escaped}")),
            ("GET", format!("/v1/targets/{escaped}")),
            ("GET", format!("/v1/targets/{escaped}/volumes")),
            ("GET", format!("/v1/targets/good/volumes/{escaped}")),
            ("PUT", format!("/v1/targets/{escaped}/volumes")),
            ("PUT", format!("/v1/targets/good/volumes/{escaped}")),
            ("DELETE", format!("/v1/targets/good/volumes/{escaped}")),
            ("POST", format!("/v1/targets/good/volumes/{escaped}/resize")),
            ("POST", format!("/v1/restore?{escaped}={escaped}")),
            ("POST", format!("/v1/prepare?dryRun={escaped}")),
            (
                "PUT",
                format!("/v1/targets/good?dryRun={escaped}&recreate={escaped}&force={escaped}"),
            ),
            ("DELETE", format!("/v1/targets/good/volumes/v?force={escaped}&timeoutMs={escaped}")),
            ("POST", format!("/host/echo/{escaped}")),
        ] {
            attack(
                &mut line,
                from,
                &request(method, &path, &[], "{}"),
                &format!("{method} {path}"),
            )
            .await;
            count += 1;
        }
    }
    assert!(count > 5000, "{count} attacks");
    agent.must_live();
    for (method, path, body) in changes.lock().unwrap().iter() {
        judge(method, path, body);
    }
    let events = bait.touched.read_events().unwrap_or_default();
    assert!(events.is_empty(), "secret files or their folders were touched: {events:?}");
    assert_eq!(bait.connected.load(Ordering::Relaxed), 0, "a connection came");
    before.must_only_differ_in(&place, |path| {
        [
            "state",
            "run",
            "root/var/tmp/vhost-sockets/good",
            "root/sys/devices",
            "root/sys/kernel/mm",
            "root/run",
        ]
        .iter()
        .any(|own| path.starts_with(own))
    });
}

#[test]
fn callbacks_of_a_caller_elsewhere_lead_to_nothing_of_the_node() {
    alone(async || {
        let far = Far::new();
        let settings = "[access]\nallow = [\"10.8.0.0/24\"]\n";
        let place = Place::on("two-node").settings(settings).env("VHOST_AGENT_LISTEN", "[::]:0");
        let bait = Bait::lay(&place).await;
        let agent = place.ready().await;
        let path = format!("{ZBS}/target/health");
        let urls = bait.texts();
        for (number, url) in (1..).zip(urls.iter().filter(|text| !text.contains('\0'))) {
            let uuid = task(number);
            let headers = [("taskuuid", uuid.as_str()), ("callbackurl", url.as_str())];
            let stream = far.connect(agent.address.port()).await;
            let reply = call_on(stream, "POST", &path, &headers, "{}").await;
            assert!([200, 400].contains(&reply.status), "{url}: {}", reply.text());
        }
        // A name is resolved when it is called.
        agent.logged("is the node's own loopback").await;
        assert_eq!(bait.connected.load(Ordering::Relaxed), 0, "a connection came");
    });
}
