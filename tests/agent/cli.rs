//! The command line: what it prints, how it exits, whom it asks.

use std::fs;
use std::process::Stdio;

use crate::support::gate::Gate;
use crate::support::kernel::Kernel;
use crate::support::{Ended, Place, soon};
use serde_json::json;

const HOLDS: Option<i32> = Some(0);
const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const WOULD_CHANGE: Option<i32> = Some(3);

// Exit codes.

#[tokio::test]
async fn plan_exits_0_when_it_holds_3_when_it_would_change_something_and_1_when_it_cannot() {
    let place = Place::on("two-node").mounted();
    let holds = place.run(&["plan", "--pages", "360"]).await;
    assert_eq!(holds.code, HOLDS, "{holds:?}");
    assert!(holds.out.contains("everything holds already"), "{}", holds.out);
    assert!(holds.out.contains("hugetlbfs: /dev/hugepages2m"), "{}", holds.out);
    let before = place.snapshot();
    let change = place.run(&["plan", "--pages", "1024"]).await;
    assert_eq!(change.code, WOULD_CHANGE, "{change:?}");
    for part in [
        "grow",
        "node0/2M",
        "512 pages",
        "944 pages",
        "node1/2M",
        "832 pages",
        "planned",
        "nothing was changed",
        "of 1024 free pages of 2 MiB, zbs-vhost takes about 200",
    ] {
        assert!(change.out.contains(part), "{part}: {}", change.out);
    }
    before.must_be_what_is(&place);
    let cannot = place.run(&["plan", "--pages", "30000"]).await;
    assert_eq!(cannot.code, FAILED, "{cannot:?}");
    assert!(cannot.out.contains("error (memory-floor)"), "{}", cannot.out);
    let size =
        Place::on("no-1g").mounted().run(&["plan", "--page-size", "1G", "--pages", "1"]).await;
    assert_eq!(size.code, FAILED, "{size:?}");
    assert!(size.out.contains("error (page-size-unsupported)"), "{}", size.out);
}

#[tokio::test]
async fn plan_and_prepare_take_sizes_nodes_and_a_default_from_the_settings() {
    let place = Place::on("two-node").mounted().settings("[pools]\ndefault_pages = 361\n");
    let plan = async |arguments: &[&str]| {
        let mut all = vec!["plan", "--output", "json"];
        all.extend(arguments);
        let ended = place.run(&all).await;
        let report = ended.json();
        let steps = report["steps"].as_array().unwrap().clone();
        let text = |step: &serde_json::Value| {
            format!("{} {}", step["subject"].as_str().unwrap(), step["after"].as_str().unwrap())
        };
        steps.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(plan(&[]).await, ["node0/2M 513 pages"]);
    assert_eq!(plan(&["--node", "1", "--pages", "500"]).await, ["node1/2M 800 pages"]);
    let both = plan(&["--node", "1", "--node", "0", "--pages", "1024"]).await;
    assert_eq!(both, ["node0/2M 944 pages", "node1/2M 832 pages"]);
    let gigantic = plan(&["--page-size", "1024M", "--pages", "2"]).await;
    assert_eq!(gigantic, ["node1/1G 1 pages", "/dev/hugepages1g (pagesize=1G) mounted"]);
}

#[tokio::test]
async fn prepare_exits_0_when_it_holds_now_and_1_when_it_does_not() {
    let place = Place::on("two-node").mounted();
    let kernel = Kernel::serve(&place, &[(432, 0), (5000, 0)]);
    let changed = place.run(&["prepare", "--pages", "1024"]).await;
    assert_eq!(changed.code, HOLDS, "{changed:?}");
    assert!(changed.out.contains("everything holds now"), "{}", changed.out);
    assert_eq!(kernel.writes(), ["node0 nr 944", "node1 nr 832"]);
    let holds = place.run(&["prepare", "--pages", "1024", "--output", "json"]).await;
    assert_eq!((holds.code, &holds.json()["outcome"]), (HOLDS, &json!("holds")));
    let short = place.run(&["prepare", "--pages", "2000"]).await;
    assert_eq!(short.code, FAILED, "{short:?}");
    assert!(
        short.out.contains("error (pages-short)") && short.out.contains("node0 gave 0 of 488"),
        "{}",
        short.out
    );
    let moved = place.run(&["prepare", "--pages", "2000", "--move-shortfall"]).await;
    assert_eq!(moved.code, HOLDS, "{moved:?}");
    let reclaimed = place.run(&["reclaim", "--node", "0", "--output", "json"]).await;
    assert_eq!(reclaimed.code, HOLDS, "{reclaimed:?}");
    assert_eq!(reclaimed.json()["steps"].as_array().unwrap().len(), 1);
    let rest = place.run(&["reclaim"]).await;
    assert!(rest.code == HOLDS && rest.out.contains("giveBack"), "{rest:?}");
    let nothing = place.run(&["reclaim"]).await;
    assert!(nothing.code == HOLDS && nothing.out.contains("nothing to give back"), "{nothing:?}");
}

#[tokio::test]
async fn pages_are_taken_again_at_boot_by_a_command() {
    let place = Place::on("two-node").mounted();
    fs::create_dir_all(place.state()).unwrap();
    let wanted = json!([{"size": "2M", "node": 0, "pages": 30}]);
    fs::write(place.state().join("reservations.json"), wanted.to_string()).unwrap();
    let kernel = Kernel::serve(&place, &[(30, 0), (0, 0)]);
    let restored = place.run(&["pools", "restore"]).await;
    assert_eq!(restored.code, HOLDS, "{restored:?}");
    assert_eq!(kernel.writes(), ["node0 nr 542"]);
    let again = place.run(&["pools", "restore"]).await;
    assert_eq!((again.code, kernel.writes().len()), (HOLDS, 1), "{again:?}");
    let more = json!([{"size": "2M", "node": 0, "pages": 31}]);
    fs::write(place.state().join("reservations.json"), more.to_string()).unwrap();
    let short = place.run(&["pools", "restore"]).await;
    assert_eq!(short.code, FAILED, "{short:?}");
    assert!(short.out.contains("pages-short"), "{}", short.out);
}

#[tokio::test]
async fn wrong_usage_exits_2_and_says_what_is_wrong() {
    let place = Place::on("two-node");
    let cases: &[(&[&str], &str)] = &[
        (&["plan", "--pages", "-1"], "-1"),
        (&["plan", "--pages", "many"], "many"),
        (&["plan", "--page-size", "3M"], "'3M' is not a page size"),
        (&["plan", "--page-size", "1G"], "--page-size 1G needs --pages"),
        (&["prepare", "--page-size", "64K"], "how many pages of 64K"),
        (&["prepare", "--node", "first"], "first"),
        (&["status", "--output", "xml"], "xml"),
        (&["frobnicate"], "frobnicate"),
        (&["serve", "--port", "7070"], "--port"),
        (&["status", "--listen", "7070"], "the flag --listen"),
        (&["pools"], "restore"),
        (&["config"], "show"),
    ];
    for (arguments, text) in cases {
        let ended = place.run(arguments).await;
        assert_eq!(ended.code, USAGE, "{arguments:?}: {ended:?}");
        assert!(ended.err.contains(text), "{arguments:?}: {}", ended.err);
        assert!(!place.state().exists(), "nothing was begun");
    }
    let help = place.run(&["--help"]).await;
    assert_eq!(help.code, HOLDS);
    assert!(help.out.contains("Exit codes: 0 it holds"), "{}", help.out);
    let version = place.run(&["--version"]).await;
    assert_eq!(version.out.trim(), format!("vhost-agent {}", env!("CARGO_PKG_VERSION")));
}

// Settings.

#[tokio::test]
async fn a_setting_that_is_unknown_or_wrong_is_refused_with_file_and_line() {
    let wrong = [
        (
            "[pools]\nfloor_mib = 1\nflor_percent = 1\n",
            "50-test.toml:3: unknown field `flor_percent`",
        ),
        ("[http]\nmax_tasks = \"many\"\n", "50-test.toml:2: invalid type"),
        ("[http]\nbody_timeout = \"soon\"\n", "50-test.toml:2: 'soon' is not a duration"),
        ("[http\n", "50-test.toml:1:"),
        ("[log]\nlevel = \"loud\"\n", "50-test.toml: log.level: 'loud' is no level or filter"),
        ("[callbacks]\nparallel = 0\n", "50-test.toml: callbacks.parallel: 0 is not between"),
    ];
    for (settings, text) in wrong {
        let place = Place::on("two-node").settings(settings);
        for command in [&["config", "check"][..], &["serve"], &["status"], &["plan"]] {
            let ended = place.run(command).await;
            assert_eq!(ended.code, USAGE, "{ended:?}");
            assert!(ended.err.contains(text), "{text}: {}", ended.err);
        }
        assert!(!place.state().exists(), "nothing was begun");
    }
}

#[tokio::test]
async fn a_settings_file_that_was_named_and_is_not_there_is_an_error() {
    let place = Place::on("two-node");
    fs::remove_file(place.config()).unwrap();
    let ended = place.run(&["config", "check"]).await;
    assert_eq!(ended.code, USAGE, "{ended:?}");
    assert!(
        ended.err.contains("cannot read the settings in") && ended.err.contains("config.toml"),
        "{}",
        ended.err
    );
}

#[tokio::test]
async fn settings_can_be_checked_and_shown_with_their_sources() {
    let place = Place::on("two-node").settings("[pools]\ndefault_pages = 77\n");
    let check = place.run(&["config", "check"]).await;
    assert_eq!(check.code, HOLDS, "{check:?}");
    assert!(check.out.contains("valid") && check.out.contains("50-test.toml"), "{}", check.out);
    let check = place.run(&["config", "check", "--output", "json"]).await.json();
    assert_eq!(check["valid"], true);
    let sources = check["sources"].as_array().unwrap();
    assert!(sources.iter().any(|source| source == "the flag --state-dir"), "{check}");
    let show = place.run(&["config", "show"]).await;
    assert!(show.code == HOLDS && show.out.contains("default_pages = 77"), "{show:?}");
    let other = Place::on("two-node");
    fs::write(other.config(), &show.out).unwrap();
    let again = other.run(&["config", "check"]).await;
    assert_eq!(again.code, HOLDS, "what is shown can be used: {again:?}");
    let json = place.run(&["config", "show", "--output", "json"]).await.json();
    assert_eq!(
        (&json["pools"]["default_pages"], &json["engine"]["manage"]),
        (&json!(77), &json!(false))
    );
    assert!(!place.state().exists(), "nothing was begun");
}

#[tokio::test]
async fn variables_win_over_files_and_flags_over_variables() {
    let place = Place::on("two-node")
        .settings("[pools]\ndefault_pages = 77\nfloor_mib = 5\n")
        .env("VHOST_AGENT_POOLS__DEFAULT_PAGES", "88")
        .env("VHOST_AGENT_LISTEN", "127.0.0.1:7001")
        .env("VHOST_AGENT_STATE_DIR", "/nowhere")
        .env("VHOST_AGENT_ENGINE__PACKAGES__APT", r#"[["docker.io"]]"#);
    let shown = place
        .run(&["config", "show", "--output", "json", "--listen", "127.0.0.1:7002"])
        .await
        .json();
    assert_eq!(
        (&shown["pools"]["default_pages"], &shown["pools"]["floor_mib"]),
        (&json!(88), &json!(5))
    );
    assert_eq!(shown["listen"], "127.0.0.1:7002");
    assert_eq!(shown["state_dir"], place.state().to_str().unwrap());
    assert_eq!(shown["engine"]["packages"]["apt"], json!([["docker.io"]]));
    for (name, value) in [
        ("VHOST_AGENT_POOLS__DEFAULT_PAGE", "1"),
        ("VHOST_AGENT_HTTP__MAX_TASKS", "many"),
        ("VHOST_AGENT_HTTP__MAX_TASKS", "0"),
        ("VHOST_AGENT_", "1"),
    ] {
        let ended = Place::on("two-node").env(name, value).run(&["config", "check"]).await;
        assert_eq!(ended.code, USAGE, "{name}={value}: {ended:?}");
        assert!(ended.err.contains(&format!("the variable {name}")), "{}", ended.err);
    }
}

// The agent that runs.

#[tokio::test]
async fn status_is_the_same_with_and_without_an_agent_that_runs() {
    let place = Place::on("two-node").mounted();
    let alone = place.run(&["status", "--output", "json"]).await;
    assert_eq!(alone.code, HOLDS, "{alone:?}");
    let table = place.run(&["status"]).await;
    for part in [
        "compute-7",
        "not running",
        "6.1.0-37-amd64",
        "node1",
        "/dev/hugepages2m",
        "40 of the free 2M pages are promised",
    ] {
        assert!(table.out.contains(part), "{part}: {}", table.out);
    }
    let agent = place.ready().await;
    let served = place.run(&["status", "--output", "json"]).await;
    assert_eq!(served.code, HOLDS, "{served:?}");
    let mut node = served.json();
    node.as_object_mut().unwrap().remove("access").expect("only one that runs can be called");
    assert_eq!(node, alone.json());
    assert_eq!(served.json(), agent.get("/v1/node").await.json());
    let table = place.run(&["status"]).await;
    assert!(table.out.contains("(running)"), "{}", table.out);
}

#[tokio::test]
async fn commands_go_to_the_agent_that_runs() {
    let place = Place::on("two-node").mounted();
    let kernel = Kernel::serve(&place, &[(5000, 0), (5000, 0)]);
    let agent = place.ready().await;
    // The commands' own root is another machine: what they tell can only come from the agent.
    let root = Place::on("no-1g");
    let run = async |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.arg("--output").arg("json");
        let words: Vec<_> = command
            .get_args()
            .map(|word| {
                if word == place.root().as_os_str() {
                    root.root().into_os_string()
                } else {
                    word.to_owned()
                }
            })
            .collect();
        let mut other = std::process::Command::new(command.get_program());
        other.args(words);
        Ended::of(other).await
    };
    assert_eq!(run(&["status"]).await.json()["hostname"], "compute-7");
    let plan = run(&["plan", "--pages", "1024"]).await;
    assert_eq!((plan.code, plan.json()["steps"].as_array().unwrap().len()), (WOULD_CHANGE, 2));
    let prepared = run(&["prepare", "--pages", "1024"]).await;
    assert_eq!(
        (prepared.code, &prepared.json()["outcome"]),
        (HOLDS, &json!("changed")),
        "{prepared:?}"
    );
    assert_eq!(kernel.writes().len(), 2);
    let node = agent.get("/v1/node").await.json();
    assert_eq!(node["totals"][0]["grown"], 672, "it is the agent's ledger");
    let refused = run(&["prepare", "--pages", "30000"]).await;
    assert_eq!(
        (refused.code, &refused.json()["errors"][0]["code"]),
        (FAILED, &json!("memory-floor"))
    );
    let reclaimed = run(&["reclaim"]).await;
    assert_eq!((reclaimed.code, &reclaimed.json()["remaining"]), (HOLDS, &json!([])));
    let restored = run(&["pools", "restore"]).await;
    assert_eq!(
        (restored.code, &restored.json()["outcome"]),
        (HOLDS, &json!("holds")),
        "{restored:?}"
    );
    assert_eq!(
        fs::read_to_string(
            root.path("sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages")
        )
        .unwrap(),
        "64\n"
    );
}

#[tokio::test]
async fn a_command_and_a_starting_agent_wait_until_another_command_is_done() {
    let place = Place::on("two-node").mounted();
    let mut gate = Gate::before_pools(&place);
    let mut first = tokio::process::Command::from(place.command(&["prepare", "--pages", "10"]));
    let first = first.kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
    gate.wait().await;
    let behind = async {
        let status = place.run(&["status"]);
        let prepare = place.run(&["prepare", "--pages", "9"]);
        tokio::join!(status, prepare, place.ready())
    };
    let open = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        gate.open().await;
    };
    let ((status, prepare, agent), ()) = tokio::join!(behind, open);
    assert_eq!((status.code, prepare.code), (HOLDS, HOLDS), "{status:?} {prepare:?}");
    let status = soon("the first ends", first.wait_with_output()).await.unwrap().status;
    assert_eq!(status.code(), HOLDS);
    drop(agent);
}

#[tokio::test]
async fn a_command_that_does_not_end_is_named_to_those_who_wait_for_it() {
    let place = Place::on("two-node").mounted();
    let mut gate = Gate::before_pools(&place);
    let mut first = tokio::process::Command::from(place.command(&["prepare", "--pages", "10"]));
    let _first = first.kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
    gate.wait().await;
    let (status, restore, serve) = tokio::join!(
        place.run(&["status"]),
        place.run(&["pools", "restore"]),
        place.run(&["serve"])
    );
    for ended in [status, restore, serve] {
        assert_eq!(ended.code, FAILED, "{ended:?}");
        assert!(ended.err.contains("held by another vhost-agent (pid"), "{}", ended.err);
    }
}

#[tokio::test]
async fn a_command_that_only_looks_makes_no_file_and_leaves_the_node_to_others() {
    let place = Place::on("two-node").mounted();
    for command in [&["status"][..], &["plan", "--pages", "10"], &["reclaim", "--dry-run"]] {
        let ended = place.run(command).await;
        assert_eq!(ended.code, HOLDS, "{ended:?}");
        assert!(!place.state().exists(), "{command:?} made the state folder");
    }
    let mut gate = Gate::before_pools(&place);
    let mut status = tokio::process::Command::from(place.command(&["status"]));
    let status = status.kill_on_drop(true).stdout(Stdio::piped()).spawn().unwrap();
    gate.wait().await;
    fs::create_dir_all(place.state()).unwrap();
    let lock = fs::File::create(place.state().join("lock")).unwrap();
    lock.try_lock().expect("the lock is free while a command looks");
    gate.open().await;
    assert!(soon("it ends", status.wait_with_output()).await.unwrap().status.success());
}

#[tokio::test]
async fn a_page_size_of_less_than_a_mib_is_answered_alike_here_and_by_an_agent() {
    let place = Place::on("two-node").mounted();
    let plan = ["plan", "--page-size", "64K", "--pages", "1"];
    let reclaim = ["reclaim", "--page-size", "64K"];
    let here = (place.run(&plan).await, place.run(&reclaim).await);
    assert_eq!(here.0.code, FAILED, "{here:?}");
    assert!(here.0.out.contains("page-size-unsupported") && here.0.out.contains("64K"), "{here:?}");
    assert_eq!(here.1.code, HOLDS, "{here:?}");
    let _agent = place.ready().await;
    let there = (place.run(&plan).await, place.run(&reclaim).await);
    assert_eq!((there.0.code, there.0.out), (here.0.code, here.0.out));
    assert_eq!((there.1.code, there.1.out), (here.1.code, here.1.out));
}

#[tokio::test]
async fn what_the_agent_calls_a_wrong_request_is_wrong_usage() {
    let place = Place::on("two-node").mounted();
    let _agent = place.ready().await;
    // The command's own list is shorter than what a shell takes.
    let nodes: Vec<String> =
        (0..1100).flat_map(|n| ["--node".to_string(), n.to_string()]).collect();
    let mut arguments = vec!["plan", "--pages", "1"];
    arguments.extend(nodes.iter().map(String::as_str));
    let ended = place.run(&arguments).await;
    assert_eq!(ended.code, USAGE, "{ended:?}");
    assert!(ended.err.contains("between 1 and 1024"), "{}", ended.err);
}

#[tokio::test]
async fn a_reader_that_went_away_is_no_failure() {
    let place = Place::on("two-node");
    for command in
        [&["config", "show"][..], &["config", "check"], &["config", "show", "--output", "json"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = tokio::process::Command::from(place.command(command));
        let child =
            command.kill_on_drop(true).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let ended = soon("it ends", child.wait_with_output()).await.unwrap();
        assert_eq!(ended.status.code(), HOLDS, "{}", String::from_utf8_lossy(&ended.stderr));
    }
}

#[tokio::test]
async fn an_agent_that_was_killed_is_not_taken_for_one_that_runs() {
    let place = Place::on("two-node").mounted();
    let mut agent = place.ready().await;
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    agent.ended().await;
    let status = place.run(&["status"]).await;
    assert!(status.code == HOLDS && status.out.contains("not running"), "{status:?}");
}

#[tokio::test]
async fn an_unreadable_node_is_reported_with_exit_code_1() {
    let place = Place::on("two-node");
    let online = place.path("sys/devices/system/cpu/online");
    fs::remove_file(&online).unwrap();
    let status = place.run(&["status"]).await;
    assert_eq!(status.code, FAILED, "{status:?}");
    assert!(status.out.contains(online.to_str().unwrap()), "{}", status.out);
    fs::remove_file(place.path("proc/sys/kernel/random/boot_id")).unwrap();
    let status = place.run(&["status"]).await;
    assert_eq!(status.code, FAILED, "{status:?}");
    assert!(status.err.contains("boot_id"), "{}", status.err);
}

#[tokio::test]
async fn doctor_exits_with_1_if_a_check_fails() {
    let place = Place::on("two-node").mounted();
    let states = |ended: &Ended| {
        let checks = ended.json()["checks"].as_array().unwrap().clone();
        let text = |it: &serde_json::Value| it.as_str().unwrap().to_string();
        let state =
            |it: &serde_json::Value| format!("{} {}", text(&it["check"]), text(&it["state"]));
        checks.iter().map(state).collect::<Vec<_>>()
    };
    let alone = place.run(&["doctor", "--output", "json"]).await;
    assert_eq!((alone.code, &alone.json()["outcome"]), (FAILED, &json!("fail")), "{alone:?}");
    assert!(states(&alone).contains(&"agent fail".to_string()), "{alone:?}");
    let _agent = place.ready().await;
    let well = place.run(&["doctor", "--output", "json"]).await;
    assert_eq!(well.code, HOLDS, "{well:?}");
    assert!(states(&well).contains(&"agent ok".to_string()), "{well:?}");
    assert!(states(&well).contains(&"prepare warn".to_string()), "{well:?}");
    place.write(
        "proc/meminfo",
        "MemTotal: 4194304 kB\nMemAvailable: 1024 kB\nHugepagesize: 2048 kB\n",
    );
    let scarce = place.run(&["doctor", "--output", "json"]).await;
    assert_eq!(scarce.code, HOLDS, "pages that nobody needs yet are no failure: {scarce:?}");
    assert!(scarce.out.contains("memory-floor"), "{scarce:?}");
    let shown = place.run(&["doctor"]).await;
    for part in ["ok   agent    runs", "warn prepare  (memory-floor) "] {
        assert!(shown.out.contains(part), "{part}: {}", shown.out);
    }
}
