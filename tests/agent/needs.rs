//! Needs of a target, and the replies of a deploy where the node lacks one: nothing is started then.

use std::fs;

use serde_json::Value;

use crate::support::Place;
use crate::support::engine::noting_engine;

const FAILED: Option<i32> = Some(1);
const WOULD_CHANGE: Option<i32> = Some(3);

/// A node with an engine that has the image.
fn node() -> Place {
    let place = Place::on("two-node").mounted().settings("engine.socket = \"/run/docker.sock\"\n");
    noting_engine(&place);
    place
}

/// Exit code and report of the dry run of a deploy with so much memory.
async fn planned(place: &Place, mib: &str) -> (Option<i32>, Value) {
    let ended = place
        .run(&[
            "deploy",
            "--kind",
            "spdk",
            "--image",
            "zbs-vhost:1",
            "--core-count",
            "1",
            "--memory-mib",
            mib,
            "--dry-run",
            "--output",
            "json",
        ])
        .await;
    (ended.code, ended.json())
}

#[tokio::test]
async fn pages_that_are_missing_are_counted_and_explained() {
    let place = node();
    let (code, report) = planned(&place, "64").await;
    assert_eq!(code, WOULD_CHANGE, "{report}");
    let (code, report) = planned(&place, "8192").await;
    let error = &report["errors"][0];
    assert_eq!((code, &error["code"]), (FAILED, &"memory-impossible".into()), "{report}");
    let text = error["text"].as_str().unwrap();
    for words in ["takes 4096 pages of 2 MiB (memory_mib 8192, for 12800 volumes)", "--pages 4097`"]
    {
        assert!(text.contains(words), "{text}");
    }
}

// As in spdk#597, where a container's control group allowed fewer pages than the machine had, and SIGBUS was all that the
// target said.
#[tokio::test]
async fn a_limit_of_the_containers_control_group_is_named_before_anything_is_started() {
    let place = node();
    let group = "sys/fs/cgroup/system.slice";
    fs::create_dir_all(place.path(group)).unwrap();
    place.write(&format!("{group}/hugetlb.2MB.max"), "max\n");
    assert_eq!(planned(&place, "64").await.0, WOULD_CHANGE);
    place.write(&format!("{group}/hugetlb.2MB.max"), "67108864\n");
    place.write(&format!("{group}/hugetlb.2MB.current"), "2097152\n");
    let (code, report) = planned(&place, "64").await;
    let error = &report["errors"][0];
    assert_eq!((code, &error["code"]), (FAILED, &"page-limit-too-low".into()), "{report}");
    let text = error["text"].as_str().unwrap();
    let limit =
        "/sys/fs/cgroup/system.slice/hugetlb.2MB.max allows 32 pages of 2M, of which 31 are left";
    assert!(text.contains(limit), "{text}");
    assert_eq!(planned(&place, "62").await.0, WOULD_CHANGE);
}
