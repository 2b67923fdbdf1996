//! Checks before a target is accepted: its name, its sockets, their folder, and its memory.

use std::collections::BTreeSet;

use crate::model::bounds::{Paths, authorize_target};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::policy::TargetPolicy;
use crate::model::pools::PageLimit;
use crate::model::sizing::{PAGES_PER_GIB, PROBE_PAGES, volumes_within};
use crate::model::target::{Desired, TargetName, TargetSeen, TargetSpec};
use crate::model::units::NumaNode;
use crate::model::volume::VolumeSpec;

/// Refuses a target name that ends like the names of the containers that stand beside a target while it is replaced.
///
/// # Errors
/// `invalid-target-name`, with the ending.
pub fn has_own_name(name: &TargetName) -> Result<(), Fault> {
    let used = [".next", ".previous"].into_iter().find(|end| name.as_str().ends_with(end));
    used.map_or(Ok(()), |end| {
        let text = format!(
            "{name} ends with {end}, as containers do while a target is replaced: give it another name"
        );
        Err(Fault::new(Code::InvalidTargetName, text))
    })
}

/// Refuses a target if its sockets, or those of its `new_volumes`, would have the path of another target's socket.
///
/// # Errors
/// `control-socket-in-use`, with the path and the other target.
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
    // A replaced target that may come back needs its sockets, too.
    let kept = desired.trials.values().filter_map(|trial| trial.old.as_ref());
    let others = desired.targets.values().chain(kept).filter(|other| other.name != spec.name);
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

/// Refuses a new target if `most` targets are desired already.
///
/// # Errors
/// `too-many-targets`, with the name of the setting.
pub fn has_room(name: &TargetName, most: usize, desired: &Desired) -> Result<(), Fault> {
    if desired.targets.contains_key(name) || desired.targets.len() < most {
        return Ok(());
    }
    let text = format!(
        "{} targets are desired on this node, and there may be {most} (target.max_targets): destroy another one first, or \
         raise that",
        desired.targets.len()
    );
    Err(Fault::new(Code::TooManyTargets, text))
}

/// Refuses `new_volumes` with which the target would have more than `most` volumes.
///
/// # Errors
/// `too-many-volumes`, with the name of the setting.
pub fn has_room_for(
    target: &TargetName,
    new_volumes: &[VolumeSpec],
    most: usize,
    desired: &Desired,
) -> Result<(), Fault> {
    let known = desired.volumes_of(target);
    let more = new_volumes.iter().filter(|volume| !known.contains_key(&volume.name)).count();
    if more == 0 || known.len() + more <= most {
        return Ok(());
    }
    let text = format!(
        "{target} has {} volumes, and with {more} more it would have more than {most} (target.max_volumes): deactivate \
         others first, use another target, or raise that",
        known.len()
    );
    Err(Fault::new(Code::TooManyVolumes, text))
}

/// Refuses paths of the spec that, with links followed, lead outside of the bounds for callers.
pub(super) fn authorize_bounds(
    spec: &TargetSpec,
    seen: &TargetSeen,
    policy: &TargetPolicy,
) -> Result<(), Fault> {
    let opened = spec.as_opened(seen.has_image);
    authorize_target(&opened, seen.known.as_ref(), &policy.target, Paths::Followed(&seen.links))
}

/// Refuses a socket folder in which somebody else could swap the sockets.
pub(super) fn validate_place(spec: &TargetSpec, seen: &TargetSeen) -> Result<(), Fault> {
    seen.socket_doubt.as_ref().map_or(Ok(()), |doubt| {
        let text = format!("{} is not safe with its sockets there: {doubt}", spec.name);
        Err(Fault::new(Code::SocketPlaceUnusable, text))
    })
}

/// Refuses socket paths at which something else is in the way.
pub(super) fn validate_obstacle(spec: &TargetSpec, seen: &TargetSeen) -> Result<(), Fault> {
    seen.socket_obstacle.as_ref().map_or(Ok(()), |obstacle| {
        let text = format!("{} cannot have its sockets there: {obstacle}", spec.name);
        Err(Fault::new(Code::SocketPlaceUnusable, text))
    })
}

/// Refuses a target that needs more pages than `nodes`, those of its memory, have free: it would exit as soon as it
/// starts.
pub(super) fn validate_memory(
    spec: &TargetSpec,
    pages: u64,
    nodes: &[NumaNode],
    seen: &TargetSeen,
) -> Result<(), Fault> {
    let there = seen.free_pages_on(nodes).saturating_add(seen.returning_pages);
    if seen.free_pages.is_empty() || there >= pages {
        return Ok(());
    }
    let all: Vec<String> = seen
        .free_pages
        .keys()
        .map(|node| format!("{node} has {}", seen.free_pages_on(&[*node])))
        .collect();
    let on: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let flags: String = nodes.iter().map(|node| format!(" --node {}", node.0)).collect();
    let text = format!(
        "{} takes {pages} pages of 2 MiB (memory_mib {}, for {} volumes) beside its cores, on {}, and of free ones \
         that are kept for no guest {}: prepare as many there and {PROBE_PAGES} for deep probes (`vhost-agent prepare{flags} --pages {}`), with \
         {PAGES_PER_GIB} more for each GiB of the guests that are to start, let it take less, or name cores of another node",
        spec.name,
        spec.memory_mib,
        volumes_within(spec.memory_mib),
        on.join(" and "),
        all.join(", "),
        pages.saturating_add(PROBE_PAGES)
    );
    Err(Fault::new(Code::MemoryImpossible, text))
}

/// Refuses a target that takes more pages than a control group allows its container: the kernel would kill it with
/// SIGBUS, or refuse it memory, as soon as it starts.
pub(super) fn validate_limit(
    spec: &TargetSpec,
    pages: u64,
    seen: &TargetSeen,
) -> Result<(), Fault> {
    let is_short = |limit: &&PageLimit| limit.left() + seen.returning_pages < pages;
    seen.page_limit.as_ref().filter(is_short).map_or(Ok(()), |limit| {
        let text = format!(
            "{} takes {pages} pages of 2 MiB (memory_mib {}), and containers may not have so many: {limit}; raise that, or let \
             the target take less",
            spec.name, spec.memory_mib
        );
        Err(Fault::new(Code::PageLimitTooLow, text))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn names_of_containers_beside_a_target_are_no_targets() {
        let check = |name: &str| has_own_name(&name.parse().unwrap()).map_err(|fault| fault.code);
        assert_eq!(check("a.next"), Err(Code::InvalidTargetName));
        assert_eq!(check("a.previous"), Err(Code::InvalidTargetName));
        assert_eq!(check("a.next.b"), Ok(()));
    }

    #[test]
    fn no_socket_is_another_targets_too() {
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
            ..Desired::default()
        };
        let check = |spec: &TargetSpec, volumes: &[VolumeSpec]| {
            has_own_sockets(spec, volumes, &desired).map_err(|fault| (fault.code, fault.text))
        };
        assert_eq!(check(&there, &[VolumeSpec::example("w")]), Ok(()), "it is that one");
        assert_eq!(check(&at("b", "/s", "/s/b.sock"), &[VolumeSpec::example("w")]), Ok(()));
        for (spec, volumes) in [
            (at("b", "/t", "/s/a.sock"), vec![]),
            (at("b", "/t", "/s/v"), vec![]),
            (at("b", "/s", "/s/b.sock"), vec![volume]),
            (at("b", "/s", "/s/b.sock"), vec![VolumeSpec::example("a.sock")]),
        ] {
            let (code, text) = check(&spec, &volumes).unwrap_err();
            assert!(code == Code::ControlSocketInUse && text.contains("of the target a"), "{text}");
        }
        // An older agent may have accepted both; each of them is brought back.
        let twin = at("b", "/t", "/s/a.sock");
        let mut both = desired.clone();
        both.targets.insert(twin.name.clone(), twin.clone());
        assert!(has_own_sockets(&twin, &[], &both).is_ok());
    }
}
