//! Bringing a target up and taking it away.
//!
//! A target that serves is left as it is: what differs from the wish is told, field by field, and applied
//! only when that is asked for; while guests are connected, only when it is insisted on. A container that
//! the agent did not make is watched, and never removed unasked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::cores::{self, Chosen};
use crate::model::code::Code;
use crate::model::container::{ContainerSeen, ContainerSpec, DIGEST_LABEL, SPEC_LABEL};
use crate::model::cpu::{CoreList, CpuUse};
use crate::model::fault::{Fault, Finding};
use crate::model::image::Download;
use crate::model::policy::{TargetPolicy, TargetTemplate};
use crate::model::registry::registry_of;
use crate::model::step::{ImageSource, Step};
use crate::model::target::{Desired, Drift, EnsureWish, TargetKind, TargetSeen, TargetSpec};
use crate::model::units::NumaNode;
use crate::model::volume::VolumeSpec;

/// How long a target without guests may take to end by itself at the least. SPDK v26.05 with volumes takes 1.02 s; with
/// guests that would strand those that reconnect to it meanwhile (reference/spdk-rpc.md), so they get `target.stop_grace`.
const IDLE_GRACE: Duration = Duration::from_secs(3);

/// What to do, and what to tell.
#[derive(Debug, Default, PartialEq)]
pub struct TargetPlan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What the operator should know.
    pub findings: Vec<Finding>,
    /// In what the container differs from the wish.
    pub drift: Vec<Drift>,
}

/// Refuses a target, or volumes of it, whose sockets would lie where those of another target do.
///
/// # Errors
/// `control-socket-in-use`, with the path and the other one.
pub fn has_own_sockets(
    spec: &TargetSpec,
    new_volumes: &[VolumeSpec],
    desired: &Desired,
) -> Result<(), Fault> {
    let place = |spec: &TargetSpec| (spec.control_sock.clone(), spec.socket_dir.clone());
    let stays = desired.targets.get(&spec.name).is_some_and(|it| place(it) == place(spec));
    let known = desired.volumes_of(&spec.name);
    let mut own: BTreeSet<String> =
        new_volumes.iter().map(|volume| spec.socket_dir.join(volume.name.as_str())).collect();
    if !stays {
        own.insert(spec.control_sock.as_str().to_string());
        own.extend(known.keys().map(|name| spec.socket_dir.join(name.as_str())));
    }
    let others = desired.targets.values().filter(|other| other.name != spec.name);
    for other in others {
        let volumes = desired.volumes_of(&other.name);
        let sockets = volumes.keys().map(|name| other.socket_dir.join(name.as_str()));
        let control = other.control_sock.as_str().to_string();
        if let Some(path) = sockets.chain([control]).find(|path| own.contains(path)) {
            let text = format!(
                "{path} is a socket of the target {} already: give {} another socket folder or control socket, or the \
                 volume another name",
                other.name, spec.name
            );
            return Err(Fault::new(Code::ControlSocketInUse, text));
        }
    }
    Ok(())
}

/// Plans what makes the target run as it is wanted.
///
/// # Errors
/// When it cannot be, or must not be without being asked for.
pub fn ensure(
    spec: &TargetSpec,
    wish: EnsureWish,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> Result<TargetPlan, Fault> {
    let mut plan = TargetPlan::default();
    let Some(container) = &seen.container else {
        plan.bring_up(spec, wish, seen, policy)?;
        return Ok(plan);
    };
    let made_for = container.made_for();
    if let Some(made_for) = &made_for {
        plan.drift = spec.drift(made_for);
    }
    let replace = wish.recreate && (made_for.is_none() || !plan.drift.is_empty() || !seen.serves());
    if container.running && !replace {
        plan.leave(spec, container, made_for.is_some(), seen, policy);
        return Ok(plan);
    }
    if made_for.is_none() && !replace {
        return Err(not_ours(spec));
    }
    // The old one goes when the new one can come: an image that cannot be had changes nothing.
    let mut new = TargetPlan::default();
    new.bring_up(spec, wish, seen, policy)?;
    plan.findings.append(&mut new.findings);
    if !replace && !wish.anew && new.makes_the_same_as(container, seen) {
        // What it printed stays with it, and it is there sooner.
        new.steps.retain(|step| !matches!(step, Step::CreateContainer(_)));
        plan.steps.append(&mut new.steps);
        return Ok(plan);
    }
    let loads = |step: &Step| matches!(step, Step::LoadImage { .. });
    let (load, start): (Vec<Step>, Vec<Step>) = new.steps.into_iter().partition(loads);
    plan.steps.extend(load);
    plan.take_down(spec, wish.force, container, seen, policy)?;
    plan.steps.extend(start);
    Ok(plan)
}

/// Plans what takes the target away.
///
/// # Errors
/// When guests are connected and it is not insisted on, or the container is somebody else's.
pub fn destroy(
    spec: &TargetSpec,
    force: bool,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> Result<TargetPlan, Fault> {
    let mut plan = TargetPlan::default();
    if let Some(container) = &seen.container {
        if container.made_for().is_none() && !force {
            return Err(not_ours(spec));
        }
        plan.take_down(spec, force, container, seen, policy)?;
    }
    Ok(plan)
}

/// Plans the end of a target that is stuck; none of one that the agent did not make.
pub fn end_frozen(spec: &TargetSpec, container: Option<&ContainerSeen>) -> Option<Step> {
    let container = container.filter(|it| it.running && it.made_for().is_some())?;
    Some(Step::StopContainer {
        name: spec.name.to_string(),
        id: container.id.clone(),
        grace: Duration::ZERO,
    })
}

fn not_ours(spec: &TargetSpec) -> Fault {
    let name = &spec.name;
    Fault::new(
        Code::ContainerNotOurs,
        format!(
            "a container named {name} is there that this agent did not make: remove it, or insist \
             (recreate when deploying, force when destroying)"
        ),
    )
}

impl TargetPlan {
    /// Whether a target that differs from the wish is left as it is.
    pub fn is_left(&self) -> bool {
        let makes = |step: &Step| matches!(step, Step::CreateContainer(_));
        !self.drift.is_empty() && !self.steps.iter().any(makes)
    }

    /// Whether the container that is to be made is the one that has ended, so that this can be started.
    fn makes_the_same_as(&self, ended: &ContainerSeen, seen: &TargetSeen) -> bool {
        let digest = self.steps.iter().find_map(|step| match step {
            Step::CreateContainer(new) => new.labels.get(DIGEST_LABEL),
            _ => None,
        });
        // One that could not be started is not tried twice.
        ended.error.is_empty()
            && digest.is_some()
            && ended.labels.get(DIGEST_LABEL) == digest
            && ended.image_id == seen.image_id
            && seen.has_image
    }

    /// A container that runs stays; one that does not serve yet is waited for.
    fn leave(
        &mut self,
        spec: &TargetSpec,
        container: &ContainerSeen,
        ours: bool,
        seen: &TargetSeen,
        policy: &TargetPolicy,
    ) {
        if !ours {
            let text = format!(
                "the container {} was not made by this agent: it is watched, and never changed or \
                 removed unasked",
                spec.name
            );
            self.findings.push(Finding::new(Code::ContainerNotOurs, text));
        }
        if !self.drift.is_empty() {
            let fields: Vec<String> = self
                .drift
                .iter()
                .map(|drift| format!("{} is {}, wanted {}", drift.field, drift.is, drift.wanted))
                .collect();
            let text = format!(
                "{} runs with other settings than wanted and was left so ({}): ask for recreate to \
                 replace it",
                spec.name,
                fields.join("; ")
            );
            self.findings.push(Finding::new(Code::TargetDrift, text));
        }
        if !seen.serves() {
            self.steps.push(wait(spec, &container.id, policy));
        }
    }

    fn take_down(
        &mut self,
        spec: &TargetSpec,
        force: bool,
        container: &ContainerSeen,
        seen: &TargetSeen,
        policy: &TargetPolicy,
    ) -> Result<(), Fault> {
        may_go(spec, force, seen)?;
        if container.running {
            self.steps.push(Step::StopContainer {
                name: spec.name.to_string(),
                id: container.id.clone(),
                grace: grace(seen, policy),
            });
        }
        let (name, id) = (spec.name.to_string(), container.id.clone());
        self.steps.push(Step::RemoveContainer { name, id });
        Ok(())
    }

    fn bring_up(
        &mut self,
        spec: &TargetSpec,
        wish: EnsureWish,
        seen: &TargetSeen,
        policy: &TargetPolicy,
    ) -> Result<(), Fault> {
        // Without a mount of such pages it takes others, or none.
        let pages = seen.huge_dir.as_ref().map_or(0, |_| policy.target.pages(spec));
        let free = |node: &NumaNode| seen.free_pages.get(node).copied().unwrap_or_default();
        let is_short = |node: &NumaNode| free(node) + seen.returning_pages < pages;
        let short_nodes = seen.cpus.iter().map(|cpu| cpu.node).filter(is_short).collect();
        let cpu_use = CpuUse { short_nodes, ..seen.cpu_use.clone() };
        let chosen = cores::choose(&spec.cores, &seen.cpus, &cpu_use)?;
        let doubts = [judge_memory(spec, pages, &chosen.nodes, seen), judge_place(spec, seen)];
        for doubt in doubts.into_iter().filter_map(Result::err) {
            if !wish.recovers {
                return Err(doubt);
            }
            // It was not refused when it was new, and its guests wait.
            self.findings.push(Finding::new(doubt.code, doubt.text));
        }
        let image = image(spec, seen)?;
        if let Some(obstacle) = &seen.socket_obstacle {
            let text = format!("{} cannot have its sockets there: {obstacle}", spec.name);
            return Err(Fault::new(Code::SocketPlaceUnusable, text));
        }
        if !seen.has_image {
            let from = sources(spec, &image);
            if from.is_empty() {
                return Err(no_image(&image));
            }
            self.steps.push(Step::LoadImage { image: image.clone(), from });
        }
        self.steps.push(prepare_sockets(spec));
        let container = container(spec, image, &chosen, seen, policy)?;
        self.findings.extend(chosen.findings);
        self.steps.push(Step::CreateContainer(Box::new(container)));
        self.steps.push(Step::StartContainer { name: spec.name.to_string() });
        self.steps.push(wait(spec, spec.name.as_str(), policy));
        Ok(())
    }
}

/// Whether a target may be stopped.
///
/// # Errors
/// While virtual machines are connected, or nobody can tell, unless it is insisted on.
fn may_go(spec: &TargetSpec, force: bool, seen: &TargetSeen) -> Result<(), Fault> {
    match seen.sessions {
        Some(0) => {}
        _ if force => {}
        Some(disks) => {
            let text = format!(
                "virtual machines use {disks} disks of {}: shut them down or move them away first, \
                 or insist with force (their disks stop until the target is back)",
                spec.name
            );
            return Err(Fault::new(Code::TargetInUse, text));
        }
        None => {
            let text = format!(
                "{} runs, and does not tell whether virtual machines use its disks: wait until it \
                 answers, or insist with force (their disks stop until the target is back)",
                spec.name
            );
            return Err(Fault::new(Code::TargetUseUnknown, text));
        }
    }
    Ok(())
}

/// How long a target may take to end by itself.
fn grace(seen: &TargetSeen, policy: &TargetPolicy) -> Duration {
    match (seen.serves(), seen.sessions) {
        // It would only go on taking connections that it never serves.
        (false, _) => Duration::ZERO,
        (true, Some(0)) => policy.target.stop_grace.max(IDLE_GRACE),
        (true, _) => policy.target.stop_grace,
    }
}

fn prepare_sockets(spec: &TargetSpec) -> Step {
    Step::PrepareSockets {
        folder: spec.socket_dir.as_str().to_string(),
        control: spec.control_sock.as_str().to_string(),
    }
}

fn wait(spec: &TargetSpec, container: &str, policy: &TargetPolicy) -> Step {
    Step::AwaitTarget {
        name: spec.name.to_string(),
        container: container.to_string(),
        socket: spec.control_sock.as_str().to_string(),
        within: policy.target.ready_timeout,
    }
}

/// Whether nobody can swap its sockets.
fn judge_place(spec: &TargetSpec, seen: &TargetSeen) -> Result<(), Fault> {
    seen.socket_doubt.as_ref().map_or(Ok(()), |doubt| {
        let text = format!("{} is not safe with its sockets there: {doubt}", spec.name);
        Err(Fault::new(Code::SocketPlaceUnusable, text))
    })
}

/// Whether these nodes have the free pages that the target takes: else it would exit as soon as it starts.
fn judge_memory(
    spec: &TargetSpec,
    pages: u64,
    nodes: &[NumaNode],
    seen: &TargetSeen,
) -> Result<(), Fault> {
    let free = |node: &NumaNode| seen.free_pages.get(node).copied().unwrap_or_default();
    let there = nodes.iter().map(free).sum::<u64>() + seen.returning_pages;
    if seen.free_pages.is_empty() || there >= pages {
        return Ok(());
    }
    let all: Vec<String> =
        seen.free_pages.iter().map(|(node, free)| format!("{node} has {free}")).collect();
    let on: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let text = format!(
        "{} takes {pages} pages of 2 MiB (memory_mib {}) on the node of its cores, {}, and of free ones {}: \
         prepare more there (`vhost-agent prepare --node N --pages M`), let it take less, or name cores of another node",
        spec.name,
        spec.memory_mib,
        on.join(" and "),
        all.join(", ")
    );
    Err(Fault::new(Code::MemoryImpossible, text))
}

fn image(spec: &TargetSpec, seen: &TargetSeen) -> Result<String, Fault> {
    match (spec.kind, &spec.image) {
        (TargetKind::BuiltIn, _) => Ok(seen.built_in_image.clone()),
        (_, Some(image)) => Ok(image.clone()),
        (_, None) => Err(Fault::new(
            Code::ImageMissing,
            format!("no image was named for {}: name one, or use the built-in target", spec.name),
        )),
    }
}

/// Where the image can come from, in the order that the controller knows: its registry, a tar, an address.
fn sources(spec: &TargetSpec, image: &str) -> Vec<ImageSource> {
    if spec.kind == TargetKind::BuiltIn {
        return vec![ImageSource::BuiltIn];
    }
    let registry = registry_of(image).map(|_| ImageSource::Registry);
    let tar = spec.image_tar.as_ref().map(|tar| ImageSource::Tar(tar.as_str().to_string()));
    let url = spec
        .image_url
        .clone()
        .map(|url| ImageSource::Url(Download { url, sha256: spec.image_sha256.clone() }));
    registry.into_iter().chain(tar).chain(url).collect()
}

fn no_image(image: &str) -> Fault {
    Fault::new(
        Code::ImageMissing,
        format!(
            "the engine has no image {image}, and nothing says where it is: name one in a registry (host:port/…), a tar that holds it, or the address of one"
        ),
    )
}

/// The container of a target.
fn container(
    spec: &TargetSpec,
    image: String,
    chosen: &Chosen,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> Result<ContainerSpec, Fault> {
    let template = policy.target.template(spec.kind);
    let conf = spec.client_conf.as_ref().filter(|_| seen.has_client_conf);
    let mut binds = vec![(spec.socket_dir.as_str().to_string(), false)];
    binds.extend(seen.huge_dir.iter().map(|path| (path.clone(), false)));
    binds.extend(conf.map(|path| (path.as_str().to_string(), true)));
    binds.extend(policy.target.binds());
    // Who may ask the engine may not all know what gives access to the image.
    let label = serde_json::to_string(&TargetSpec { image_url: None, ..spec.clone() })
        .map_err(|e| Fault::new(Code::Internal, format!("a wish cannot be written down: {e}")))?;
    let nodes: Vec<String> = chosen.nodes.iter().map(|node| node.0.to_string()).collect();
    let mut made = ContainerSpec {
        name: spec.name.to_string(),
        image,
        command: command(template, spec, chosen, conf.map(|path| path.as_str()), seen),
        env: policy.target.env.clone(),
        binds,
        tmpfs: Vec::new(),
        devices: policy.target.devices.clone(),
        capabilities: template.capabilities.to_vec(),
        privileged: template.privileged,
        cpus: Some(chosen.cores.to_string()),
        memory_nodes: Some(nodes.join(",")),
        labels: BTreeMap::from([(SPEC_LABEL.to_string(), label)]),
    };
    // Of everything that it is made with: the settings too, and the cores that were chosen.
    let digest = Sha256::digest(format!("{made:?}"));
    let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    made.labels.insert(DIGEST_LABEL.to_string(), digest);
    // Who counts on the CPUs beside them changes from day to day, and makes it no other target.
    made.cpus = Some(cpus_of(spec.kind, chosen).to_string());
    Ok(made)
}

/// The CPUs that the container may run on: its reactors bind themselves to theirs.
fn cpus_of(kind: TargetKind, chosen: &Chosen) -> CoreList {
    let beside = chosen.housekeeping.as_ref().filter(|_| kind != TargetKind::BuiltIn);
    let all = chosen.cores.as_slice().iter().chain(beside.iter().flat_map(|it| it.as_slice()));
    CoreList::of(all.copied().collect()).unwrap_or_else(|| chosen.cores.clone())
}

/// Fills the template's words. A word whose value is not there goes, and the flag before it too.
fn command(
    template: TargetTemplate<'_>,
    spec: &TargetSpec,
    chosen: &Chosen,
    client_conf: Option<&str>,
    seen: &TargetSeen,
) -> Vec<String> {
    let memory = (spec.memory_mib > 0).then(|| spec.memory_mib.to_string());
    let values: [(&str, Option<String>); 6] = [
        ("{cores}", Some(chosen.cores.for_spdk())),
        ("{socketDir}", Some(spec.socket_dir.as_str().to_string())),
        ("{controlSock}", Some(spec.control_sock.as_str().to_string())),
        ("{clientConf}", client_conf.map(str::to_string)),
        ("{hugeDir}", seen.huge_dir.clone()),
        ("{memoryMib}", memory),
    ];
    let mut words: Vec<String> = Vec::new();
    for word in template.command {
        match values.iter().find(|(name, _)| word.contains(name)) {
            None => words.push(word.clone()),
            Some((name, Some(value))) => words.push(word.replace(name, value)),
            Some((_, None)) => {
                if words.last().is_some_and(|flag| flag.starts_with('-')) {
                    words.pop();
                }
            }
        }
    }
    words
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
