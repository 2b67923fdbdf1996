//! Observation of targets on a machine that a test puts together.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;
use crate::docker::fake::FakeContainers;
use crate::model::container::SPEC_LABEL;
use crate::model::policy::HealthPolicy;

fn spec(folder: &str) -> TargetSpec {
    TargetSpec {
        control_sock: format!("{folder}/vhost.sock").parse().unwrap(),
        socket_dir: folder.parse().unwrap(),
        ..TargetSpec::example("zbs-vhost")
    }
}

/// A target at `socket` to which one machine is connected, and a probe.
fn serve_one_guest(socket: &std::path::Path) {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
            let mut requests = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
            let mut replies = String::new();
            while let Some(Ok(request)) = requests.next() {
                let result = match request["method"].as_str().unwrap() {
                    "spdk_get_version" => json!({"version": "SPDK v24.01"}),
                    "framework_get_reactors" => json!({"reactors": [{}]}),
                    _ => json!([
                        {"ctrlr": "disk", "sessions": [{"started": true}]},
                        {"ctrlr": format!("{PROBE_PREFIX}1-1-0"), "sessions": [{"started": true}]}
                    ]),
                };
                replies += &format!("{}\n", json!({"id": request["id"], "result": result}));
            }
            let taken = requests.byte_offset();
            bytes.drain(..taken);
            stream.write_all(replies.as_bytes()).await.unwrap();
        }
    });
}

#[tokio::test]
async fn guests_are_counted_where_the_target_runs_not_where_it_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    crate::host::spawn_fake::put_cpu(&root);
    crate::host::leftovers::make_folder(&root, "/old", (0, 0), 0o755).unwrap();
    serve_one_guest(&root.path("/old/vhost.sock"));
    let label = serde_json::to_string(&spec("/old")).unwrap();
    let containers = FakeContainers::with_one(&[(SPEC_LABEL, &label)]);
    let second = Duration::from_secs(1);
    let health = HealthPolicy { timeout: second, ..HealthPolicy::default() };
    let policy = TargetPolicy { health, ..TargetPolicy::example() };
    let observer = TargetObserver::new(&root, Arc::new(containers), Sockets::default(), policy);
    let seen = observer.look(&spec("/new"), false).await.unwrap();
    assert_eq!((seen.sessions, seen.serves()), (Some(1), true), "{seen:?}");
}

#[tokio::test]
#[allow(clippy::disallowed_methods)] // the test puts files in place
async fn virtual_machines_and_the_bound_of_containers_are_seen_and_the_target_itself_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    crate::host::spawn_fake::put_cpu(&root);
    let put = |path: &str, text: &str| {
        let path = root.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("/sys/fs/cgroup/cpuset.cpus.effective", "0-3\n");
    for (pid, comm) in [(1, "reactor_0"), (7, "qemu-system-x86")] {
        put(&format!("/proc/{pid}/comm"), comm);
        put(&format!("/proc/{pid}/task/{pid}/status"), "Cpus_allowed_list:\t2\n");
    }
    let label = serde_json::to_string(&spec("/sockets")).unwrap();
    let containers = FakeContainers::with_one(&[(SPEC_LABEL, &label)]);
    let policy = TargetPolicy::example();
    let observer = TargetObserver::new(&root, Arc::new(containers), Sockets::default(), policy);
    let seen = observer.look(&spec("/sockets"), false).await.unwrap().cpu_use;
    assert_eq!(seen.containers, Some((0..4).collect()));
    let names: Vec<&str> = seen.holders.iter().map(|holder| holder.name.as_str()).collect();
    assert_eq!(names, ["qemu-system-x86 (pid 7)"]);
}

#[tokio::test]
#[allow(clippy::disallowed_methods)] // the test puts links in place
async fn links_of_what_a_caller_named_are_followed_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new(folder.path());
    crate::host::spawn_fake::put_cpu(&root);
    crate::host::leftovers::make_folder(&root, "/s", (0, 0), 0o755).unwrap();
    std::os::unix::fs::symlink("/etc", root.path("/s/a")).unwrap();
    let (containers, policy) = (FakeContainers::with_one(&[]), TargetPolicy::example());
    let observer = TargetObserver::new(&root, Arc::new(containers), Sockets::default(), policy);
    let links = observer.look(&spec("/s/a"), false).await.unwrap().links;
    let led = |path: &str| links.get(&path.parse().unwrap()).map(|led| led.path.as_str());
    assert_eq!((led("/s/a"), led("/s/a/vhost.sock")), (Some("/etc"), Some("/etc/vhost.sock")));
    assert_eq!((led("/s"), led("/other")), (Some("/s"), None));
    assert!(observer.look(&spec("/sockets"), false).await.unwrap().links.is_empty());
}
