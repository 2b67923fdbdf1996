//! The settings of volumes, and of bringing targets back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units::{Mode, Span};
use crate::model::policy::{HealPolicy, VolumePolicy};

/// Volumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Volume {
    /// Owner of a volume's socket, by number: the one that QEMU runs as.
    pub socket_uid: u32,
    /// Its group, by number.
    pub socket_gid: u32,
    /// Its mode, in octal.
    pub socket_mode: Mode,
    /// How long a target may take for one call about a volume.
    pub call_timeout: Span,
    /// Between two looks at the volumes of a target: nobody tells when a VM connects.
    pub look_interval: Span,
    /// How long the session of a VM may take to start until its volume is stuck.
    pub stuck_after: Span,
    /// Free 2 MiB pages that stay when the last volume of the node goes.
    pub keep_pages: u64,
    /// How long the node stays without volumes until the others are given back: the next may be on its way,
    /// and its VM has asked for pages already.
    pub give_back_after: Span,
}

/// Bringing targets back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heal {
    /// Whether a target that is wanted and falls is brought back; the agent's start brings it back either
    /// way.
    pub enabled: bool,
    /// Between the first two attempts; doubled with each failure …
    pub first_delay: Span,
    /// … up to this.
    pub max_delay: Span,
    /// Taken off at random, at most, in percent of it.
    pub jitter_percent: u32,
    /// Service after which earlier failures are forgotten.
    pub clear_after: Span,
    /// How long a target that fell again has to stand and answer before it gets a controller.
    pub prove: Span,
    /// How long a target that is stopped, or makes no progress, may be silent until it is killed and brought
    /// back.
    pub frozen_after: Span,
    /// How long one with volumes that computes and answers nothing may be silent until it is; zero is for ever.
    pub kill_unresponsive_after: Span,
    /// After controllers were made, how long their target is not killed.
    pub settle: Span,
}

impl Default for Volume {
    fn default() -> Volume {
        Volume {
            socket_uid: 0,
            socket_gid: 0,
            socket_mode: Mode(0o660),
            call_timeout: Span::from_secs(30),
            look_interval: Span::from_secs(10),
            stuck_after: Span::from_secs(3),
            keep_pages: 512,
            give_back_after: Span::from_secs(30),
        }
    }
}

impl Default for Heal {
    fn default() -> Heal {
        Heal {
            enabled: true,
            first_delay: Span::from_secs(1),
            max_delay: Span::from_secs(64),
            jitter_percent: 20,
            clear_after: Span::from_secs(60),
            prove: Span::from_secs(3),
            frozen_after: Span::from_secs(3),
            kill_unresponsive_after: Span::from_secs(60),
            settle: Span::from_secs(1),
        }
    }
}

impl Volume {
    pub(super) fn policy(&self) -> VolumePolicy {
        VolumePolicy {
            socket_uid: self.socket_uid,
            socket_gid: self.socket_gid,
            socket_mode: self.socket_mode.0,
            call_timeout: self.call_timeout.0,
            look_interval: self.look_interval.0,
            stuck_after: self.stuck_after.0,
            keep_pages: self.keep_pages,
        }
    }

    /// What is wrong with it, as the key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let look = ("volume.look_interval", self.look_interval.0, Duration::from_millis(100));
        let call = ("volume.call_timeout", self.call_timeout.0, Duration::from_millis(100));
        // A target of some versions takes a second to start a session.
        let stuck = ("volume.stuck_after", self.stuck_after.0, Duration::from_millis(1500));
        too_short([look, call, stuck])
    }
}

impl Heal {
    pub(super) fn policy(&self) -> HealPolicy {
        HealPolicy {
            enabled: self.enabled,
            first: self.first_delay.0,
            most: self.max_delay.0,
            jitter_percent: self.jitter_percent,
            clear_after: self.clear_after.0,
            prove: self.prove.0,
            frozen_after: self.frozen_after.0,
            kill_unresponsive_after: self.kill_unresponsive_after.0,
            settle: self.settle.0,
        }
    }

    /// What is wrong with it, as the key and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let least = Duration::from_millis(100);
        let short = too_short([
            ("heal.first_delay", self.first_delay.0, least),
            ("heal.max_delay", self.max_delay.0, self.first_delay.0),
            ("heal.frozen_after", self.frozen_after.0, least),
        ]);
        let jitter = (self.jitter_percent > 50)
            .then(|| ("heal.jitter_percent", format!("{} is more than 50", self.jitter_percent)));
        short.or(jitter)
    }
}

fn too_short<const N: usize>(
    spans: [(&'static str, Duration, Duration); N],
) -> Option<(&'static str, String)> {
    let mut short = spans.into_iter().filter(|(_, span, least)| span < least);
    short.next().map(|(key, span, least)| (key, format!("{span:?} is less than {least:?}")))
}
