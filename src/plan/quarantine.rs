//! Volumes that take their target down while they are made. Pure.
//!
//! A volume whose making was open when the process exited, or was killed for its silence, is suspected. A volume
//! whose making was open alone is the culprit: it is made only while no guest is connected to another volume of the
//! target, with pauses that double, for one volume never takes the others down twice. Volumes that were open together
//! are made after all others, one at a time, so that the culprit is found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::retry::Retry;
use crate::model::volume::VolumeName;

/// Exit of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Killed by the agent for its silence.
    Killed,
    /// Killed from outside (SIGKILL, out of memory), which makes no volume the culprit.
    FromOutside,
    ByItself,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Exit::Killed => "killed by the agent",
            Exit::FromOutside => "killed from outside",
            Exit::ByItself => "exited by itself",
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Blame {
    /// Made together with others, or the exit may have another cause.
    Suspect,
    /// Made alone when the target went down; with the backoff of the next attempts.
    Culprit(Retry),
}

/// Suspects and culprits among the volumes of a target.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Quarantine(BTreeMap<VolumeName, Blame>);

/// Record on disk for the next agent: this one may die while a volume hangs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRecord {
    /// Process in which volumes are being made.
    pub pid: Option<u32>,
    /// Volumes that are being made.
    pub making: BTreeSet<VolumeName>,
    pub suspects: BTreeSet<VolumeName>,
    /// Volumes that are known to take their target down.
    pub culprits: BTreeSet<VolumeName>,
}

/// Permission to make a volume now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreatePermit {
    /// With all others.
    Together,
    /// After all others, one at a time.
    Alone,
    /// Not now.
    No,
}

impl Quarantine {
    /// Restores the record of the previous agent; each pause begins anew.
    pub fn recall(remembered: &QuarantineRecord, fresh: &Retry, now: Instant) -> Quarantine {
        let suspects = remembered.suspects.iter().map(|name| (name.clone(), Blame::Suspect));
        let culprits = remembered.culprits.iter().map(|name| {
            let mut retry = fresh.clone();
            retry.failed(now);
            (name.clone(), Blame::Culprit(retry))
        });
        Quarantine(suspects.chain(culprits).collect())
    }

    /// Record for the next agent; `making` has the volumes being made and the pid of their process.
    pub fn remembers(&self, making: Option<(u32, BTreeSet<VolumeName>)>) -> QuarantineRecord {
        let (culprits, suspects): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|(_, blame)| matches!(blame, Blame::Culprit(_)));
        let names = |held: Vec<(&VolumeName, &Blame)>| {
            held.into_iter().map(|(name, _)| name.clone()).collect()
        };
        let (pid, making) = making.filter(|(_, names)| !names.is_empty()).unzip();
        QuarantineRecord {
            pid,
            making: making.unwrap_or_default(),
            suspects: names(suspects),
            culprits: names(culprits),
        }
    }

    /// Records that the target went down while the volumes in `open` were being made. `fresh` is a backoff without
    /// failures.
    pub fn went_down(
        &mut self,
        open: &BTreeSet<VolumeName>,
        exit: Exit,
        fresh: &Retry,
        now: Instant,
    ) {
        let alone = open.len() == 1 && exit != Exit::FromOutside;
        for name in open {
            let blame = self.0.entry(name.clone()).or_insert(Blame::Suspect);
            match blame {
                Blame::Culprit(retry) => retry.failed(now),
                Blame::Suspect if alone => {
                    let mut retry = fresh.clone();
                    retry.failed(now);
                    *blame = Blame::Culprit(retry);
                }
                Blame::Suspect => {}
            }
        }
    }

    /// Permission to make a volume; `guests` is set if guests use other volumes of the target, and would lose their
    /// disks.
    pub fn leave(&self, name: &VolumeName, guests: bool, now: Instant) -> CreatePermit {
        match self.0.get(name) {
            None => CreatePermit::Together,
            Some(Blame::Suspect) => CreatePermit::Alone,
            Some(Blame::Culprit(_)) if guests => CreatePermit::No,
            Some(Blame::Culprit(retry)) => match retry.due() {
                Some(due) if due > now => CreatePermit::No,
                _ => CreatePermit::Alone,
            },
        }
    }

    /// Releases a volume that was made, or whose making was refused: in both cases the target answered.
    pub fn made(&mut self, name: &VolumeName) {
        self.0.remove(name);
    }

    /// Releases all volumes: the target is a new one, about which the exits of its predecessor say nothing.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Number of suspects, which are made one at a time.
    pub fn suspects(&self) -> usize {
        self.0.values().filter(|blame| **blame == Blame::Suspect).count()
    }

    /// `true` if no volume is in quarantine.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::policy::HealPolicy;

    fn names(names: &[&str]) -> BTreeSet<VolumeName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn volume_that_was_made_alone_waits_until_no_other_guest_can_be_harmed() {
        let (fresh, now) = (Retry::new(HealPolicy::default(), 7), Instant::now());
        let later = now + Duration::from_secs(1);
        let mut quarantine = Quarantine::default();
        let (bad, good) = ("bad".parse().unwrap(), "good".parse().unwrap());
        quarantine.went_down(&names(&["bad"]), Exit::ByItself, &fresh, now);
        assert_eq!(quarantine.leave(&good, true, now), CreatePermit::Together);
        assert_eq!(quarantine.leave(&bad, true, later), CreatePermit::No);
        assert_eq!(quarantine.leave(&bad, false, now), CreatePermit::No, "with a pause");
        assert_eq!(quarantine.leave(&bad, false, later), CreatePermit::Alone);
        quarantine.went_down(&names(&["bad"]), Exit::Killed, &fresh, later);
        assert_eq!(quarantine.leave(&bad, false, later + Duration::from_secs(1)), CreatePermit::No);
        quarantine.made(&bad);
        assert!(quarantine.is_empty());
    }

    #[test]
    fn volumes_that_were_made_together_are_made_one_by_one_until_the_culprit_is_known() {
        let (fresh, now) = (Retry::new(HealPolicy::default(), 7), Instant::now());
        let mut quarantine = Quarantine::default();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        quarantine.went_down(&names(&["a", "b"]), Exit::ByItself, &fresh, now);
        assert_eq!(quarantine.leave(&a, true, now), CreatePermit::Alone);
        quarantine.made(&a);
        quarantine.went_down(&names(&["b"]), Exit::ByItself, &fresh, now);
        assert_eq!(quarantine.leave(&a, true, now), CreatePermit::Together);
        assert_eq!(quarantine.leave(&b, true, now), CreatePermit::No);
    }

    #[test]
    fn next_agent_knows_who_is_held_back_and_what_was_being_made() {
        let (fresh, now) = (Retry::new(HealPolicy::default(), 7), Instant::now());
        let mut quarantine = Quarantine::default();
        quarantine.went_down(&names(&["a", "b"]), Exit::ByItself, &fresh, now);
        quarantine.went_down(&names(&["c"]), Exit::Killed, &fresh, now);
        let known = quarantine.remembers(Some((7, names(&["d"]))));
        assert_eq!((known.pid, &known.making), (Some(7), &names(&["d"])));
        assert_eq!((&known.suspects, &known.culprits), (&names(&["a", "b"]), &names(&["c"])));
        let next = Quarantine::recall(&known, &fresh, now);
        assert_eq!(next.leave(&"a".parse().unwrap(), true, now), CreatePermit::Alone);
        assert_eq!(next.leave(&"c".parse().unwrap(), false, now), CreatePermit::No);
        assert_eq!(
            next.remembers(None),
            QuarantineRecord { pid: None, making: names(&[]), ..known }
        );
        assert_eq!(Quarantine::default().remembers(None), QuarantineRecord::default());
    }

    #[test]
    fn kill_from_outside_makes_no_culprit() {
        let (fresh, now) = (Retry::new(HealPolicy::default(), 7), Instant::now());
        let mut quarantine = Quarantine::default();
        quarantine.went_down(&names(&["a"]), Exit::FromOutside, &fresh, now);
        assert_eq!(quarantine.leave(&"a".parse().unwrap(), true, now), CreatePermit::Alone);
    }
}
