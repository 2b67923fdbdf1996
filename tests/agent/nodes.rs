//! What one machine cannot show: two NUMA nodes, no 1 GiB pages, no NUMA, broken trees.

use std::fs;

use crate::support::kernel::Kernel;
use crate::support::{Agent, Place, until};
use serde_json::{Value, json};

const NODE0: &str = "sys/devices/system/node/node0/hugepages/hugepages-2048kB";
const NODE1: &str = "sys/devices/system/node/node1/hugepages/hugepages-2048kB";

/// A dry run's steps as `step subject before -> after`.
async fn plan(agent: &Agent, entry: Value) -> Vec<String> {
    let body = json!({"hugepages": [entry]}).to_string();
    let report = agent.post("/v1/prepare?dryRun=true", &body).await.json();
    steps(&report)
}

async fn prepare(agent: &Agent, body: Value) -> (u16, Value) {
    let reply = agent.post("/v1/prepare", &body.to_string()).await;
    (reply.status, reply.json())
}

fn steps(report: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let steps = report["steps"].as_array().unwrap_or_else(|| panic!("{report}"));
    steps
        .iter()
        .map(|s| {
            let (step, subject) = (text(&s["step"]), text(&s["subject"]));
            format!("{step} {subject}: {} -> {}", text(&s["before"]), text(&s["after"]))
        })
        .collect()
}

/// Pages grown by the agent on each node, 2 MiB ones.
async fn grown(agent: &Agent) -> Vec<u64> {
    let status = agent.get("/v1/node").await.json();
    let pools = status["pools"].as_array().unwrap().clone();
    let of_size = pools.iter().filter(|pool| pool["size"] == "2M");
    of_size.map(|pool| pool["grown"].as_u64().unwrap()).collect()
}

fn number(place: &Place, path: &str) -> u64 {
    place.read(path).trim().parse().unwrap()
}

// What is seen.

#[tokio::test]
async fn domains_of_libvirt_are_listed_with_findings_on_their_next_start() {
    let place = Place::on("two-node").mounted();
    let domain = |name: &str, mib: u64, reconnect: &str| {
        format!(
            "<!-- by virsh -->\n<domain type='kvm'><name>{name}</name><uuid>{name}-1</uuid><memory unit='MiB'>{mib}</memory>\
             <memoryBacking><hugepages><page size='2' unit='MiB'/></hugepages><access mode='shared'/></memoryBacking>\
             <numatune><memory mode='strict' nodeset='1'/></numatune><devices><disk type='vhostuser'>\
             <source type='unix' path='/s/{name}'>{reconnect}</source></disk></devices></domain>"
        )
    };
    let second = "<reconnect enabled='yes' timeout='1'/>";
    for folder in ["etc/libvirt/qemu/networks", "run/libvirt/qemu"] {
        fs::create_dir_all(place.path(folder)).unwrap();
    }
    place.write("etc/libvirt/qemu/networks/default.xml", "<network/>");
    place.write("etc/libvirt/qemu/big.xml", &domain("big", 2048, second));
    place.write("etc/libvirt/qemu/broken.xml", "<domain");
    place.write("etc/libvirt/qemu/small.xml", &domain("small", 20, ""));
    let running = format!("<domstatus pid='70'>{}</domstatus>", domain("transient", 1000, second));
    place.write("run/libvirt/qemu/transient.xml", &running);
    let agent = place.ready().await;
    let view = agent.get("/v1/domains").await.json();
    let codes: Vec<_> = view["domains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            (
                it["name"].clone(),
                it["findings"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|it| it["code"].clone())
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    let expected = [
        (json!("big"), vec![json!("guest-pages-short")]),
        (json!("broken"), vec![json!("guest-definition-unreadable")]),
        (json!("small"), vec![json!("guest-does-not-reconnect")]),
        (json!("transient"), vec![]),
    ];
    assert_eq!(codes, expected, "{view}");
    let transient = json!({
        "name": "transient", "uuid": "transient-1", "pid": 70, "findings": [],
        "memory": [{"sizeMib": 2, "pages": 500, "nodes": [1]}],
        "disks": [{"socketPath": "/s/transient", "reconnectSeconds": 1}],
    });
    assert_eq!(view["domains"][3], transient);
    let shown = place.run(&["domains"]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    for part in ["500 of 2 MiB on node 1", "/s/small", "(guest-pages-short): big takes more"] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
}

#[tokio::test]
async fn a_node_is_shown_with_pools_memory_cpus_mounts_and_boot() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let status = agent.get("/v1/node").await.json();
    assert_eq!(status["hostname"], "compute-7");
    assert_eq!(status["kernel"], "6.1.0-37-amd64");
    assert_eq!(status["bootId"], "0f6a3b52-9d0e-4c1c-8b1f-5a0d7e2c4f19");
    assert_eq!(status["agentVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["pageSizes"], json!(["2M", "1G"]));
    assert_eq!(status["memory"], json!({"totalKib": 65_798_012, "availableKib": 52_428_800}));
    assert_eq!(status["errors"], json!([]));
    let pool = |size, node, total, free, surplus| json!({"size": size, "node": node, "total": total, "free": free, "surplus": surplus, "grown": 0, "kept": 0});
    let expected = json!([
        pool("2M", 0, 512, 100, 0),
        pool("2M", 1, 600, 300, 8),
        pool("1G", 0, 2, 1, 0),
        pool("1G", 1, 0, 0, 0)
    ]);
    assert_eq!(status["pools"], expected);
    let totals = json!([
        {"size": "2M", "total": 1112, "free": 400, "reserved": 40, "surplus": 8, "grown": 0},
        {"size": "1G", "total": 2, "free": 1, "reserved": 0, "surplus": 0, "grown": 0},
    ]);
    assert_eq!(status["totals"], totals);
    let cpu = |id, node, core, package, siblings: [u32; 2], isolated| json!({"id": id, "node": node, "core": core, "package": package, "siblings": siblings, "isolated": isolated});
    let expected = json!([
        cpu(0, 0, 0, 0, [0, 4], false),
        cpu(1, 0, 1, 0, [1, 5], false),
        cpu(2, 1, 0, 1, [2, 6], false),
        cpu(3, 1, 1, 1, [3, 7], true),
        cpu(4, 0, 0, 0, [0, 4], false),
        cpu(5, 0, 1, 0, [1, 5], false),
        cpu(6, 1, 0, 1, [2, 6], false),
        cpu(7, 1, 1, 1, [3, 7], true)
    ]);
    assert_eq!(status["cpus"], expected);
    let mounts = json!([
        {"path": "/dev/hugepages", "pageSize": "1G", "writable": true, "reachable": false},
        {"path": "/dev/hugepages2m", "pageSize": "2M", "writable": true, "reachable": true},
    ]);
    assert_eq!(status["mounts"], mounts);
    assert_eq!(status["engine"]["state"], "notInstalled");
}

#[tokio::test]
async fn a_kernel_without_numa_has_one_pool_of_each_size() {
    let place = Place::on("no-numa").mounted();
    let agent = place.ready().await;
    let status = agent.get("/v1/node").await.json();
    assert_eq!(status["errors"], json!([]));
    let pools = json!([
        {"size": "2M", "node": 0, "total": 32, "free": 20, "surplus": 0, "grown": 0, "kept": 0},
        {"size": "1G", "node": 0, "total": 0, "free": 0, "surplus": 0, "grown": 0, "kept": 0},
    ]);
    assert_eq!(status["pools"], pools);
    assert_eq!(status["cpus"].as_array().unwrap().len(), 2);
    assert_eq!(plan(&agent, json!({"pages": 16})).await, [""; 0], "4 of the 20 are promised");
    let one_more = ["grow node0/2M: 32 pages -> 33 pages"];
    assert_eq!(plan(&agent, json!({"pages": 17})).await, one_more);
    assert_eq!(plan(&agent, json!({"pages": 17, "nodes": [0]})).await, one_more);
}

#[tokio::test]
async fn a_size_that_the_kernel_has_no_pool_of_is_refused_by_name() {
    let place = Place::on("no-1g").mounted();
    let agent = place.ready().await;
    let body = r#"{"hugepages":[{"pages":1,"sizeMib":1024}]}"#;
    let reply = agent.post("/v1/prepare?dryRun=true", body).await;
    reply.must_be_problem(422, "page-size-unsupported");
    let detail = reply.json()["detail"].as_str().unwrap().to_string();
    assert!(detail.contains("no pool of 1G pages (it has: 2M)"), "{detail}");
    assert!(detail.contains("pdpe1gb"), "what can be done: {detail}");
    assert_eq!(prepare(&agent, json!({"hugepages": [{"pages": 64}]})).await.1["outcome"], "holds");
}

#[tokio::test]
async fn a_node_that_is_not_there_is_refused_with_those_that_are() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let before = place.snapshot();
    let body = json!({"hugepages": [{"pages": 1, "nodes": [1, 7]}]});
    let reply = agent.post("/v1/prepare", &body.to_string()).await;
    reply.must_be_problem(422, "no-such-node");
    let detail = reply.json()["detail"].as_str().unwrap().to_string();
    assert!(detail.contains("on node7") && detail.contains("node0, node1"), "{detail}");
    before.must_be_what_is(&place);
}

// What would be done.

#[tokio::test]
async fn pages_are_wanted_free_and_promised_ones_are_not_free() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    // 100 and 300 are free, 40 of them promised.
    assert_eq!(plan(&agent, json!({"pages": 360})).await, [""; 0]);
    // The node with fewer free pages gets the one that is missing.
    let one = ["grow node0/2M: 512 pages -> 513 pages"];
    assert_eq!(plan(&agent, json!({"pages": 361})).await, one);
}

#[tokio::test]
async fn a_plan_spreads_pages_so_that_the_nodes_have_as_many_free() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    // 664 are missing: 532 free pages on each node then, 432 and 232 more than now.
    let spread = ["grow node0/2M: 512 pages -> 944 pages", "grow node1/2M: 600 pages -> 832 pages"];
    assert_eq!(plan(&agent, json!({"pages": 1024})).await, spread);
    let moving = json!({"pages": 1024, "moveShortfall": true});
    assert_eq!(plan(&agent, moving).await, spread, "nothing has come out short yet");
    let huge = json!({"pages": 4, "sizeMib": 1024});
    let expected = [
        "grow node0/1G: 2 pages -> 3 pages",
        "grow node1/1G: 0 pages -> 2 pages",
        "mount /dev/hugepages1g (pagesize=1G): absent -> mounted",
    ];
    assert_eq!(plan(&agent, huge).await, expected);
}

#[tokio::test]
async fn a_plan_for_given_nodes_touches_no_other() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    // 300 are free there, and what is promised can be had on the other node.
    let bound = ["grow node1/2M: 600 pages -> 800 pages"];
    assert_eq!(plan(&agent, json!({"pages": 500, "nodes": [1]})).await, bound);
    assert_eq!(plan(&agent, json!({"pages": 500, "nodes": [1, 1]})).await, bound);
    let both = plan(&agent, json!({"pages": 1024, "nodes": [1, 0]})).await;
    assert_eq!(both, plan(&agent, json!({"pages": 1024})).await);
    // Now only 10 of the 40 promised ones can be.
    place.write(&format!("{NODE0}/free_hugepages"), "10\n");
    let bound = ["grow node1/2M: 600 pages -> 830 pages"];
    assert_eq!(plan(&agent, json!({"pages": 500, "nodes": [1]})).await, bound);
}

#[tokio::test]
async fn pages_are_not_spread_over_nodes_without_processors() {
    let place = Place::on("two-node").mounted();
    place.write("sys/devices/system/node/has_cpu", "1\n");
    let agent = place.ready().await;
    let spread = ["grow node1/2M: 600 pages -> 800 pages"];
    assert_eq!(plan(&agent, json!({"pages": 500})).await, spread);
}

#[tokio::test]
async fn a_growth_that_leaves_too_little_memory_is_refused_with_the_numbers() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let before = place.snapshot();
    for query in ["", "?dryRun=true"] {
        let body = r#"{"hugepages":[{"pages":30000}]}"#;
        let reply = agent.post(&format!("/v1/prepare{query}"), body).await;
        assert_eq!(reply.code(), "memory-floor", "{}", reply.text());
        let detail = reply.json()["detail"].as_str().unwrap().to_string();
        // 29640 pages are missing; 5 % of 64256 MiB must remain.
        for part in [
            "14920 pages of 2M on node0",
            "14720 pages of 2M on node1",
            "59280 MiB",
            "51200 MiB",
            "3213 MiB",
        ] {
            assert!(detail.contains(part), "{part}: {detail}");
        }
        assert!(detail.contains("pools.floor_percent"), "what can be done: {detail}");
    }
    before.must_be_what_is(&place);
    let brave = Place::on("two-node")
        .mounted()
        .settings("[pools]\nfloor_percent = 0\nfloor_mib = 0\nmax_percent = 100\n");
    let agent = brave.ready().await;
    assert_eq!(plan(&agent, json!({"pages": 25000})).await.len(), 2);
}

#[tokio::test]
async fn a_mount_of_the_right_size_is_used_and_one_is_made_where_there_is_none() {
    let place = Place::on("two-node");
    let agent = place.ready().await;
    // The tree's mount table names it, but nothing is mounted there yet.
    let made = ["mount /dev/hugepages2m (pagesize=2M): absent -> mounted"];
    assert_eq!(plan(&agent, json!({"pages": 0})).await, made);
    let (status, first) = prepare(&agent, json!({"hugepages": [{"pages": 0}]})).await;
    assert_eq!(
        (status, &first["outcome"], steps(&first)),
        (200, &json!("changed"), made.map(String::from).to_vec())
    );
    assert_eq!(first["mounts"], json!(["/dev/hugepages2m"]));
    let (_, second) = prepare(&agent, json!({"hugepages": [{"pages": 0}]})).await;
    assert_eq!(
        (&second["outcome"], &second["mounts"]),
        (&json!("holds"), &json!(["/dev/hugepages2m"]))
    );
    let elsewhere = Place::on("no-1g").mounted();
    let agent = elsewhere.ready().await;
    let (_, report) = prepare(&agent, json!({"hugepages": [{"pages": 1}]})).await;
    assert_eq!(
        (&report["outcome"], &report["mounts"]),
        (&json!("holds"), &json!(["/dev/hugepages"]))
    );
}

// What is done, with a kernel that gives pages.

#[tokio::test]
async fn pages_grow_on_each_node_are_kept_over_a_restart_and_given_back_to_the_page() {
    let place = Place::on("two-node").mounted();
    let kernel = Kernel::serve(&place, &[(5000, 0), (5000, 0)]);
    let mut agent = place.ready().await;
    let body = json!({"hugepages": [{"pages": 1024}]});
    let (status, report) = prepare(&agent, body.clone()).await;
    assert_eq!((status, &report["outcome"]), (200, &json!("changed")), "{report}");
    let expected =
        ["grow node0/2M: 512 pages -> 944 pages", "grow node1/2M: 600 pages -> 832 pages"];
    assert_eq!(steps(&report), expected);
    assert_eq!(kernel.writes(), ["node0 nr 944", "node1 nr 832"]);
    // The 8 surplus pages of node1 are persistent now, and that is the agent's doing too.
    assert_eq!(grown(&agent).await, [432, 240]);
    let (_, again) = prepare(&agent, body).await;
    assert_eq!((&again["outcome"], steps(&again)), (&json!("holds"), vec![]));
    assert_eq!(agent.stop().await.code(), Some(0));

    let agent = place.ready().await;
    assert_eq!(grown(&agent).await, [432, 240]);
    assert_eq!(kernel.writes().len(), 2, "a restart writes nothing");
    let dry = agent.post("/v1/reclaim", r#"{"dryRun":true}"#).await.json();
    assert_eq!(dry["steps"].as_array().unwrap().len(), 2);
    let one = agent.post("/v1/reclaim", r#"{"node":1}"#).await.json();
    assert_eq!(steps(&one), ["giveBack node1/2M: 832 pages -> 592 pages"]);
    assert_eq!(one["remaining"], json!([{"size": "2M", "node": 0, "pages": 432}]));
    let rest = agent.post("/v1/reclaim", "").await.json();
    assert_eq!(steps(&rest), ["giveBack node0/2M: 944 pages -> 512 pages"]);
    assert_eq!(rest["remaining"], json!([]));
    assert_eq!(kernel.writes()[2..], ["node1 nr 592", "node0 nr 512"]);
    assert_eq!(grown(&agent).await, [0, 0]);
}

#[tokio::test]
async fn a_shortfall_names_node_wanted_and_got_and_gives_back_what_was_taken() {
    let place = Place::on("two-node").mounted();
    // node0 has nothing to give until it is compacted, and then 50 pages.
    let kernel = Kernel::serve(&place, &[(0, 50), (5000, 0)]);
    let agent = place.ready().await;
    let reply = agent.post("/v1/prepare", r#"{"hugepages":[{"pages":1024}]}"#).await;
    reply.must_be_problem(500, "pages-short");
    let problem = reply.json();
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("node0 gave 50 of 432 wanted pages of 2M"), "{detail}");
    assert!(detail.contains("the 290 pages that this call took were given back"), "{detail}");
    assert!(detail.contains("moveShortfall"), "what can be done: {detail}");
    let report = &problem["report"];
    assert_eq!(report["outcome"], "failed");
    let outcomes: Vec<_> =
        report["steps"].as_array().unwrap().iter().map(|step| step["outcome"].clone()).collect();
    assert_eq!(outcomes, ["short", "done", "done", "short", "done", "done"]);
    let expected = [
        "grow node0/2M: 512 pages -> 512 pages",
        "grow node1/2M: 600 pages -> 832 pages",
        "compact node0: fragmented -> compacted",
        "grow node0/2M: 512 pages -> 562 pages",
        "giveBack node0/2M: 562 pages -> 512 pages",
        "giveBack node1/2M: 832 pages -> 592 pages",
    ];
    assert_eq!(steps(report), expected);
    let writes = [
        "node0 nr 944",
        "node1 nr 832",
        "node0 compact",
        "node0 nr 944",
        "node0 nr 512",
        "node1 nr 592",
    ];
    assert_eq!(kernel.writes(), writes);
    assert_eq!(grown(&agent).await, [0, 0]);
    assert_eq!(place.read("proc/sys/vm/drop_caches"), "0\n", "the page cache is left alone");
}

#[tokio::test]
async fn the_page_cache_is_dropped_last_and_only_when_the_settings_allow_it() {
    let place = Place::on("two-node").mounted().settings("[pools]\ndrop_page_cache = true\n");
    let _kernel = Kernel::serve(&place, &[(0, 50), (5000, 0)]);
    let agent = place.ready().await;
    let (status, problem) =
        prepare(&agent, json!({"hugepages": [{"pages": 200, "nodes": [0]}]})).await;
    assert_eq!(status, 500);
    let names: Vec<_> = steps(&problem["report"])
        .iter()
        .map(|step| step.split(' ').next().unwrap().to_string())
        .collect();
    assert_eq!(names, ["grow", "compact", "grow", "dropPageCache", "grow", "giveBack"]);
    assert!(place.read("proc/sys/vm/drop_caches").starts_with('1'));
}

#[tokio::test]
async fn a_growth_that_came_out_short_is_kept_when_that_is_asked_for() {
    let place = Place::on("two-node").mounted();
    let kernel = Kernel::serve(&place, &[(0, 50), (5000, 0)]);
    let agent = place.ready().await;
    let body = json!({"hugepages": [{"pages": 1024}], "keepPartial": true});
    let (status, problem) = prepare(&agent, body).await;
    assert_eq!((status, &problem["code"]), (500, &json!("pages-short")));
    assert_eq!(kernel.writes().len(), 4, "nothing was given back: {:?}", kernel.writes());
    assert_eq!(grown(&agent).await, [50, 240]);
    assert_eq!(
        (
            number(&place, &format!("{NODE0}/nr_hugepages")),
            number(&place, &format!("{NODE1}/nr_hugepages"))
        ),
        (562, 832)
    );
}

#[tokio::test]
async fn another_node_gives_what_one_cannot_when_that_is_asked_for() {
    let place = Place::on("two-node").mounted();
    let kernel = Kernel::serve(&place, &[(0, 0), (5000, 0)]);
    let agent = place.ready().await;
    let body = json!({"hugepages": [{"pages": 1024, "moveShortfall": true}]});
    let (status, report) = prepare(&agent, body.clone()).await;
    assert_eq!((status, &report["outcome"]), (200, &json!("changed")), "{report}");
    // 100 on node0, so 964 with the promised ones on node1.
    assert_eq!(number(&place, &format!("{NODE1}/free_hugepages")), 964);
    assert_eq!(number(&place, &format!("{NODE0}/nr_hugepages")), 512);
    let writes = kernel.writes().len();
    let (_, again) = prepare(&agent, body).await;
    assert_eq!(again["outcome"], "holds");
    assert_eq!(kernel.writes().len(), writes);
}

#[tokio::test]
async fn pages_bound_to_a_full_node_come_from_another_one_only_when_that_is_asked_for() {
    let place = Place::on("two-node").mounted();
    let _kernel = Kernel::serve(&place, &[(0, 0), (5000, 0)]);
    let agent = place.ready().await;
    let (status, problem) =
        prepare(&agent, json!({"hugepages": [{"pages": 500, "nodes": [0]}]})).await;
    assert_eq!((status, &problem["code"]), (500, &json!("pages-short")));
    assert!(problem["detail"].as_str().unwrap().contains("node0 gave 0 of 400"), "{problem}");
    assert_eq!(number(&place, &format!("{NODE1}/nr_hugepages")), 600);
    let entry = json!({"pages": 500, "nodes": [0], "moveShortfall": true});
    let body = json!({"hugepages": [entry]});
    let (status, report) = prepare(&agent, body.clone()).await;
    assert_eq!((status, &report["outcome"]), (200, &json!("changed")));
    // The 300 that were free there are somebody else's.
    assert_eq!(number(&place, &format!("{NODE1}/free_hugepages")), 700);
    assert_eq!(prepare(&agent, body).await.1["outcome"], "holds");
}

#[tokio::test]
async fn what_was_grown_is_taken_again_after_a_reboot_on_the_same_nodes() {
    let place = Place::on("two-node").mounted();
    {
        let _kernel = Kernel::serve(&place, &[(5000, 0), (5000, 0)]);
        let mut agent = place.ready().await;
        prepare(&agent, json!({"hugepages": [{"pages": 1024}]})).await;
        assert_eq!(grown(&agent).await, [432, 240]);
        assert_eq!(agent.stop().await.code(), Some(0));
    }
    // After the boot the machine has what its command line says, and nobody uses any.
    place.write("proc/sys/kernel/random/boot_id", "77777777-0000-4000-8000-000000000001\n");
    for folder in [NODE0, NODE1] {
        place.write(&format!("{folder}/nr_hugepages"), "64\n");
        place.write(&format!("{folder}/free_hugepages"), "64\n");
        place.write(&format!("{folder}/surplus_hugepages"), "0\n");
    }
    let kernel = Kernel::serve(&place, &[(5000, 0), (5000, 0)]);
    let mut agent = place.ready().await;
    assert_eq!(kernel.writes(), ["node0 nr 496", "node1 nr 304"]);
    assert_eq!(grown(&agent).await, [432, 240]);
    assert_eq!(agent.stop().await.code(), Some(0));
    let agent = place.ready().await;
    assert_eq!(kernel.writes().len(), 2, "once a boot");
    let reclaimed = agent.post("/v1/reclaim", "{}").await.json();
    assert_eq!(reclaimed["remaining"], json!([]));
    assert_eq!(number(&place, &format!("{NODE0}/nr_hugepages")), 64);
}

#[tokio::test]
async fn a_node_that_cannot_give_its_pages_after_a_reboot_does_not_keep_the_agent_from_serving() {
    let place = Place::on("two-node").mounted();
    fs::create_dir_all(place.state()).unwrap();
    let wanted =
        json!([{"size": "2M", "node": 0, "pages": 100}, {"size": "2M", "node": 1, "pages": 100}]);
    fs::write(place.state().join("reservations.json"), wanted.to_string()).unwrap();
    let _kernel = Kernel::serve(&place, &[(10, 0), (5000, 0)]);
    let agent = place.ready().await;
    // The surplus pages of node1 are among them as soon as they are persistent.
    assert_eq!(grown(&agent).await, [10, 100]);
    agent.logged("hugepages were not all restored after the reboot").await;
    let log = agent.log();
    let line = log
        .lines()
        .find(|line| line.contains("hugepages were not all restored after the reboot"))
        .unwrap();
    assert!(line.contains("node0 gave 10 of 100"), "{line}");
    let kept = fs::read_to_string(place.state().join("reservations.json")).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&kept).unwrap(),
        wanted,
        "wanted at the next boot too"
    );
}

#[tokio::test]
async fn an_agent_killed_between_two_calls_knows_what_it_grew() {
    let place = Place::on("two-node").mounted();
    let _kernel = Kernel::serve(&place, &[(5000, 0), (5000, 0)]);
    let mut agent = place.ready().await;
    prepare(&agent, json!({"hugepages": [{"pages": 1024}]})).await;
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    agent.ended().await;
    let agent = place.ready().await;
    assert_eq!(grown(&agent).await, [432, 240]);
}

// What cannot be read or written.

#[tokio::test]
async fn a_read_only_sysfs_is_an_error_with_path_value_and_advice() {
    let place = Place::on("two-node").mounted();
    let sys = place.path("sys").display().to_string();
    let place = place.prelude(&format!(
        "mount --bind {sys} {sys} && mount -o remount,bind,ro {sys} || exit 98; "
    ));
    let agent = place.ready().await;
    let before = place.snapshot();
    let reply = agent.post("/v1/prepare", r#"{"hugepages":[{"pages":361}]}"#).await;
    reply.must_be_problem(500, "host-unwritable");
    let detail = reply.json()["detail"].as_str().unwrap().to_string();
    let expected = format!(
        "cannot write '513' to {sys}/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
    );
    assert!(detail.contains(&expected), "{detail}");
    assert!(detail.contains("read-only") && detail.contains("remount"), "{detail}");
    assert_eq!(grown(&agent).await, [0, 0]);
    before.must_be_what_is(&place);
    let held = prepare(&agent, json!({"hugepages": [{"pages": 360}]})).await.1;
    assert_eq!(held["outcome"], "holds", "what is there can still be told");
}

#[tokio::test]
async fn a_counter_that_is_garbage_is_named() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let counter = place.path(&format!("{NODE0}/free_hugepages"));
    place.write(&format!("{NODE0}/free_hugepages"), "many\n");
    let (status, problem) = prepare(&agent, json!({"hugepages": [{"pages": 10}]})).await;
    assert_eq!((status, &problem["code"]), (500, &json!("host-unreadable")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("{} holds 'many'", counter.display())), "{detail}");
}

#[tokio::test]
async fn a_missing_counter_is_named_and_the_rest_is_shown() {
    let place = Place::on("two-node").mounted();
    let counter = place.path(&format!("{NODE0}/free_hugepages"));
    fs::remove_file(&counter).unwrap();
    let agent = place.ready().await;
    let status = agent.get("/v1/node").await.json();
    assert_eq!(status["errors"][0]["code"], "host-unreadable");
    let text = status["errors"][0]["text"].as_str().unwrap();
    assert!(text.contains(&counter.display().to_string()), "{text}");
    assert_eq!(
        (&status["hostname"], status["cpus"].as_array().unwrap().len()),
        (&json!("compute-7"), 8)
    );
    place.write(&format!("{NODE0}/free_hugepages"), "100\n");
    let (_, report) = prepare(&agent, json!({"hugepages": [{"pages": 10}]})).await;
    assert_eq!(report["outcome"], "holds", "it goes on when the counter is back");
}

#[tokio::test]
async fn memory_information_without_what_is_available_or_free_stops_a_growth() {
    let place = Place::on("two-node").mounted();
    let agent = place.ready().await;
    let without: String = place
        .read("proc/meminfo")
        .lines()
        .filter(|line| !line.starts_with("MemAvailable") && !line.starts_with("MemFree"))
        .map(|line| format!("{line}\n"))
        .collect();
    place.write("proc/meminfo", &without);
    let before = place.snapshot();
    let (_, problem) = prepare(&agent, json!({"hugepages": [{"pages": 1024}]})).await;
    assert_eq!(problem["code"], "host-unreadable");
    assert!(problem["detail"].as_str().unwrap().contains("MemAvailable"), "{problem}");
    before.must_be_what_is(&place);
}

#[tokio::test]
async fn without_a_place_for_the_ledger_no_page_is_taken() {
    let place = Place::on("two-node").mounted();
    let kernel = Kernel::serve(&place, &[(5000, 0), (5000, 0)]);
    let agent = place.ready().await;
    let (away, run_away) = (place.folder().join("state.away"), place.folder().join("run.away"));
    fs::rename(place.state(), &away).unwrap();
    fs::rename(place.run_folder(), &run_away).unwrap();
    let (status, problem) = prepare(&agent, json!({"hugepages": [{"pages": 1024}]})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("state-unwritable")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("ledger.json") && detail.contains("then call again"), "{detail}");
    assert_eq!(kernel.writes(), [""; 0]);
    let connect = r#"{"hostUuid":"a","sendCommandUrl":"http://10.0.0.1/x"}"#;
    let result = agent.post("/host/connect", connect).await.json();
    assert_eq!((&result["success"], &result["code"]), (&json!(false), &json!("state-unwritable")));
    assert_eq!(agent.post("/host/ping", "").await.json()["hostUuid"], "", "it was not learnt");
    fs::rename(&run_away, place.run_folder()).unwrap();
    let (status, problem) = prepare(&agent, json!({"hugepages": [{"pages": 1024}]})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("state-unwritable")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("reservations.json"), "{detail}");
    assert!(detail.contains("the 672 pages that this call took were given back"), "{detail}");
    fs::rename(&away, place.state()).unwrap();
    let (status, _) = prepare(&agent, json!({"hugepages": [{"pages": 1024}]})).await;
    assert_eq!(status, 200, "it goes on when the place is back");
}

#[tokio::test]
async fn a_state_file_that_is_not_readable_is_set_aside_and_the_agent_starts() {
    let place = Place::on("two-node");
    let folders = [place.state(), place.run_folder(), place.state()];
    let files = ["controller", "ledger", "reservations"].into_iter().zip(folders);
    for (name, folder) in files.clone() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{name}.json")), "{\"half").unwrap();
    }
    let agent = place.ready().await;
    assert_eq!(agent.post("/host/ping", "").await.json()["hostUuid"], "");
    for (name, folder) in files {
        let aside = folder.join(format!("{name}.json.unusable"));
        assert_eq!(fs::read_to_string(&aside).unwrap(), "{\"half", "{name}");
    }
    until("each is in the log", async || {
        (agent.log().matches("was set aside").count() == 3).then_some(())
    })
    .await;
}
