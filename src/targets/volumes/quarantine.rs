//! Quarantine of a target's volumes: the evidence against volumes whose making took the target down, and the delay of
//! their next making.
//!
//! The policy is in [`crate::plan::quarantine`]; this is its state on the node, and the part of it that is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Plans;
use crate::agent::apply::volumes::Unanswered;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::target::TargetName;
use crate::model::volume::{VolumeName, VolumeSpec};
use crate::plan::quarantine::{CreatePermit, Exit, Quarantine, QuarantineRecord};
use crate::plan::retry::Retry;

pub(in crate::targets) struct VolumeQuarantine {
    held: Quarantine,
    written: QuarantineRecord,
    /// Pid of the process in which the previous agent was making volumes when it ended, and these volumes.
    inherited: Option<(u32, BTreeSet<VolumeName>)>,
    /// Volumes whose making was not answered.
    pub(super) unanswered: Unanswered,
    /// Last exit of the process, if it is known.
    exit: Option<Exit>,
}

impl VolumeQuarantine {
    /// Restores the quarantine that the previous agent recorded.
    pub(in crate::targets) fn recall(
        written: QuarantineRecord,
        fresh: &Retry,
        now: Instant,
    ) -> VolumeQuarantine {
        VolumeQuarantine {
            held: Quarantine::recall(&written, fresh, now),
            inherited: written.pid.map(|pid| (pid, written.making.clone())),
            written,
            unanswered: Unanswered::default(),
            exit: None,
        }
    }

    /// Forgets everything: the target is another one, or gone.
    pub(in crate::targets) fn clear(&mut self) {
        self.held.clear();
        (self.inherited, self.exit) = (None, None);
        let _ = self.unanswered.take();
    }

    /// `true` if it is known how the process exited.
    pub(in crate::targets) fn has_exit(&self) -> bool {
        self.exit.is_some()
    }

    /// Notes an exit of the process. After a kill by the agent, the kill stays the cause of the exit that follows.
    pub(in crate::targets) fn note_exit(&mut self, exit: Exit) {
        self.exit = Some(self.exit.filter(|exit| *exit == Exit::Killed).unwrap_or(exit));
    }

    /// Suspects the volumes whose making was open when the target went down; none if the same process still has all
    /// volumes (`in_place`). `serving` is the process that serves.
    pub(super) fn suspect(
        &mut self,
        name: &TargetName,
        serving: Option<u32>,
        in_place: bool,
        fresh: &Retry,
    ) {
        let mut open = self.unanswered.take();
        let exit = self.exit.take().unwrap_or(Exit::ByItself);
        // Volumes that the previous agent was making when it ended, unless their process still serves.
        if let Some((_, mut making)) =
            self.inherited.take().filter(|(pid, _)| Some(*pid) != serving)
        {
            open.append(&mut making);
        }
        if open.is_empty() || in_place {
            return;
        }
        self.held.went_down(&open, exit, fresh, now());
        let names: Vec<&str> = open.iter().map(VolumeName::as_str).take(10).collect();
        tracing::error!(
            target_name = %name, volumes = open.len(), %exit,
            "{name} exited while these volumes were made; they are quarantined, and made last, one at a time: {}",
            names.join(", ")
        );
    }

    /// Notes that a volume was made, or its making refused: the target answered.
    pub(super) fn made(&mut self, name: &VolumeName) {
        self.held.made(name);
    }

    /// Number of volumes that are to be made one at a time.
    pub(super) fn suspects(&self) -> usize {
        self.held.suspects()
    }

    /// Record for the next agent, if it differs from the written one: volumes that are held back, and those that are
    /// being made (by the process that serves) or were not answered.
    pub(super) fn unwritten(
        &self,
        mut making: BTreeSet<VolumeName>,
        serving: Option<u32>,
    ) -> Option<QuarantineRecord> {
        // Without new volumes, the record is still about the process in which the unanswered ones were made.
        let mut pid = if making.is_empty() { self.written.pid } else { serving };
        making.append(&mut self.unanswered.names());
        if let Some((of, names)) = &self.inherited {
            making.extend(names.iter().cloned());
            pid = Some(*of);
        }
        let known = self.held.remembers(pid.map(|pid| (pid, making)));
        (known != self.written).then_some(known)
    }

    /// Notes that the record was written.
    pub(super) fn note_written(&mut self, known: QuarantineRecord) {
        self.written = known;
    }

    /// Removes from the plans the volumes that are not to be made now, or not together with others, and returns the
    /// reasons. `has_guests` is `true` if guests use any other volume.
    pub(super) fn hold_back(
        &self,
        plans: &mut Plans,
        in_place: bool,
        has_guests: impl Fn(&VolumeName) -> bool,
    ) -> BTreeMap<VolumeName, Fault> {
        let mut faults = BTreeMap::new();
        if self.held.is_empty() {
            return faults;
        }
        let now = now();
        let leave = |spec: &VolumeSpec| self.held.leave(&spec.name, has_guests(&spec.name), now);
        let mut alone =
            in_place && plans.iter().all(|(spec, _)| leave(spec) != CreatePermit::Together);
        plans.retain(|(spec, _)| {
            let text = match leave(spec) {
                CreatePermit::Together => return true,
                CreatePermit::Alone if std::mem::take(&mut alone) => return true,
                CreatePermit::Alone => "its target went down while it was made: it is made alone, after all others",
                CreatePermit::No => {
                    "its target went down while it was made alone: it is tried again when no virtual machine is \
                     connected to another volume of that target, or when the target was replaced (deploy with \
                     recreate)"
                }
            };
            faults.insert(spec.name.clone(), Fault::new(Code::VolumeQuarantined, text));
            false
        });
        faults
    }
}

/// Current time, by the clock that tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
