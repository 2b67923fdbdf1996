//! Machines of the field, each a capture in `fixtures/nodes` with its source: what the agent sees there, what it would
//! prepare, and where it would deploy a target.

use crate::support::engine::noting_engine;
use crate::support::http::call;
use crate::support::{Agent, Place};
use serde_json::{Value, json};

/// A machine, and what the agent makes of it.
struct Machine {
    capture: &'static str,
    /// `true` if its 2 MiB pages are really mounted where the capture says so.
    mounted: bool,
    page_sizes: &'static [&'static str],
    /// 2 MiB pages of each node: all, and free ones.
    pools: &'static [(u32, u64, u64)],
    available_kib: u64,
    cpus: usize,
    isolated: &'static [u64],
    /// CPUs whose siblings are unknown.
    unknown: &'static [u64],
    mounts: &'static [(&'static str, &'static str)],
    findings: &'static [&'static str],
    prepares: &'static [Prepare],
    deploys: &'static [Deploy],
}

/// An entry of a prepare, its steps and the codes of its findings.
type Prepare = (&'static str, &'static [&'static str], &'static [&'static str]);
/// The body of a deploy, where its container would be made, and the codes of the findings.
type Deploy = (&'static str, &'static str, &'static [&'static str]);

const BASE: Machine = Machine {
    capture: "",
    mounted: true,
    page_sizes: &["2M"],
    pools: &[(0, 0, 0)],
    available_kib: 12_000_000,
    cpus: 4,
    isolated: &[],
    unknown: &[],
    mounts: &[("/dev/hugepages", "2M")],
    findings: &[],
    prepares: &[],
    deploys: &[],
};

const MACHINES: &[Machine] = &[
    Machine {
        capture: "memoryless",
        pools: &[(0, 0, 0), (1, 100, 60), (2, 100, 100), (3, 0, 0)],
        available_kib: 48_290_816,
        cpus: 16,
        prepares: &[
            (
                r#"{"pages": 300}"#,
                &["grow node1/2M: 100 pages -> 190 pages", "grow node2/2M: 100 pages -> 150 pages"],
                &[],
            ),
            (r#"{"pages": 170, "nodes": [0]}"#, &["grow node1/2M: 100 pages -> 110 pages"], &[]),
            (r#"{"pages": 110, "nodes": [2]}"#, &["grow node2/2M: 100 pages -> 110 pages"], &[]),
        ],
        deploys: &[
            (
                r#"{"kind": "spdk", "image": "zbs-vhost:1", "memoryMib": 128, "coreCount": 1}"#,
                "CPUs 12,13,36,37, memory of nodes 2",
                &[],
            ),
            (
                r#"{"kind": "spdk", "image": "zbs-vhost:1", "memoryMib": 300, "cores": "[18]"}"#,
                "CPUs 18,19,42,43, memory of nodes 1,2",
                &["memory-remote"],
            ),
        ],
        ..BASE
    },
    Machine {
        capture: "kernel-3-10",
        page_sizes: &["2M", "1G"],
        pools: &[(0, 256, 200)],
        // MemFree, and half of what files and slabs can give up.
        available_kib: 20_000_000 + (2_032_844 + 1_175_016 + 402_116) / 2,
        cpus: 8,
        isolated: &[3, 7],
        mounts: &[("/dev/hugepages", "2M"), ("/mnt/huge1g", "1G")],
        prepares: &[
            (r#"{"pages": 300}"#, &["grow node0/2M: 256 pages -> 356 pages"], &[]),
            (r#"{"pages": 300, "nodes": [1]}"#, &["grow node0/2M: 256 pages -> 356 pages"], &[]),
        ],
        deploys: &[
            (r#"{"kind": "built-in", "coreCount": 1}"#, "CPUs 5, memory of nodes 0", &[]),
            (
                r#"{"kind": "built-in", "cores": "[6]"}"#,
                "CPUs 6, memory of nodes 0",
                &["memory-remote"],
            ),
        ],
        ..BASE
    },
    Machine {
        capture: "topology-gaps",
        cpus: 8,
        unknown: &[7],
        prepares: &[(r#"{"pages": 10}"#, &["grow node0/2M: 0 pages -> 10 pages"], &[])],
        deploys: &[
            (r#"{"kind": "built-in", "coreCount": 2}"#, "CPUs 5,6, memory of nodes 0", &[]),
            (r#"{"kind": "built-in", "cores": "[7]"}"#, "CPUs 7, memory of nodes 0", &[]),
        ],
        ..BASE
    },
    Machine {
        capture: "dies",
        available_kib: 60_000_000,
        cpus: 8,
        deploys: &[(
            r#"{"kind": "built-in", "coreCount": 4}"#,
            "CPUs 1,3,5,7, memory of nodes 0",
            &[],
        )],
        ..BASE
    },
    Machine {
        capture: "odd-names",
        page_sizes: &["2M", "1G"],
        pools: &[(0, 64, 64)],
        mounts: &[("/mnt/huge 2m", "2M"), ("/mnt/huge\\1g", "1G"), ("/mnt/\u{fffd}tab\t", "1G")],
        prepares: &[(r#"{"pages": 10}"#, &[], &[])],
        deploys: &[(r#"{"kind": "built-in", "coreCount": 1}"#, "CPUs 1, memory of nodes 0", &[])],
        ..BASE
    },
    Machine {
        capture: "pages-64k",
        mounted: false,
        page_sizes: &["2M", "512M", "16G"],
        available_kib: 121_000_000,
        mounts: &[],
        findings: &["default-pages-unmounted"],
        prepares: &[(
            r#"{"pages": 10}"#,
            &[
                "grow node0/2M: 0 pages -> 10 pages",
                "mount /dev/hugepages512m (pagesize=512M): absent -> mounted",
                "mount /dev/hugepages2m (pagesize=2M): absent -> mounted",
            ],
            &[],
        )],
        deploys: &[(r#"{"kind": "built-in", "coreCount": 1}"#, "CPUs 3, memory of nodes 0", &[])],
        ..BASE
    },
    Machine {
        capture: "cpus-512",
        pools: &[
            (0, 64, 64),
            (1, 64, 64),
            (2, 64, 64),
            (3, 64, 64),
            (4, 64, 64),
            (5, 64, 64),
            (6, 64, 64),
            (7, 64, 64),
        ],
        available_kib: 1_510_000_000,
        cpus: 512,
        prepares: &[(
            r#"{"pages": 576, "nodes": [2, 7]}"#,
            &["grow node2/2M: 64 pages -> 288 pages", "grow node7/2M: 64 pages -> 288 pages"],
            &[],
        )],
        deploys: &[
            (
                r#"{"kind": "built-in", "coreCount": 4}"#,
                "CPUs 508,509,510,511, memory of nodes 7",
                &[],
            ),
            (
                r#"{"kind": "built-in", "cores": "[300,301]"}"#,
                "CPUs 300,301, memory of nodes 1",
                &[],
            ),
        ],
        ..BASE
    },
    Machine {
        capture: "remounted",
        mounted: false,
        page_sizes: &["2M", "1G"],
        available_kib: 52_428_800,
        mounts: &[("/dev/hugepages", "1G")],
        findings: &["default-pages-unmounted"],
        prepares: &[(
            r#"{"pages": 10}"#,
            &[
                "grow node0/2M: 0 pages -> 10 pages",
                "mount /dev/hugepages2m (pagesize=2M): absent -> mounted",
            ],
            &["guest-pages-change"],
        )],
        ..BASE
    },
];

/// One field of each element of a list.
fn each<T>(list: &Value, field: impl Fn(&Value) -> T) -> Vec<T> {
    list.as_array().unwrap_or_else(|| panic!("{list}")).iter().map(field).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn codes(report: &Value) -> Vec<&str> {
    report["findings"].as_array().into_iter().flatten().map(|it| text(&it["code"])).collect()
}

/// Ids of the CPUs for which that holds.
fn cpus(status: &Value, is: impl Fn(&Value) -> bool) -> Vec<u64> {
    let cpus = status["cpus"].as_array().unwrap().iter().filter(|cpu| is(cpu));
    cpus.map(|cpu| cpu["id"].as_u64().unwrap()).collect()
}

async fn see(machine: &Machine, agent: &Agent) {
    let name = machine.capture;
    let status = agent.get("/v1/node").await.json();
    assert_eq!(status["errors"], json!([]), "{name}");
    assert_eq!(each(&status["pageSizes"], |it| text(it).to_string()), machine.page_sizes, "{name}");
    let pool = |it: &Value| {
        let number = |field: &str| it[field].as_u64().unwrap();
        (text(&it["size"]) == "2M")
            .then(|| (number("node") as u32, number("total"), number("free")))
    };
    let pools: Vec<_> = each(&status["pools"], pool).into_iter().flatten().collect();
    assert_eq!(pools, machine.pools, "{name}");
    assert_eq!(status["memory"]["availableKib"], machine.available_kib, "{name}");
    assert_eq!(status["cpus"].as_array().unwrap().len(), machine.cpus, "{name}");
    assert_eq!(cpus(&status, |cpu| cpu["isolated"] == true), machine.isolated, "{name}");
    assert_eq!(cpus(&status, |cpu| cpu["siblings"] == json!([])), machine.unknown, "{name}");
    let mounts = each(&status["mounts"], |it| {
        (text(&it["path"]).to_string(), text(&it["pageSize"]).to_string())
    });
    let expected = machine.mounts.iter().map(|(path, size)| (path.to_string(), size.to_string()));
    assert_eq!(mounts, expected.collect::<Vec<_>>(), "{name}");
    assert_eq!(codes(&status), machine.findings, "{name}");
}

async fn prepare(machine: &Machine, agent: &Agent) {
    for (entry, steps, findings) in machine.prepares {
        let about = format!("{}: {entry}", machine.capture);
        let body = format!(r#"{{"hugepages": [{entry}]}}"#);
        let report = agent.post("/v1/prepare?dryRun=true", &body).await.json();
        let step = |it: &Value| {
            let [step, on, before, after] =
                ["step", "subject", "before", "after"].map(|field| text(&it[field]));
            format!("{step} {on}: {before} -> {after}")
        };
        assert_eq!(each(&report["steps"], step), *steps, "{about}");
        assert_eq!(codes(&report), *findings, "{about}");
    }
}

async fn deploy(machine: &Machine, agent: &Agent) {
    for (body, place, findings) in machine.deploys {
        let about = format!("{}: {body}", machine.capture);
        let path = "/v1/targets/a?dryRun=true";
        let report = call(agent.address, "PUT", path, &[], body).await.json();
        let steps = report["steps"].as_array().unwrap_or_else(|| panic!("{about}: {report}"));
        let made = steps.iter().find(|step| step["step"] == "createContainer").unwrap();
        assert_eq!(made["after"], *place, "{about}");
        assert_eq!(codes(&report), *findings, "{about}");
    }
}

#[tokio::test]
async fn machines_of_the_field_are_seen_prepared_and_deployed_to() {
    for machine in MACHINES {
        let place = Place::on(machine.capture).settings("engine.socket = \"/run/docker.sock\"\n");
        let place = if machine.mounted { place.mounted() } else { place };
        let _changes = noting_engine(&place);
        let agent = place.ready().await;
        see(machine, &agent).await;
        prepare(machine, &agent).await;
        deploy(machine, &agent).await;
        let shown = place.run(&["status"]).await;
        assert_eq!(shown.code, Some(0), "{}: {shown:?}", machine.capture);
        let cpus = format!("cpus     {} online", machine.cpus);
        assert!(shown.out.contains(&cpus), "{}: {}", machine.capture, shown.out);
    }
}
