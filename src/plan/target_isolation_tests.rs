//! Isolation of targets, also of those that an agent before isolation made.

use super::super::target_fixture::*;
use super::*;
use crate::model::container::ISOLATION_LABEL;
use crate::model::target::TargetKind;

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
fn cgroup_parent_is_the_containers_and_another_one_is_drift() {
    let parent = "zstone.vhost.slice";
    let below = TargetSpec { cgroup_parent: parent.parse().ok(), ..spec() };
    let plan = ensured(&below, LEAVE, &seen()).unwrap();
    assert_eq!(made(&plan).cgroup_parent.as_deref(), Some(parent));
    let mut shown = plan.steps.iter().map(|step| step.before_after().1);
    assert!(shown.any(|text| text.ends_with(", below zstone.vhost.slice")));
    let digest = |spec: &TargetSpec| {
        made(&ensured(spec, LEAVE, &seen()).unwrap()).labels[DIGEST_LABEL].clone()
    };
    assert_ne!(digest(&below), digest(&spec()));
    let serving = with_container(Some(&spec()), true, true);
    let left = ensured(&below, LEAVE, &serving).unwrap();
    assert!(left.is_left() && left.findings[0].text.contains("cgroupParent is null"), "{left:?}");
    let anew = ensured(&below, RECREATE, &serving).unwrap();
    assert_eq!(made(&anew).cgroup_parent.as_deref(), Some(parent));
    let ended = ensured(&spec(), RECREATE, &with_container(Some(&below), true, true)).unwrap();
    assert_eq!(made(&ended).cgroup_parent, None, "and one that is not wanted any more");
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
