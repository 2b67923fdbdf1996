//! Volumes in a running target: plans that make a volume serve or take it away, and the evaluation of its state.
//!
//! The bdev comes before its controller, and goes after it. While a session is connected neither is ever
//! deleted: a target may hang in that for ever, or leave the guest with I/O errors
//! (packaging/doc/facts.md, "Traps").

use crate::model::buffers::NOT_STARTED;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::names::TargetName;
use crate::model::target::Desired;
use crate::model::volume::{
    Backing, BdevSeen, ControllerSeen, VolumeSeen, VolumeSpec, VolumeState, VolumeStep, ZBS_SUFFIX,
};

/// Plans the steps that make a volume serve.
///
/// # Errors
/// When the bdev is not the wanted one or serves another volume, or when a connected guest prevents a repair.
pub fn bring_up(spec: &VolumeSpec, seen: &VolumeSeen) -> Result<Vec<VolumeStep>, Fault> {
    use VolumeStep::{CreateBdev, CreateController, DeleteController, GiveSocket};
    if let Some(bdev) = &seen.bdev {
        same_backing(spec, bdev)?;
    }
    match (&seen.controller, &seen.bdev) {
        (None, None) => Ok(vec![CreateBdev, CreateController, GiveSocket]),
        (None, Some(_)) => match &seen.served_by_another {
            None => Ok(vec![CreateController, GiveSocket]),
            // Nothing would keep two virtual machines from writing to one disk.
            Some(other) => Err(Fault::new(
                Code::BdevBelongsToAnother,
                format!(
                    "the controller {other} serves the bdev {} already: use another name, or take that \
                     one away first",
                    spec.bdev
                ),
            )),
        },
        (Some(controller), bdev) => {
            let Some(wrong) = what_is_wrong(spec, controller, bdev.as_ref()) else {
                return Ok(if seen.socket_is_given { Vec::new() } else { vec![GiveSocket] });
            };
            if !controller.sessions.is_empty() {
                return Err(Fault::new(
                    Code::VolumeDrift,
                    format!(
                        "{wrong}, and a virtual machine is connected: shut it down, and the volume is \
                         brought about anew"
                    ),
                ));
            }
            let make_bdev = bdev.is_none().then_some(CreateBdev);
            let rest = [CreateController, GiveSocket];
            Ok([DeleteController].into_iter().chain(make_bdev).chain(rest).collect())
        }
    }
}

/// Refuses `new` volumes that write to the same file or device as another volume, whether that is desired or in `new`.
/// `is_one` decides whether two paths name the same file.
///
/// # Errors
/// `volume-conflict`, with the other volume.
pub fn one_writer_each(
    target: &TargetName,
    new: &[VolumeSpec],
    desired: &Desired,
    is_one: impl Fn(&str, &str) -> bool,
) -> Result<(), Fault> {
    let of_others = desired
        .volumes
        .iter()
        .flat_map(|(of, volumes)| volumes.values().map(move |spec| (of, spec)));
    let all = of_others.chain(new.iter().map(|spec| (target, spec)));
    let writers: Vec<(&TargetName, &VolumeSpec, &str)> =
        all.filter_map(|(of, spec)| Some((of, spec, spec.writes_to()?))).collect();
    for spec in new {
        let Some(own) = spec.writes_to() else { continue };
        let other = writers
            .iter()
            .find(|(of, other, at)| (*of, &other.name) != (target, &spec.name) && is_one(own, at));
        if let Some((of, other, _)) = other {
            let text = format!(
                "the volume {} of {of} is written to {own} already, and two virtual machines that write to one disk \
                 destroy it: use another, make one of them read-only, or deactivate the other first",
                other.name
            );
            return Err(Fault::new(Code::VolumeConflict, text));
        }
    }
    Ok(())
}

/// Plans the removal of a volume: of its controller and its bdev, as far as they exist. Parts that existed `before` the
/// request stay. A bdev that somebody else uses stays too, because the guests there would get I/O errors.
///
/// # Errors
/// While a virtual machine is connected.
pub fn take_away(seen: &VolumeSeen, before: &VolumeSeen) -> Result<Vec<VolumeStep>, Fault> {
    if seen.controller.as_ref().is_some_and(|controller| !controller.sessions.is_empty()) {
        return Err(in_use("a virtual machine is connected to it"));
    }
    let controller = seen.controller.as_ref().filter(|_| before.controller.is_none());
    let is_free = before.bdev.is_none() && used_by_another(seen).is_none();
    let bdev = seen.bdev.as_ref().filter(|_| is_free);
    let controller = controller.map(|_| VolumeStep::DeleteController);
    Ok(controller.into_iter().chain(bdev.map(|_| VolumeStep::DeleteBdev)).collect())
}

/// Reason why the bdev must stay, if somebody else uses it.
pub fn used_by_another(seen: &VolumeSeen) -> Option<Fault> {
    let bdev = seen.bdev.as_ref()?;
    match &seen.served_by_another {
        // The guest of `other` would get I/O errors from then on.
        Some(other) => Some(in_use(&format!("the controller {other} serves its bdev"))),
        None => bdev.claimed.then(|| in_use("another part of the target uses its bdev")),
    }
}

/// Refuses a size that a volume must not have now.
///
/// # Errors
/// When a connected virtual machine would see it shrink.
pub fn may_resize(spec: &VolumeSpec, seen: &VolumeSeen, size_mib: u64) -> Result<(), Fault> {
    let guests = seen.controller.as_ref().is_some_and(|controller| !controller.sessions.is_empty());
    let bytes = seen.bdev.as_ref().map_or(0, |bdev| bdev.bytes);
    // A file has its own size, whatever `size_mib` is.
    let is_set = !matches!(spec.backing, Backing::Aio { .. });
    if guests && is_set && size_mib.saturating_mul(1 << 20) < bytes {
        let why = format!(
            "it has {bytes} bytes, more than {size_mib} MiB, and a virtual machine is connected that would lose the rest"
        );
        return Err(in_use(&why));
    }
    Ok(())
}

fn in_use(why: &str) -> Fault {
    let text = format!("{why}: shut the VM down or detach its disk, then call again");
    Fault::new(Code::VolumeInUse, text)
}

/// Reason for which the session of a connected virtual machine does not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionFault {
    /// The virtual machine has set up its queues, and the target did not start the session.
    Refused,
    /// The virtual machine may have lost its reconnect to a target that died: it sends nothing.
    Silent,
}

/// State of a volume that needs no more steps, and the reason. `unstarted` is the fault of a session that has taken
/// longer to start than a session takes.
pub fn evaluate(seen: &VolumeSeen, unstarted: Option<SessionFault>) -> (VolumeState, String) {
    let state = |state, text: &str| (state, text.to_string());
    match &seen.controller {
        None => state(VolumeState::Pending, "its controller is not there yet"),
        Some(_) if unstarted == Some(SessionFault::Refused) => {
            state(VolumeState::Stuck, &format!("a virtual machine is connected, and {NOT_STARTED}"))
        }
        Some(_) if unstarted == Some(SessionFault::Silent) => state(
            VolumeState::Stuck,
            "a virtual machine is connected, and its session does not start: unless that VM is paused or has \
             not booted, it has lost its reconnect to a target that died, and needs a restart",
        ),
        Some(_) if !seen.socket_is_given => state(
            VolumeState::Degraded,
            "its socket is missing, or has not the owner and mode to be used",
        ),
        Some(_) => state(VolumeState::Serving, ""),
    }
}

/// `true` if the bdev of that name certainly holds something else than the volume.
pub fn holds_another(spec: &VolumeSpec, seen: &VolumeSeen) -> bool {
    // The backing of a volume that was made before this agent came is unknown.
    let known = !matches!(&spec.backing, Backing::Zbs { path } if path.is_empty());
    known && seen.bdev.as_ref().is_some_and(|bdev| same_backing(spec, bdev).is_err())
}

fn same_backing(spec: &VolumeSpec, bdev: &BdevSeen) -> Result<(), Fault> {
    let wanted = match &spec.backing {
        Backing::Zbs { path } => Some(format!("{path}{ZBS_SUFFIX}")),
        Backing::Aio { path, .. } => Some(path.as_str().to_string()),
        Backing::Malloc { .. } | Backing::Raw { .. } => None,
    };
    // A target that reports no file leaves nothing to compare.
    let differs = |file: &&String| match (&wanted, &spec.backing) {
        (None, _) => false,
        // The report may begin with the location of the store.
        (Some(wanted), Backing::Zbs { .. }) => {
            *file != wanted && !file.ends_with(&format!("/{wanted}"))
        }
        (Some(wanted), _) => *file != wanted,
    };
    let size = match &spec.backing {
        Backing::Malloc { size_mib, .. } => Some(size_mib.saturating_mul(1 << 20)),
        _ => None,
    };
    let holds = match bdev.file.as_ref().filter(differs) {
        Some(file) => file.clone(),
        None if size.is_some_and(|size| size != bdev.bytes) => format!("{} bytes", bdev.bytes),
        None => return Ok(()),
    };
    Err(Fault::new(
        Code::BdevBelongsToAnother,
        format!(
            "a bdev {} is there that holds {holds}, not what is wanted: delete it, or use another name",
            spec.bdev
        ),
    ))
}

fn what_is_wrong(
    spec: &VolumeSpec,
    controller: &ControllerSeen,
    bdev: Option<&BdevSeen>,
) -> Option<String> {
    let name = spec.bdev.as_str();
    match &controller.bdev {
        None => Some("its bdev was deleted under its controller".to_string()),
        Some(serves) if serves != name => {
            Some(format!("its controller serves the bdev {serves}, not {name}"))
        }
        Some(_) if bdev.is_none() => Some("its bdev is gone".to_string()),
        Some(_) if controller.read_only != spec.read_only => {
            Some(format!("its controller is read-only: {}", controller.read_only))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
