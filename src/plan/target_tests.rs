//! Every situation that a target can be found in.

use super::*;
use crate::model::cpu::{Cpu, CpuUse, Holder, HolderKind};
use crate::model::target::CoreWish;
use crate::model::units::NumaNode;

fn policy() -> TargetPolicy {
    TargetPolicy::example()
}

fn spec() -> TargetSpec {
    TargetSpec {
        name: "zbs-vhost".parse().unwrap(),
        kind: TargetKind::Zbs,
        image: Some("zbs/vhost:1".into()),
        image_tar: None,
        image_url: None,
        image_sha256: None,
        cores: CoreWish::Count(1),
        socket_dir: "/var/tmp/vhost-sockets".parse().unwrap(),
        control_sock: "/var/tmp/vhost-sockets/vhost.sock".parse().unwrap(),
        client_conf: Some("/etc/zbs/client.conf".parse().unwrap()),
        memory_mib: 512,
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
        labels: made_for.map(label).into_iter().collect(),
        error: String::new(),
    };
    let version = serves.then(|| "SPDK v24.01".to_string());
    TargetSeen { container: Some(container), version, sessions: Some(0), ..seen() }
}

fn ensured(spec: &TargetSpec, wish: EnsureWish, seen: &TargetSeen) -> Result<TargetPlan, Fault> {
    ensure(spec, wish, seen, &policy())
}

fn names(plan: &TargetPlan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::name).collect()
}

const RECREATE: EnsureWish =
    EnsureWish { recreate: true, force: false, anew: false, recovers: false };
const LEAVE: EnsureWish =
    EnsureWish { recreate: false, force: false, anew: false, recovers: false };
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
fn no_socket_is_another_targets_too() {
    use std::sync::Arc;
    let at = |name: &str, dir: &str, control: &str| TargetSpec {
        name: name.parse().unwrap(),
        socket_dir: dir.parse().unwrap(),
        control_sock: control.parse().unwrap(),
        ..TargetSpec::example(name)
    };
    let there = at("a", "/s", "/s/a.sock");
    let volume = VolumeSpec::example("v");
    let volumes = Arc::new([(volume.name.clone(), volume.clone())].into());
    let desired = Desired {
        targets: [(there.name.clone(), there.clone())].into(),
        volumes: [(there.name.clone(), volumes)].into(),
    };
    let judge = |spec: &TargetSpec, volumes: &[VolumeSpec]| {
        has_own_sockets(spec, volumes, &desired).map_err(|fault| (fault.code, fault.text))
    };
    assert_eq!(judge(&there, &[VolumeSpec::example("w")]), Ok(()), "it is that one");
    assert_eq!(judge(&at("b", "/s", "/s/b.sock"), &[VolumeSpec::example("w")]), Ok(()));
    for (spec, volumes) in [
        (at("b", "/t", "/s/a.sock"), vec![]),
        (at("b", "/t", "/s/v"), vec![]),
        (at("b", "/s", "/s/b.sock"), vec![volume]),
        (at("b", "/s", "/s/b.sock"), vec![VolumeSpec::example("a.sock")]),
    ] {
        let (code, text) = judge(&spec, &volumes).unwrap_err();
        assert!(code == Code::ControlSocketInUse && text.contains("of the target a"), "{text}");
    }
    // Such as an agent of before let through: each of them is brought back.
    let twin = at("b", "/t", "/s/a.sock");
    let mut both = desired.clone();
    both.targets.insert(twin.name.clone(), twin.clone());
    assert!(has_own_sockets(&twin, &[], &both).is_ok());
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
    let again = EnsureWish { recovers: true, ..LEAVE };
    let plan = ensured(&spec, again, &with([128, 128], 0)).unwrap();
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
fn an_image_that_is_not_there_comes_from_where_it_is_said_to_be() {
    let without = TargetSeen { has_image: false, ..seen() };
    assert_eq!(ensured(&spec(), LEAVE, &without).unwrap_err().code, Code::ImageMissing);
    let tar = TargetSpec { image_tar: Some("/srv/vhost.tar".parse().unwrap()), ..spec() };
    assert_eq!(names(&ensured(&tar, LEAVE, &without).unwrap())[0], "loadImage");
    assert_eq!(names(&ensured(&tar, LEAVE, &seen()).unwrap()), UP, "it is there");
    for (image, sources) in [
        ("registry.example:5000/zbs/vhost:1", vec![ImageSource::Registry]),
        ("localhost/vhost", vec![ImageSource::Registry]),
        ("10.0.0.1/vhost", vec![ImageSource::Registry]),
        ("zbs/vhost:1", vec![]),
        ("vhost:1.0", vec![]),
    ] {
        assert_eq!(super::sources(&spec(), image), sources, "{image}");
    }
    let both = super::sources(&tar, "localhost/vhost");
    assert_eq!(both, [ImageSource::Registry, ImageSource::Tar("/srv/vhost.tar".into())]);
    let url: crate::model::image::ImageUrl = "https://files.example/vhost.tar".parse().unwrap();
    let all = TargetSpec { image_url: Some(url.clone()), ..tar.clone() };
    let download = ImageSource::Url(Download { url, sha256: None });
    let tar = ImageSource::Tar("/srv/vhost.tar".into());
    let all = super::sources(&all, "localhost/vhost");
    assert_eq!(all, [ImageSource::Registry, tar, download], "an address comes last");
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
fn a_serving_target_is_left_alone_and_its_drift_is_told() {
    let plan = ensured(&spec(), LEAVE, &with_container(Some(&spec()), true, true)).unwrap();
    assert_eq!((plan.steps.len(), plan.findings.len(), plan.drift.len()), (0, 0, 0));
    let other = TargetSpec { memory_mib: 1024, ..spec() };
    let drifted = with_container(Some(&other), true, true);
    let plan = ensured(&spec(), LEAVE, &drifted).unwrap();
    assert_eq!((plan.steps.len(), plan.findings[0].code), (0, Code::TargetDrift));
    assert!(plan.findings[0].text.contains("memoryMib is 1024, wanted 512"), "{:?}", plan.findings);
    let plan = ensured(&spec(), RECREATE, &drifted).unwrap();
    assert_eq!(names(&plan)[..2], ["stopContainer", "removeContainer"]);
    assert_eq!(names(&plan)[2..], UP);
    let tar = TargetSpec { image_tar: Some("/srv/vhost.tar".parse().unwrap()), ..spec() };
    let without = TargetSeen { has_image: false, ..drifted.clone() };
    let plan = ensured(&tar, RECREATE, &without).unwrap();
    assert_eq!(names(&plan)[..2], ["loadImage", "stopContainer"], "what serves goes last");
    let elsewhere = with_container(Some(&tar), true, true);
    let plan = ensured(&spec(), RECREATE, &elsewhere).unwrap();
    assert_eq!(names(&plan), [""; 0], "where its image came from is no difference");
    let same = with_container(Some(&spec()), true, true);
    assert_eq!(names(&ensured(&spec(), RECREATE, &same).unwrap()), [""; 0], "nothing differs");
}

#[test]
fn with_machines_connected_it_is_replaced_only_when_insisted_on() {
    let other = TargetSpec { memory_mib: 1024, ..spec() };
    let used = TargetSeen { sessions: Some(2), ..with_container(Some(&other), true, true) };
    assert_eq!(ensured(&spec(), RECREATE, &used).unwrap_err().code, Code::TargetInUse);
    let force = EnsureWish { force: true, ..RECREATE };
    assert_eq!(names(&ensured(&spec(), force, &used).unwrap())[0], "stopContainer");
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
        ("it always falls", same, EnsureWish { anew: true, ..LEAVE }),
        ("the image is another one", dead(&|it| it.image_id = "sha256:2".into()), LEAVE),
        ("it could not be started", dead(&|it| it.error = "no such device".into()), LEAVE),
        ("its CPU is gone", other_cpus, LEAVE),
    ] {
        assert_eq!(plan(&seen, wish)[0], "removeContainer", "{why}");
    }
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
    let anew = EnsureWish { anew: true, ..LEAVE };
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
