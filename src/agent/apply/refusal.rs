//! Advice for the operator about a volume that a target refused, for a target reports only an error number.
//!
//! Derived from the refusal and the settings only. Nothing is refused here: a path that the settings do not share may
//! be in the image.

use std::path::Path;

use super::super::observe::volumes::VolumesLocation;
use crate::model::policy::TargetSettings;
use crate::model::target::TargetKind;
use crate::model::volume::{Backing, VolumeSpec, VolumeStep};
use crate::spdk::SpdkError;

/// Negative error numbers with which SPDK answers `bdev_aio_create` (packaging/doc/facts.md, "Errors").
const NOT_FOUND: i64 = -2;
const NO_MEMORY: i64 = -12;
const IS_FOLDER: i64 = -21;
const INVALID: i64 = -22;

/// Advice to append to the target's own message about the failed `step`; empty if that message says all that is known.
pub(super) fn advice(
    step: VolumeStep,
    spec: &VolumeSpec,
    place: &VolumesLocation,
    settings: &TargetSettings,
    error: &SpdkError,
) -> String {
    let SpdkError::Refused { code, .. } = error else { return String::new() };
    let explanation = match (step, &spec.backing) {
        (VolumeStep::CreateController, _) if error.is_exhausted() => of_memory(place, settings),
        (VolumeStep::CreateBdev, Backing::Aio { path, block_size }) => {
            of_file(path.as_str(), *block_size, *code, place, settings)
        }
        _ => None,
    };
    explanation.map(|explanation| format!(": {explanation}")).unwrap_or_default()
}

/// Advice on exhaustion: SPDK answers the same for memory, descriptors, a full table of sockets (`MAX_FDS` of
/// `fd_man.h` in DPDK 23.11) and a path where no socket can be made.
fn of_memory(place: &VolumesLocation, settings: &TargetSettings) -> Option<String> {
    if place.kind == TargetKind::BuiltIn {
        return None;
    }
    let memory = match settings.says_memory(place.kind) {
        true => format!(
            "its memory (memory_mib {}; 512 hold about 880 controllers): deploy it again with a larger memoryMib and \
             recreate",
            place.memory_mib
        ),
        false => {
            "its memory (its command in the settings says no {memoryMib}): give it more".to_string()
        }
    };
    Some(format!(
        "the target may have used up {memory}; or its descriptors (1,024 hold 496 controllers): raise the engine's limit \
         of open files; or all the sockets that one process has with DPDK 23.11 and older (1,023): spread the volumes over two \
         targets; or something else lies at the path of its socket"
    ))
}

fn of_file(
    path: &str,
    block_size: Option<u32>,
    code: i64,
    place: &VolumesLocation,
    settings: &TargetSettings,
) -> Option<String> {
    let explanation = match (code, block_size) {
        (NOT_FOUND, _) if !is_seen(path, place, settings) => format!(
            "{path} lies in no folder and is no device that its container gets ({}): add the folder to target.mounts or \
             the device to target.devices, restart the agent, and at a quiet time end the container (docker kill): it \
             comes back with what was added",
            given(place, settings).collect::<Vec<_>>().join(", ")
        ),
        (NOT_FOUND, _) => format!(
            "{path} is not there, or its target may not open it: see that it is there under this path in the container, \
             and that its owner and mode let root open it without capabilities"
        ),
        (IS_FOLDER, _) => format!("{path} is a folder: name a file or a block device"),
        (INVALID, None) => {
            format!(
                "{path} is a file, which has no block size of its own: give blockSize, 512 or 4096"
            )
        }
        (INVALID, Some(bytes)) => format!(
            "blockSize {bytes} does not fit {path}: not less than the device's own, and its size a multiple of it"
        ),
        (NO_MEMORY, _) => format!(
            "the target has no memory for {path}: give it a blockSize of 512 or 4096, or the target a larger memoryMib"
        ),
        _ => return None,
    };
    Some(explanation)
}

/// `true` if, according to the settings, the container gets the path from the host.
fn is_seen(path: &str, place: &VolumesLocation, settings: &TargetSettings) -> bool {
    given(place, settings).any(|given| Path::new(path).starts_with(given))
        || settings.privileged && Path::new(path).starts_with("/dev")
}

/// Folders and devices of the host that the container gets.
fn given(place: &VolumesLocation, settings: &TargetSettings) -> impl Iterator<Item = String> {
    let mounts = settings.binds().map(|(path, _)| path);
    let devices = settings.devices.iter().cloned();
    [place.sockets.as_str().to_string()].into_iter().chain(mounts).chain(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(kind: TargetKind) -> VolumesLocation {
        VolumesLocation {
            control: "/sockets/vhost.sock".parse().unwrap(),
            sockets: "/sockets".parse().unwrap(),
            kind,
            memory_mib: 512,
        }
    }

    fn settings() -> TargetSettings {
        TargetSettings { devices: vec!["/dev/sdb".into()], ..TargetSettings::example() }
    }

    fn explanation(
        step: VolumeStep,
        spec: &VolumeSpec,
        kind: TargetKind,
        code: i64,
        words: &str,
    ) -> String {
        let error = SpdkError::Refused {
            socket: "/sockets/vhost.sock".into(),
            method: "m".into(),
            code,
            message: words.to_string(),
        };
        advice(step, spec, &place(kind), &settings(), &error)
    }

    #[test]
    fn refused_file_says_its_cause_and_the_setting() {
        let of = |path: &str, block_size, code| {
            let backing = Backing::Aio { path: path.parse().unwrap(), block_size };
            let spec = VolumeSpec { backing, ..VolumeSpec::example("v") };
            explanation(VolumeStep::CreateBdev, &spec, TargetKind::Spdk, code, "x")
        };
        let outside = of("/srv/disk", Some(512), -2);
        for words in ["/srv/disk", "target.mounts", "/sockets, /opt, /dev/sdb"] {
            assert!(outside.contains(words), "{outside}");
        }
        for path in ["/sockets/disk", "/opt/a/disk", "/dev/sdb"] {
            let missing = of(path, Some(512), -2);
            assert!(missing.contains("is not there") && !missing.contains("mounts"), "{missing}");
        }
        assert!(of("/sockets-of-another/disk", None, -2).contains("target.mounts"));
        assert!(of("/opt/disk", None, -22).contains("give blockSize, 512 or 4096"));
        assert!(of("/opt/disk", Some(4096), -22).contains("blockSize 4096 does not fit"));
        assert!(of("/opt", Some(512), -21).contains("is a folder"));
        assert!(of("/opt/disk", Some(65536), -12).contains("memory"));
        assert_eq!(of("/opt/disk", Some(512), -17), "");
    }

    #[test]
    fn refused_controller_names_memory_and_descriptors() {
        let of = |kind, code, words| {
            explanation(VolumeStep::CreateController, &VolumeSpec::example("v"), kind, code, words)
        };
        let full = of(TargetKind::Spdk, -32602, "Input/output error");
        for words in ["memory_mib 512;", "larger memoryMib and recreate", "1,024", "1,023"] {
            assert!(full.contains(words), "{full}");
        }
        let of_zbs = of(TargetKind::Zbs, -32602, "Input/output error");
        assert!(of_zbs.contains("descriptors") && !of_zbs.contains("memoryMib and"), "{of_zbs}");
        assert_eq!(of(TargetKind::BuiltIn, -32602, "Input/output error"), "");
        assert_eq!(of(TargetKind::Spdk, -32602, "File exists"), "");
    }
}
