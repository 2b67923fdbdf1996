//! Every situation that a target can be found in.

use std::collections::BTreeMap;

use super::super::target_fixture::*;
use super::*;
use crate::model::cpu::{Cpu, CpuUse, Holder, HolderKind};
use crate::model::image::Download;
use crate::model::numa::MemoryNodes;
use crate::model::pools::PageLimit;
use crate::model::step::ImageSource;
use crate::model::target::{CoreRequest, TargetKind};
use crate::model::units::{NumaNode, PageSize};

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
    for words in [
        "takes 256 pages of 2 MiB (memory_mib 512, for 800 volumes)",
        "node0 has 128",
        "node1 has 128",
        "`vhost-agent prepare --node ",
        " --pages 257`",
        "512 more for each GiB",
    ] {
        assert!(fault.text.contains(words), "{fault}");
    }
    // What runs already has to come back as well as it can.
    let plan = ensured(&spec, RECOVER, &with([128, 128], 0)).unwrap();
    assert!(plan.findings.iter().any(|finding| finding.code == Code::MemoryImpossible));
    assert_eq!(nodes(&seen()).unwrap(), "0", "nobody could tell what is free");
}

#[test]
fn a_limit_that_leaves_too_few_pages_is_named_before_it_starts() {
    let spec = TargetSpec { kind: TargetKind::Spdk, memory_mib: 512, ..spec() };
    let with = |used| {
        let file = "/sys/fs/cgroup/system.slice/hugetlb.2MB.max".to_string();
        let limit = PageLimit { file, size: PageSize::MIB_2, pages: 257, used };
        TargetSeen { page_limit: Some(limit), ..seen() }
    };
    assert!(ensured(&spec, LEAVE, &with(1)).is_ok());
    let limited = TargetSeen { socket_obstacle: Some("/s is a file".into()), ..with(2) };
    let fault = ensured(&spec, LEAVE, &limited).unwrap_err();
    assert_eq!(fault.code, Code::PageLimitTooLow);
    for words in [
        "takes 256 pages of 2 MiB (memory_mib 512)",
        "system.slice/hugetlb.2MB.max allows 257 pages of 2M, of which 255 are left",
        "moreover, zbs-vhost cannot have its sockets there",
    ] {
        assert!(fault.text.contains(words), "{fault}");
    }
    let returns = TargetSeen { returning_pages: 1, ..with(2) };
    assert!(ensured(&spec, LEAVE, &returns).is_ok(), "what a dead process left comes back before");
    let plan = ensured(&spec, RECOVER, &with(2)).unwrap();
    assert!(plan.findings.iter().any(|finding| finding.code == Code::PageLimitTooLow));
    let unsized_one = TargetSpec { kind: TargetKind::Zbs, ..spec };
    assert!(ensured(&unsized_one, LEAVE, &with(257)).is_ok(), "nobody knows what it takes");
}

#[test]
fn target_on_a_node_without_memory_gets_pages_of_the_nearest_ones() {
    let spec = TargetSpec {
        kind: TargetKind::Spdk,
        memory_mib: 512,
        cores: CoreRequest::These("[1]".parse().unwrap()),
        ..spec()
    };
    let far = BTreeMap::from([(NumaNode(1), 12), (NumaNode(2), 12), (NumaNode(3), 32)]);
    let memory_nodes = MemoryNodes { distances: [(NumaNode(0), far)].into() };
    let with = |pages: [u64; 3]| TargetSeen {
        cpu_use: CpuUse { memory_nodes: memory_nodes.clone(), ..CpuUse::default() },
        free_pages: (1..).map(NumaNode).zip(pages).collect(),
        ..seen()
    };
    let plan = ensured(&spec, LEAVE, &with([100, 156, 0])).unwrap();
    assert_eq!(made(&plan).memory_nodes.as_deref(), Some("1,2"));
    assert!(plan.findings.iter().any(|finding| finding.code == Code::MemoryRemote));
    let fault = ensured(&spec, LEAVE, &with([100, 155, 999])).unwrap_err();
    assert_eq!(fault.code, Code::MemoryImpossible);
    assert!(fault.text.contains("on node1 and node2"), "{fault}");
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

#[test]
fn only_a_frozen_one_of_ours_is_ended_for_that() {
    let ends = |made_for: Option<&TargetSpec>, running| {
        let seen = with_container(made_for, running, false);
        end_unresponsive(&spec(), seen.container.as_ref()).is_some()
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
