//! Every situation that a target can be found in.

use super::*;
use crate::model::bounds::{Links, ResolvedPath};
use crate::model::container::{ContainerSpec, ISOLATION_LABEL, SPEC_LABEL};
use crate::model::cpu::{Cpu, CpuUse, Holder, HolderKind};
use crate::model::image::Download;
use crate::model::step::ImageSource;
use crate::model::target::{CoreRequest, TargetKind, Trial};
use crate::model::units::NumaNode;
use crate::plan::replacement::bring_back;

fn policy() -> TargetPolicy {
    let mut policy = TargetPolicy::example();
    policy.target.socket_dir = spec().socket_dir;
    policy
}

/// A look that has followed those paths.
fn led(paths: &[(&str, &str)]) -> Links {
    let led = |path: &str| ResolvedPath { path: path.parse().unwrap(), is_block_device: false };
    paths.iter().map(|(path, to)| (path.parse().unwrap(), led(to))).collect()
}

fn spec() -> TargetSpec {
    TargetSpec {
        name: "zbs-vhost".parse().unwrap(),
        kind: TargetKind::Zbs,
        image: Some("zbs/vhost:1".into()),
        image_tar: None,
        image_url: None,
        image_sha256: None,
        cores: CoreRequest::Count(1),
        socket_dir: "/var/tmp/vhost-sockets".parse().unwrap(),
        control_sock: "/var/tmp/vhost-sockets/vhost.sock".parse().unwrap(),
        client_conf: Some("/etc/zbs/client.conf".parse().unwrap()),
        memory_mib: 512,
        memory_by_volumes: false,
    }
}

fn seen() -> TargetSeen {
    let cpu = |id| Cpu {
        id,
        node: NumaNode(0),
        core: id,
        package: 0,
        siblings: vec![id],
        isolated: false,
    };
    TargetSeen {
        has_image: true,
        built_in_image: "vhost-agent-target:1".into(),
        huge_dir: Some("/dev/hugepages2m".into()),
        cpus: vec![cpu(0), cpu(1)],
        ..TargetSeen::default()
    }
}

/// The label of a container that is isolated as the policy says.
fn isolation_label() -> (String, String) {
    let labels = made(&ensured(&spec(), LEAVE, &seen()).unwrap()).labels.clone();
    (ISOLATION_LABEL.to_string(), labels[ISOLATION_LABEL].clone())
}

/// A container made for `made_for`, or by somebody else.
fn with_container(made_for: Option<&TargetSpec>, running: bool, serves: bool) -> TargetSeen {
    let label = |spec| (SPEC_LABEL.to_string(), serde_json::to_string(spec).unwrap());
    let container = ContainerSeen {
        id: "c0ffee".into(),
        running,
        pid: running.then_some(77),
        exit_code: (!running).then_some(1),
        oom_killed: false,
        image_id: "sha256:1".into(),
        labels: made_for.into_iter().flat_map(|spec| [label(spec), isolation_label()]).collect(),
        error: String::new(),
        restarts: None,
    };
    let version = serves.then(|| "SPDK v24.01".to_string());
    TargetSeen { container: Some(container), version, sessions: Some(0), ..seen() }
}

fn ensured(spec: &TargetSpec, wish: EnsureOptions, seen: &TargetSeen) -> Result<TargetPlan, Fault> {
    ensure(spec, wish, seen, &policy())
}

fn names(plan: &TargetPlan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::name).collect()
}

const RECREATE: EnsureOptions =
    EnsureOptions { recreate: true, force: false, anew: false, recovers: false };
const LEAVE: EnsureOptions =
    EnsureOptions { recreate: false, force: false, anew: false, recovers: false };
const RECOVER: EnsureOptions = EnsureOptions { recovers: true, ..LEAVE };
const UP: [&str; 4] = ["prepareSockets", "createContainer", "startContainer", "awaitTarget"];

fn made(plan: &TargetPlan) -> &ContainerSpec {
    let made = plan.steps.iter().find_map(|step| match step {
        Step::CreateContainer(spec) => Some(spec),
        _ => None,
    });
    made.expect("a container that is made")
}

#[test]
fn on_an_empty_node_it_is_brought_up_with_no_more_than_it_needs() {
    let plan = ensured(&spec(), LEAVE, &seen()).unwrap();
    assert_eq!(names(&plan), UP);
    let made = made(&plan);
    let command = "/vhost -m [1] -S /var/tmp/vhost-sockets -r /var/tmp/vhost-sockets/vhost.sock";
    assert_eq!(made.command.join(" "), command, "-z goes with the file that is not there");
    assert_eq!(
        (made.capabilities.as_slice(), made.privileged),
        (&["SYS_NICE".to_string()][..], false)
    );
    assert_eq!((made.cpus.as_deref(), made.memory_nodes.as_deref()), (Some("0,1"), Some("0")));
    let binds: Vec<&str> = made.binds.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(binds, ["/var/tmp/vhost-sockets", "/dev/hugepages2m", "/opt"]);
    let conf = TargetSeen { has_client_conf: true, ..seen() };
    let plan = ensured(&spec(), LEAVE, &conf).unwrap();
    let made = super::tests::made(&plan);
    assert!(made.command.ends_with(&["-z".into(), "/etc/zbs/client.conf".into()]));
    assert!(made.binds.contains(&("/etc/zbs/client.conf".into(), true)));
}

#[test]
fn its_memory_comes_from_a_node_that_can_give_it() {
    let spec = TargetSpec { kind: TargetKind::Spdk, memory_mib: 512, ..spec() };
    let on = |node| {
        let cpu = |id| Cpu { id, node: NumaNode(node), ..seen().cpus[0].clone() };
        [cpu(node * 4 + 1), cpu(node * 4 + 2)]
    };
    let with = |pages: [u64; 2], returning_pages| TargetSeen {
        cpus: [on(0), on(1)].concat(),
        free_pages: [(NumaNode(0), pages[0]), (NumaNode(1), pages[1])].into(),
        returning_pages,
        ..seen()
    };
    let nodes = |seen: &TargetSeen| {
        let plan = ensured(&spec, LEAVE, seen)?;
        Ok::<_, Fault>(made(&plan).memory_nodes.clone().unwrap())
    };
    assert_eq!(nodes(&with([0, 256], 0)).unwrap(), "1");
    assert_eq!(nodes(&with([256, 255], 0)).unwrap(), "0", "whichever has it");
    assert_eq!(nodes(&with([128, 128], 128)).unwrap(), "1", "with what comes back before it");
    let fault = nodes(&with([128, 128], 0)).unwrap_err();
    assert_eq!(fault.code, Code::MemoryImpossible);
    for words in ["256 pages", "node0 has 128", "node1 has 128", "memory_mib"] {
        assert!(fault.text.contains(words), "{fault}");
    }
    // What runs already has to come back as well as it can.

    let plan = ensured(&spec, RECOVER, &with([128, 128], 0)).unwrap();
    assert!(plan.findings.iter().any(|finding| finding.code == Code::MemoryImpossible));
    assert_eq!(nodes(&seen()).unwrap(), "0", "nobody could tell what is free");
}

#[test]
fn a_word_that_cannot_be_filled_goes_with_its_flag_and_no_other() {
    let spec = TargetSpec { kind: TargetKind::Spdk, memory_mib: 0, ..spec() };
    let plan = ensured(&spec, LEAVE, &TargetSeen { huge_dir: None, ..seen() }).unwrap();
    assert_eq!(made(&plan).command.join(" "), "vhost -m [1] --last");
}

#[test]
fn all_hurdles_of_a_deploy_are_named_at_once() {
    let cores = CoreRequest::These("[98,99]".parse().unwrap());
    let spec = TargetSpec { image: None, cores, ..spec() };
    let blocked = TargetSeen { socket_obstacle: Some("/s is a file".into()), ..seen() };
    let fault = ensured(&spec, LEAVE, &blocked).unwrap_err();
    assert_eq!(fault.code, Code::CoresImpossible);
    for hurdle in ["98", "no image was named", "/s is a file"] {
        assert!(fault.text.contains(hurdle), "{hurdle}: {}", fault.text);
    }
}

#[test]
fn an_image_that_is_not_there_comes_from_where_it_is_said_to_be() {
    let without = TargetSeen { has_image: false, ..seen() };
    assert_eq!(ensured(&spec(), LEAVE, &without).unwrap_err().code, Code::ImageMissing);
    let tar = TargetSpec { image_tar: Some("/opt/zbs/vhost.tar".parse().unwrap()), ..spec() };
    let unseen = ensured(&tar, LEAVE, &without).unwrap_err();
    assert_eq!(unseen.code, Code::PathNotAllowed, "nobody knows what it leads to");
    assert_eq!(names(&ensured(&tar, LEAVE, &seen()).unwrap()), UP, "it is not opened");
    let links = led(&[("/opt/zbs/vhost.tar", "/opt/zbs/1/vhost.tar")]);
    let without = TargetSeen { links: links.clone(), ..without };
    let seen = || TargetSeen { links: links.clone(), ..seen() };
    assert_eq!(names(&ensured(&tar, LEAVE, &without).unwrap())[0], "loadImage");
    assert_eq!(names(&ensured(&tar, LEAVE, &seen()).unwrap()), UP, "it is there");
    for (image, sources) in [
        ("registry.example:5000/zbs/vhost:1", vec![ImageSource::Registry]),
        ("localhost/vhost", vec![ImageSource::Registry]),
        ("10.0.0.1/vhost", vec![ImageSource::Registry]),
        ("zbs/vhost:1", vec![]),
        ("vhost:1.0", vec![]),
    ] {
        assert_eq!(
            super::super::container::sources(&spec(), image, &TargetSeen::default()),
            sources,
            "{image}"
        );
    }
    let both = super::super::container::sources(&tar, "localhost/vhost", &seen());
    let opened = ImageSource::Tar("/opt/zbs/1/vhost.tar".into());
    assert_eq!(both, [ImageSource::Registry, opened.clone()], "what was judged is opened");
    let url: crate::model::image::ImageUrl = "https://files.example/vhost.tar".parse().unwrap();
    let all = TargetSpec { image_url: Some(url.clone()), ..tar.clone() };
    let download = ImageSource::Url(Download { url, sha256: None });
    let all = super::super::container::sources(&all, "localhost/vhost", &seen());
    assert_eq!(all, [ImageSource::Registry, opened, download], "an address comes last");
    let own = TargetSpec { kind: TargetKind::BuiltIn, image: None, ..spec() };
    let plan = ensured(&own, LEAVE, &without).unwrap();
    assert_eq!(
        (names(&plan)[0], made(&plan).image.as_str()),
        ("loadImage", "vhost-agent-target:1")
    );
    let unnamed = TargetSpec { image: None, ..spec() };
    assert_eq!(ensured(&unnamed, LEAVE, &seen()).unwrap_err().code, Code::ImageMissing);
}

#[test]
fn links_that_lead_out_of_what_callers_may_name_are_refused_but_what_comes_back_is_not() {
    let sockets = "/s/a";
    let control = format!("{sockets}/vhost.sock");
    let spec = TargetSpec {
        socket_dir: sockets.parse().unwrap(),
        control_sock: control.parse().unwrap(),
        ..spec()
    };
    let looked = |to: &str| TargetSeen {
        links: led(&[(sockets, to), (&control, &format!("{to}/vhost.sock"))]),
        socket_doubt: (to != sockets).then(|| format!("{to} belongs to the user 7")),
        ..seen()
    };
    assert_eq!(names(&ensured(&spec, LEAVE, &looked(sockets)).unwrap()), UP);
    for to in ["/root", "/etc/zbs", "/run", "/srv/other"] {
        for wish in [LEAVE, RECREATE] {
            let fault = ensured(&spec, wish, &looked(to)).unwrap_err();
            assert_eq!(fault.code, Code::PathNotAllowed, "{to}");
            assert!(!fault.text.contains(to), "it tells nothing of what is there: {fault}");
        }
        let plan = ensured(&spec, RECOVER, &looked(to)).unwrap();
        assert_eq!((names(&plan), plan.findings.len()), (UP.to_vec(), 2), "{to}");
        assert_eq!(plan.findings[0].code, Code::PathNotAllowed);
    }
    // Such as it was desired before there were bounds.
    let outside = TargetSpec {
        socket_dir: "/srv/s".parse().unwrap(),
        control_sock: "/srv/s/vhost.sock".parse().unwrap(),
        ..spec
    };
    assert_eq!(ensured(&outside, LEAVE, &seen()).unwrap_err().code, Code::PathNotAllowed);
    let known = TargetSeen { known: Some(outside.clone()), ..seen() };
    assert_eq!(names(&ensured(&outside, RECREATE, &known).unwrap()), UP);
    assert_eq!(names(&ensured(&outside, RECOVER, &seen()).unwrap()), UP);
}

#[test]
fn a_serving_target_is_left_alone_and_its_drift_is_told() {
    let plan = ensured(&spec(), LEAVE, &with_container(Some(&spec()), true, true)).unwrap();
    assert_eq!((plan.steps.len(), plan.findings.len(), plan.drift.len()), (0, 0, 0));
    let other = TargetSpec { memory_mib: 1024, ..spec() };
    let drifted = with_container(Some(&other), true, true);
    let plan = ensured(&spec(), LEAVE, &drifted).unwrap();
    assert_eq!((plan.steps.len(), plan.findings[0].code), (0, Code::TargetDrift));
    assert!(plan.findings[0].text.contains("memoryMib is 1024, wanted 512"), "{:?}", plan.findings);
    let plan = ensured(&spec(), RECREATE, &drifted).unwrap();
    let exchange = [
        "createContainer",
        "stopContainer",
        "renameContainer",
        "prepareSockets",
        "renameContainer",
        "startContainer",
        "awaitTarget",
    ];
    assert_eq!(names(&plan), exchange, "the new one is made before the old one stops");
    assert_eq!(plan.exchanged(), Some("c0ffee"));
    assert_eq!(made(&plan).name, "zbs-vhost.next");
    let tar = TargetSpec { image_tar: Some("/opt/zbs/vhost.tar".parse().unwrap()), ..spec() };
    let links = led(&[("/opt/zbs/vhost.tar", "/opt/zbs/vhost.tar")]);
    let without = TargetSeen { has_image: false, links, ..drifted.clone() };
    let plan = ensured(&tar, RECREATE, &without).unwrap();
    assert_eq!(
        names(&plan)[..3],
        ["loadImage", "createContainer", "stopContainer"],
        "what serves goes last"
    );
    let elsewhere = with_container(Some(&tar), true, true);
    let plan = ensured(&spec(), RECREATE, &elsewhere).unwrap();
    assert_eq!(names(&plan), [""; 0], "where its image came from is no difference");
    let same = with_container(Some(&spec()), true, true);
    assert_eq!(names(&ensured(&spec(), RECREATE, &same).unwrap()), [""; 0], "nothing differs");
}

/// The containers of a target and beside it, by their ids.
fn with_beside(named: Option<(&str, bool)>, beside: &[(&str, &str)]) -> TargetSeen {
    let container = |id: &str, running| {
        let seen = with_container(Some(&spec()), running, running).container.unwrap();
        ContainerSeen { id: id.into(), ..seen }
    };
    let beside = beside.iter().map(|(end, id)| (format!("zbs-vhost.{end}"), container(id, false)));
    TargetSeen {
        container: named.map(|(id, running)| container(id, running)),
        beside: beside.collect(),
        ..TargetSeen::default()
    }
}

#[test]
fn the_old_one_comes_back_from_wherever_the_exchange_ended() {
    let trial = Trial { old: Some(spec()), id: "old".into(), served: Vec::new(), restarts: None };
    let back = |named, beside: &[(&str, &str)]| {
        let seen = with_beside(named, beside);
        let back = bring_back(&spec().name, &trial, &seen, &policy()).unwrap().unwrap();
        let told = |step: &Step| match step {
            Step::StopContainer { id, .. } => format!("stop {id}"),
            Step::RemoveContainer { id, .. } => format!("remove {id}"),
            Step::RenameContainer { id, to, .. } => format!("{} is {to}", id.clone().unwrap()),
            other => other.name().to_string(),
        };
        [back.moves, back.starts, back.clears]
            .map(|it| it.iter().map(told).collect::<Vec<_>>().join(", "))
    };
    let start = "prepareSockets, startContainer, awaitTarget";
    assert_eq!(back(Some(("old", true)), &[]), ["", "", ""], "it was not even stopped");
    assert_eq!(back(Some(("old", true)), &[("next", "new")]), ["", "", "remove new"]);
    assert_eq!(back(Some(("old", false)), &[("next", "new")]), ["", start, "remove new"]);
    let between = back(None, &[("next", "new"), ("previous", "old")]);
    assert_eq!(between, ["old is zbs-vhost", start, "remove new"]);
    let replaced = back(Some(("new", true)), &[("previous", "old")]);
    let moves = "stop new, new is zbs-vhost.next, old is zbs-vhost";
    assert_eq!(replaced, [moves, start, "remove new"]);
}

#[test]
fn nothing_of_somebody_else_is_moved_for_an_exchange() {
    let trial = Trial { old: None, id: "old".into(), served: Vec::new(), restarts: None };
    let mut seen = with_beside(Some(("new", true)), &[("previous", "old")]);
    let back = |seen: &TargetSeen| bring_back(&spec().name, &trial, seen, &policy());
    seen.container.as_mut().unwrap().labels.clear();
    assert_eq!(back(&seen).unwrap_err().code, Code::ContainerNotOurs);
    seen.beside.clear();
    assert_eq!(back(&seen), Ok(None), "it cannot come back");

    let other = TargetSpec { memory_mib: 1024, ..spec() };
    let serving = with_container(Some(&other), true, true);
    let mut seen = TargetSeen { beside: with_beside(None, &[("next", "left")]).beside, ..serving };
    let plan = ensured(&spec(), RECREATE, &seen).unwrap();
    assert_eq!(names(&plan)[..2], ["removeContainer", "createContainer"], "it is the agent's own");
    seen.beside[0].1.labels.clear();
    assert_eq!(ensured(&spec(), RECREATE, &seen).unwrap_err().code, Code::ContainerNotOurs);
    let destroyed = destroy(&spec(), true, &seen, &policy()).unwrap();
    assert_eq!(names(&destroyed), ["stopContainer", "removeContainer"], "and it stays");
}

#[test]
fn sockets_of_connected_machines_stay_in_their_folder() {
    let moved = TargetSpec { socket_dir: "/elsewhere".parse().unwrap(), ..spec() };
    let used = TargetSeen { sessions: Some(1), ..with_container(Some(&moved), true, true) };
    let force = EnsureOptions { force: true, ..RECREATE };
    let fault = ensured(&spec(), force, &used).unwrap_err();
    assert!(fault.code == Code::TargetInUse && fault.text.contains("/elsewhere"), "{}", fault.text);
    assert!(ensured(&spec(), force, &TargetSeen { sessions: Some(0), ..used }).is_ok());
}

#[test]
fn with_machines_connected_it_is_replaced_only_when_insisted_on() {
    let other = TargetSpec { memory_mib: 1024, ..spec() };
    let used = TargetSeen { sessions: Some(2), ..with_container(Some(&other), true, true) };
    assert_eq!(ensured(&spec(), RECREATE, &used).unwrap_err().code, Code::TargetInUse);
    let force = EnsureOptions { force: true, ..RECREATE };
    let plan = ensured(&spec(), force, &used).unwrap();
    assert!(names(&plan).contains(&"stopContainer"));
    assert!(
        matches!(plan.steps.last(), Some(Step::AwaitTarget { within, .. }) if *within == policy().target.exchange_timeout)
    );
    assert_eq!(destroy(&spec(), false, &used, &policy()).unwrap_err().code, Code::TargetInUse);
    let plan = destroy(&spec(), true, &used, &policy()).unwrap();
    assert_eq!(names(&plan), ["stopContainer", "removeContainer"]);
}

#[test]
fn one_that_does_not_tell_who_uses_it_is_treated_as_used() {
    let other = TargetSpec { memory_mib: 1024, ..spec() };
    let silent = TargetSeen { sessions: None, ..with_container(Some(&other), true, false) };
    assert_eq!(ensured(&spec(), RECREATE, &silent).unwrap_err().code, Code::TargetUseUnknown);
    assert_eq!(
        destroy(&spec(), false, &silent, &policy()).unwrap_err().code,
        Code::TargetUseUnknown
    );
    assert!(destroy(&spec(), true, &silent, &policy()).is_ok());
}

#[test]
fn one_that_is_still_starting_is_waited_for() {
    let plan = ensured(&spec(), LEAVE, &with_container(Some(&spec()), true, false)).unwrap();
    assert_eq!(names(&plan), ["awaitTarget"]);
}

#[test]
fn a_dead_one_of_ours_is_replaced() {
    let plan = ensured(&spec(), LEAVE, &with_container(Some(&spec()), false, false)).unwrap();
    assert_eq!(names(&plan)[0], "removeContainer");
    assert_eq!(names(&plan)[1..], UP);
}

#[test]
fn a_dead_one_that_would_be_made_the_same_again_is_started_again() {
    let made = made(&ensured(&spec(), LEAVE, &seen()).unwrap()).labels.clone();
    let dead = |change: &dyn Fn(&mut ContainerSeen)| {
        let mut dead = with_container(None, false, false);
        dead.image_id = "sha256:1".into();
        let container = dead.container.as_mut().unwrap();
        container.labels = made.clone();
        change(container);
        dead
    };
    let plan = |seen: &TargetSeen, wish| names(&ensured(&spec(), wish, seen).unwrap());
    let again = ["prepareSockets", "startContainer", "awaitTarget"];
    let same = dead(&|_| {});
    assert_eq!(plan(&same, LEAVE), again);
    let other_cpus = TargetSeen { cpus: seen().cpus[..1].to_vec(), ..same.clone() };
    for (why, seen, wish) in [
        ("it is asked for", same.clone(), RECREATE),
        ("it always falls", same, EnsureOptions { anew: true, ..LEAVE }),
        ("the image is another one", dead(&|it| it.image_id = "sha256:2".into()), LEAVE),
        ("it could not be started", dead(&|it| it.error = "no such device".into()), LEAVE),
        ("its CPU is gone", other_cpus, LEAVE),
    ] {
        assert_eq!(plan(&seen, wish)[0], "removeContainer", "{why}");
    }
}

/// Digest that an agent before isolation gave the container of `spec()` on `seen()`.
const OLD_DIGEST: &str = "0369239f1007dbeb2b2fe3ae8770a8dea0ea278189541e70a5040e91d5cd05f7";

/// The container of `spec()` as an agent before isolation made it.
fn made_by_an_older_agent(running: bool) -> TargetSeen {
    let mut seen = TargetSeen {
        image_id: "sha256:1".into(),
        ..with_container(Some(&spec()), running, running)
    };
    let labels = &mut seen.container.as_mut().unwrap().labels;
    labels.remove(ISOLATION_LABEL);
    labels.insert(DIGEST_LABEL.to_string(), OLD_DIGEST.to_string());
    seen
}

#[test]
fn target_of_an_older_agent_that_serves_is_left() {
    let old = made_by_an_older_agent(true);
    for wish in [LEAVE, RECOVER] {
        assert_eq!(ensured(&spec(), wish, &old), Ok(TargetPlan::default()));
    }
    let plan = ensured(&spec(), RECREATE, &old).unwrap();
    assert!(made(&plan).isolation.is_some() && plan.drift.is_empty(), "when it is asked for");
    let used = TargetSeen { sessions: Some(1), ..old };
    assert_eq!(ensured(&spec(), RECREATE, &used).unwrap_err().code, Code::TargetInUse);
}

#[test]
fn target_of_an_older_agent_comes_back_as_it_was() {
    let old = made_by_an_older_agent(false);
    for wish in [LEAVE, RECOVER] {
        let plan = ensured(&spec(), wish, &old).unwrap();
        assert_eq!(names(&plan), ["prepareSockets", "startContainer", "awaitTarget"]);
    }
    let anew = ensured(&spec(), EnsureOptions { anew: true, ..RECOVER }, &old).unwrap();
    let again = made(&anew);
    assert_eq!((&again.isolation, again.labels[DIGEST_LABEL].as_str()), (&None, OLD_DIGEST));
    assert!(!again.labels.contains_key(ISOLATION_LABEL), "and the next time too");
    assert!(made(&ensured(&spec(), RECREATE, &old).unwrap()).isolation.is_some());
}

#[test]
fn changed_isolation_restarts_no_target_that_serves() {
    let mut policy = policy();
    policy.target.read_only_root = false;
    let serving = with_container(Some(&spec()), true, true);
    assert_eq!(ensure(&spec(), LEAVE, &serving, &policy), Ok(TargetPlan::default()));
    let plan = ensure(&spec(), RECREATE, &serving, &policy).unwrap();
    let isolation = made(&plan).isolation.clone().unwrap();
    assert_eq!((isolation.read_only_root, isolation.tmpfs), (false, vec![]));
    assert_eq!(ensured(&spec(), RECREATE, &serving), Ok(TargetPlan::default()), "as it is");

    let labels = made(&ensured(&spec(), LEAVE, &seen()).unwrap()).labels.clone();
    let mut ended = with_container(Some(&spec()), false, false);
    ended.image_id = "sha256:1".into();
    ended.container.as_mut().unwrap().labels = labels;
    assert_eq!(names(&ensured(&spec(), RECOVER, &ended).unwrap())[0], "prepareSockets");
    let plan = ensure(&spec(), RECOVER, &ended, &policy).unwrap();
    assert_eq!(names(&plan)[..2], ["removeContainer", "prepareSockets"]);
}

#[test]
fn every_kind_is_isolated_and_what_is_bound_stays_the_hosts() {
    let isolation = |kind, policy: &TargetPolicy| {
        let plan = ensure(&TargetSpec { kind, ..spec() }, LEAVE, &seen(), policy).unwrap();
        made(&plan).isolation.clone().unwrap()
    };
    for kind in [TargetKind::Zbs, TargetKind::Spdk, TargetKind::BuiltIn] {
        let isolation = isolation(kind, &policy());
        assert!(isolation.read_only_root);
        assert_eq!(
            (isolation.tmpfs.join(" ").as_str(), isolation.tmpfs_mib),
            ("/var/tmp /tmp /run", 64)
        );
        assert_eq!(isolation.pids_limit, 16_384, "{kind:?}");
    }
    let mut policy = policy();
    policy.target.mounts = vec!["/tmp:ro".into(), "/var".into(), "/run/zbs".into()];
    policy.target.privileged = true;
    assert_eq!(isolation(TargetKind::Spdk, &policy).tmpfs, ["/run"], "what is below it lies in it");
}

#[test]
fn only_a_frozen_one_of_ours_is_ended_for_that() {
    let ends = |made_for: Option<&TargetSpec>, running| {
        let seen = with_container(made_for, running, false);
        end_frozen(&spec(), seen.container.as_ref()).is_some()
    };
    assert!(ends(Some(&spec()), true));
    assert!(!ends(None, true), "somebody else's");
    assert!(!ends(Some(&spec()), false), "it has ended");
    let anew = EnsureOptions { anew: true, ..LEAVE };
    let theirs = with_container(None, false, false);
    assert_eq!(ensured(&spec(), anew, &theirs).unwrap_err().code, Code::ContainerNotOurs);
}

#[test]
fn one_that_does_not_answer_is_killed_at_once_for_a_slow_end_strands_its_guests() {
    let grace = |serves, sessions| {
        let seen = TargetSeen { sessions, ..with_container(Some(&spec()), true, serves) };
        let plan = destroy(&spec(), true, &seen, &policy()).unwrap();
        match &plan.steps[0] {
            Step::StopContainer { grace, .. } => *grace,
            other => panic!("{other:?}"),
        }
    };
    let short = policy().target.stop_grace;
    assert_eq!((grace(true, Some(1)), grace(true, None)), (short, short));
    assert_eq!(grace(true, Some(0)), IDLE_GRACE, "nobody is stranded");
    assert!(grace(false, Some(0)).is_zero());
}

#[test]
fn somebody_elses_container_is_watched_and_never_removed_unasked() {
    let plan = ensured(&spec(), LEAVE, &with_container(None, true, true)).unwrap();
    assert_eq!((names(&plan).len(), plan.findings[0].code), (0, Code::ContainerNotOurs));
    let dead = with_container(None, false, false);
    assert_eq!(ensured(&spec(), LEAVE, &dead).unwrap_err().code, Code::ContainerNotOurs);
    assert_eq!(names(&ensured(&spec(), RECREATE, &dead).unwrap())[0], "removeContainer");
    assert_eq!(destroy(&spec(), false, &dead, &policy()).unwrap_err().code, Code::ContainerNotOurs);
    assert_eq!(
        destroy(&spec(), false, &seen(), &policy()).unwrap().steps.len(),
        0,
        "none is there"
    );
}

#[test]
fn cores_that_a_virtual_machine_is_pinned_to_are_told_when_they_are_taken_and_not_before() {
    let holder = Holder {
        kind: HolderKind::Machine,
        name: "web-1".into(),
        allowed: [vec![1]].into_iter().collect(),
    };
    let cpu_use = CpuUse { holders: vec![holder], ..CpuUse::default() };
    let shared = |seen: TargetSeen| TargetSeen { cpu_use: cpu_use.clone(), ..seen };
    let codes = |wish, seen| {
        let plan = ensured(&spec(), wish, &shared(seen)).unwrap();
        plan.findings.iter().map(|finding| finding.code).collect::<Vec<_>>()
    };
    let other = TargetSpec { memory_mib: 1024, ..spec() };
    let drifted = with_container(Some(&other), true, true);
    assert_eq!(codes(LEAVE, seen()), [Code::CoresSharedWithVms]);
    assert_eq!(codes(RECREATE, drifted.clone()), [Code::CoresSharedWithVms]);
    assert_eq!(codes(LEAVE, drifted), [Code::TargetDrift], "nothing is taken");
}
