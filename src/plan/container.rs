//! Container of a target: its image and the sources of the image, its command, CPUs, folders and labels.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::cores::Chosen;
use crate::model::code::Code;
use crate::model::container::{
    ContainerSeen, ContainerSpec, DIGEST_LABEL, ISOLATION_LABEL, Isolation, SPEC_LABEL,
};
use crate::model::cpu::CoreList;
use crate::model::fault::Fault;
use crate::model::image::Download;
use crate::model::policy::{TargetPolicy, TargetTemplate};
use crate::model::registry::registry_of;
use crate::model::step::{ImageSource, Step};
use crate::model::target::{EnsureOptions, TargetKind, TargetSeen, TargetSpec};

/// Image of the target, and the step that loads the image if the engine does not have it.
pub(super) fn image_and_load(
    spec: &TargetSpec,
    seen: &TargetSeen,
) -> Result<(String, Option<Step>), Fault> {
    let image = image(spec, seen)?;
    if seen.has_image {
        return Ok((image, None));
    }
    let from = sources(spec, &image, seen);
    if from.is_empty() {
        let text = format!(
            "the engine has no image {image}, and nothing says where it is: name one in a registry (host:port/…), a tar that holds it, or the address of one"
        );
        return Err(Fault::new(Code::ImageMissing, text));
    }
    Ok((image.clone(), Some(Step::LoadImage { image, from })))
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

/// Sources of the image in the order in which they are tried, which is also the controller's: registry, tar file, URL.
pub(super) fn sources(spec: &TargetSpec, image: &str, seen: &TargetSeen) -> Vec<ImageSource> {
    if spec.kind == TargetKind::BuiltIn {
        return vec![ImageSource::BuiltIn];
    }
    let registry = registry_of(image).map(|_| ImageSource::Registry);
    // The path with links followed, which was authorized, is the one that is opened.
    let led = |tar| seen.links.get(tar).map_or(tar, |led| &led.path);
    let tar = spec.image_tar.as_ref().map(|tar| ImageSource::Tar(led(tar).as_str().to_string()));
    let url = spec
        .image_url
        .clone()
        .map(|url| ImageSource::Url(Download { url, sha256: spec.image_sha256.clone() }));
    registry.into_iter().chain(tar).chain(url).collect()
}

pub(super) fn container(
    spec: &TargetSpec,
    options: EnsureOptions,
    image: String,
    chosen: &Chosen,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> Result<ContainerSpec, Fault> {
    let template = policy.target.template(spec.kind);
    let isolation = match options.recreate || !comes_back_open(seen) {
        true => Some(isolation(spec, seen, policy)),
        false => None,
    };
    // The label has no image URL, which may give access to the image, and which everybody who may query the engine
    // would see. A memory size that was chosen is recorded like one that was requested.
    let known = TargetSpec { image_url: None, memory_by_volumes: false, ..spec.clone() };
    let nodes: Vec<String> = chosen.memory_nodes.iter().map(|node| node.0.to_string()).collect();
    let mut made = ContainerSpec {
        name: spec.name.to_string(),
        image,
        command: command(template, spec, chosen, client_conf(spec, seen), seen),
        env: policy.target.env.clone(),
        binds: binds(spec, seen, policy),
        isolation,
        devices: policy.target.devices.clone(),
        capabilities: template.capabilities.to_vec(),
        privileged: template.privileged,
        cpus: Some(chosen.cores.to_string()),
        memory_nodes: Some(nodes.join(",")),
        cgroup_parent: spec.cgroup_parent.as_ref().map(ToString::to_string),
        labels: BTreeMap::from([(SPEC_LABEL.to_string(), label(&known)?)]),
    };
    made.labels.insert(DIGEST_LABEL.to_string(), digest(&made));
    if let Some(isolation) = &made.isolation {
        made.labels.insert(ISOLATION_LABEL.to_string(), label(isolation)?);
    }
    // Added after the digest: the set of free CPUs for housekeeping changes from day to day, and that makes no other
    // target.
    made.cpus = Some(cpus_of(spec.kind, chosen).to_string());
    Ok(made)
}

/// Digest of everything that a container is made with, including the settings and the chosen cores.
fn digest(made: &ContainerSpec) -> String {
    // Without isolation, or without a cgroup parent, the text is the one that an older agent wrote, so that its
    // containers are recognized.
    let text = format!("{made:?}").replacen("isolation: None", "tmpfs: []", 1);
    let text = text.replacen("cgroup_parent: None, ", "", 1);
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn label(value: &impl serde::Serialize) -> Result<String, Fault> {
    serde_json::to_string(value)
        .map_err(|e| Fault::new(Code::Internal, format!("a label cannot be written down: {e}")))
}

fn client_conf<'a>(spec: &'a TargetSpec, seen: &TargetSeen) -> Option<&'a str> {
    spec.client_conf.as_ref().filter(|_| seen.has_client_conf).map(|path| path.as_str())
}

fn binds(spec: &TargetSpec, seen: &TargetSeen, policy: &TargetPolicy) -> Vec<(String, bool)> {
    let mut binds = vec![(spec.socket_dir.as_str().to_string(), false)];
    binds.extend(seen.huge_dir.iter().map(|path| (path.clone(), false)));
    binds.extend(client_conf(spec, seen).map(|path| (path.to_string(), true)));
    binds.extend(policy.target.binds());
    binds
}

/// Isolation of a new target.
fn isolation(spec: &TargetSpec, seen: &TargetSeen, policy: &TargetPolicy) -> Isolation {
    let settings = &policy.target;
    let binds = binds(spec, seen, policy);
    // No tmpfs hides a folder of the host, or a folder below one.
    let is_bound = |path: &str| binds.iter().any(|(bind, _)| Path::new(path).starts_with(bind));
    let tmpfs = settings.tmpfs.iter().filter(|path| settings.read_only_root && !is_bound(path));
    Isolation {
        read_only_root: settings.read_only_root,
        tmpfs: tmpfs.cloned().collect(),
        tmpfs_mib: settings.tmpfs_mib,
        pids_limit: settings.pids_limit,
    }
}

/// `true` if an older agent made the container, without isolation. A recovered target stays without it: its image may
/// need what isolation forbids, and nobody may be there to notice.
fn comes_back_open(seen: &TargetSeen) -> bool {
    let ours = seen.container.as_ref().filter(|it| it.made_for().is_some());
    ours.is_some_and(|it| !it.labels.contains_key(ISOLATION_LABEL))
}

/// `true` if the isolation of `container` differs from that of a new one.
pub(super) fn is_isolated_otherwise(
    spec: &TargetSpec,
    container: &ContainerSeen,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> bool {
    let is = container.labels.get(ISOLATION_LABEL);
    is.and_then(|is| serde_json::from_str(is).ok()) != Some(isolation(spec, seen, policy))
}

/// CPUs that the container may run on: the chosen cores, to which the reactors bind themselves, and the housekeeping
/// CPUs.
fn cpus_of(kind: TargetKind, chosen: &Chosen) -> CoreList {
    let beside = chosen.housekeeping.as_ref().filter(|_| kind != TargetKind::BuiltIn);
    let all = chosen.cores.as_slice().iter().chain(beside.iter().flat_map(|it| it.as_slice()));
    CoreList::of(all.copied().collect()).unwrap_or_else(|| chosen.cores.clone())
}

/// Fills in the placeholders of the template's command. A word whose placeholder has no value is dropped, and so is the
/// flag before it.
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
