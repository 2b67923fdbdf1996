//! Targets as tests observe them, and lookups in the resulting plans.

use super::target::{TargetPlan, ensure};
use crate::model::bounds::{Links, ResolvedPath};
use crate::model::container::{ContainerSeen, ContainerSpec, ISOLATION_LABEL, SPEC_LABEL};
use crate::model::cpu::Cpu;
use crate::model::fault::Fault;
use crate::model::policy::TargetPolicy;
use crate::model::step::Step;
use crate::model::target::{CoreRequest, EnsureOptions, TargetKind, TargetSeen, TargetSpec};
use crate::model::units::NumaNode;

pub(super) fn policy() -> TargetPolicy {
    let mut policy = TargetPolicy::example();
    policy.target.socket_dir = spec().socket_dir;
    policy
}

/// Links that an observation has followed, from `paths`: each path with its destination.
pub(super) fn led(paths: &[(&str, &str)]) -> Links {
    let led = |path: &str| ResolvedPath { path: path.parse().unwrap(), is_block_device: false };
    paths.iter().map(|(path, to)| (path.parse().unwrap(), led(to))).collect()
}

pub(super) fn spec() -> TargetSpec {
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
        cgroup_parent: None,
    }
}

pub(super) fn seen() -> TargetSeen {
    let cpu = |id| Cpu {
        id,
        node: NumaNode(0),
        core: Some(id),
        package: Some(0),
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

/// Label of a container with the isolation that the policy sets.
pub(super) fn isolation_label() -> (String, String) {
    let labels = made(&ensured(&spec(), LEAVE, &seen()).unwrap()).labels.clone();
    (ISOLATION_LABEL.to_string(), labels[ISOLATION_LABEL].clone())
}

/// Observation with a container made for `made_for`; `None` if somebody else made it.
pub(super) fn with_container(
    made_for: Option<&TargetSpec>,
    running: bool,
    serves: bool,
) -> TargetSeen {
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

pub(super) fn ensured(
    spec: &TargetSpec,
    wish: EnsureOptions,
    seen: &TargetSeen,
) -> Result<TargetPlan, Fault> {
    ensure(spec, wish, seen, &policy())
}

pub(super) fn names(plan: &TargetPlan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::name).collect()
}

pub(super) const RECREATE: EnsureOptions =
    EnsureOptions { recreate: true, force: false, anew: false, recovers: false };
pub(super) const LEAVE: EnsureOptions =
    EnsureOptions { recreate: false, force: false, anew: false, recovers: false };
pub(super) const RECOVER: EnsureOptions = EnsureOptions { recovers: true, ..LEAVE };
pub(super) const UP: [&str; 4] =
    ["prepareSockets", "createContainer", "startContainer", "awaitTarget"];

pub(super) fn made(plan: &TargetPlan) -> &ContainerSpec {
    let made = plan.steps.iter().find_map(|step| match step {
        Step::CreateContainer(spec) => Some(spec),
        _ => None,
    });
    made.expect("a container that is made")
}
