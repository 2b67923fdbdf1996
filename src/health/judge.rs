//! From what is seen of a target to its state. Pure.
//!
//! ```text
//!            asked for         answered                  two in a row
//! absent ───────────▶ starting ───────▶ serving ───────────────────────▶ degraded
//!                        ▲                 ▲       probes not answered       │
//!                        │                 └──────────── answered ───────────┘
//!                        └── brought up ── failed ◀── its process or container is gone
//! ```
//!
//! That a process has ended is certain, and judged at once. That a probe was not answered is not: a busy
//! target may answer the next one, so it takes [`MISSES`] in a row to turn one that serves.

use std::time::{Duration, Instant};

use crate::model::target::{TargetState, Work};

/// Unanswered probes in a row after which a target that served does no more. With two probes on their way
/// within the age that an answer may have, that is within this age and a probe's deadline.
pub const MISSES: u32 = 2;

/// A target's process, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// The engine has no container of that name.
    NoContainer,
    /// The container's process lives.
    Lives {
        /// Whether it is so young that it may still be starting.
        young: bool,
    },
    /// It has ended; the text says how.
    Ended(String),
    /// The engine does not answer, and nothing is known of the process; the text says why.
    Unknown(String),
}

/// What is wanted of the target now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Aim {
    /// Whether it is to be there.
    pub wanted: bool,
    /// What its owner does with it, when it is at work.
    pub at_work: Option<Work>,
    /// That it falls again and again, with the evidence.
    pub trouble: Option<String>,
}

/// What the probes of one process came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The version that it answered last.
    version: Option<String>,
    /// Probes without an answer since then.
    misses: u32,
    /// Why the last of them had none.
    silence: String,
    /// When the one was sent that was answered last …
    answered: Option<Instant>,
    /// … and the one that counts as missed last.
    missed: Option<Instant>,
}

/// Two probes that were sent with less between them share one stall of their target.
const APART: Duration = Duration::from_millis(100);

impl Record {
    /// Notes the end of a probe that was sent at that time: the version, or why there was no answer.
    ///
    /// Those that were on their way together share one stall, and one that was sent before the last
    /// answer is overtaken by it: neither is another miss.
    pub fn note(&mut self, sent: Instant, answer: Result<String, String>) {
        match answer {
            Ok(version) => {
                let answered = self.answered.max(Some(sent));
                *self = Record { version: Some(version), answered, ..Record::default() };
            }
            Err(why) => {
                let overtaken = self.answered.is_some_and(|at| sent <= at);
                let same_stall = self.missed.is_some_and(|at| sent < at + APART);
                if !(overtaken || same_stall && self.is_in_doubt()) {
                    self.misses = self.misses.saturating_add(1);
                    self.missed = Some(sent);
                    self.silence = why;
                }
            }
        }
    }

    /// When the probe was sent that was answered last.
    pub fn answered(&self) -> Option<Instant> {
        self.answered
    }

    /// The version, when the last probe was answered or it is too early to doubt it.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref().filter(|_| self.misses < MISSES)
    }

    /// Whether one more probe decides: it served, and has missed some, but too few.
    pub fn is_in_doubt(&self) -> bool {
        self.version.is_some() && (1..MISSES).contains(&self.misses)
    }

    fn is_empty(&self) -> bool {
        self.version.is_none() && self.misses == 0
    }
}

/// The state and its reason. Running is not serving (field note 12): only an answer counts.
pub fn judge(process: &Process, record: &Record, aim: Aim) -> (TargetState, String) {
    use TargetState::{Absent, Degraded, Failed, Serving, Starting};
    let told = |state, text: &str| (state, text.to_string());
    let rebuilds = aim.at_work == Some(Work::Rebuild);
    match (process, record.version()) {
        (Process::Lives { .. }, Some(version)) if !rebuilds && aim.trouble.is_none() => {
            (Serving, format!("{version} answers"))
        }
        // Until it has served for a while, one that always falls again is no better for being up again.
        (_, _) if aim.wanted && aim.trouble.is_some() => (Failed, aim.trouble.unwrap_or_default()),
        (Process::Lives { .. }, Some(version)) => {
            (Starting, format!("{version} answers, and its volumes are being brought back"))
        }
        (Process::Lives { .. }, None) if record.is_empty() => {
            told(Starting, "its process lives, and has not been asked yet")
        }
        (Process::Lives { young: true }, None) if record.version.is_none() => {
            (Starting, format!("its process lives, and does not answer yet: {}", record.silence))
        }
        (Process::Lives { .. }, None) => (Degraded, record.silence.clone()),
        (Process::Unknown(why), Some(_)) => {
            (Degraded, format!("the control socket answers, but whose it is cannot be told: {why}"))
        }
        (_, _) if aim.at_work == Some(Work::BringUp) => told(Starting, "it is being brought up"),
        (_, _) if aim.at_work == Some(Work::TakeAway) => told(Absent, "it is being taken away"),
        (Process::NoContainer, _) if aim.wanted => {
            told(Failed, "it is wanted, and there is no container of that name")
        }
        (Process::NoContainer, _) => told(Absent, "there is no container of that name"),
        (Process::Ended(how), _) => (Failed, how.clone()),
        (Process::Unknown(why), None) => {
            let state = if aim.wanted { Failed } else { Absent };
            let silence = match record.silence.is_empty() {
                true => String::new(),
                false => format!("{}; and ", record.silence),
            };
            (state, format!("{silence}the engine cannot be asked: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TargetState::{Absent, Degraded, Failed, Serving, Starting};

    const OLD: Process = Process::Lives { young: false };
    const YOUNG: Process = Process::Lives { young: true };
    const WANTED: Aim = Aim { wanted: true, at_work: None, trouble: None };

    /// What a process with these probes is: `+` answered, `-` not.
    fn record(probes: &str) -> Record {
        let (mut record, mut sent) = (Record::default(), Instant::now());
        for probe in probes.chars() {
            sent += Duration::from_millis(500);
            record.note(sent, answer(probe == '+'));
        }
        record
    }

    fn answer(answered: bool) -> Result<String, String> {
        answered.then(|| "SPDK v24.01".to_string()).ok_or("no answer within 1s".to_string())
    }

    #[test]
    fn probes_that_share_one_stall_are_one_miss_and_an_overtaken_one_is_none() {
        let begin = Instant::now();
        let at = |millis: u64| begin + Duration::from_millis(millis);
        let mut record = Record::default();
        record.note(at(0), answer(true));
        for sent in [10, 20, 60, 109] {
            record.note(at(sent), answer(false));
            assert!(record.is_in_doubt(), "{sent}");
        }
        record.note(at(300), answer(true));
        record.note(at(200), answer(false));
        assert!(!record.is_in_doubt(), "it was sent before the one that was answered");
        record.note(at(400), answer(false));
        record.note(at(500), answer(false));
        assert_eq!(record.version(), None);
    }

    #[test]
    fn only_a_living_process_with_an_answer_serves() {
        let unknown = || Process::Unknown("it hangs".to_string());
        let ended = || Process::Ended("exit code 1".to_string());
        for (process, probes, state) in [
            (OLD, "+", Serving),
            (OLD, "-", Degraded),
            (YOUNG, "-", Starting),
            (YOUNG, "", Starting),
            (ended(), "+", Failed),
            (ended(), "-", Failed),
            (Process::NoContainer, "+", Failed),
            (unknown(), "+", Degraded),
            (unknown(), "-", Failed),
        ] {
            assert_eq!(judge(&process, &record(probes), WANTED).0, state, "{process:?} {probes}");
        }
    }

    #[test]
    fn one_missed_probe_is_no_proof_and_one_answer_is() {
        for (probes, state) in [
            ("+-", Serving),
            ("+--", Degraded),
            ("+-+-+-", Serving),
            ("+---+", Serving),
            ("--+", Serving),
        ] {
            for process in [OLD, YOUNG] {
                assert_eq!(judge(&process, &record(probes), WANTED).0, state, "{probes}");
            }
        }
        assert!(record("+-").is_in_doubt());
        assert!(!record("+").is_in_doubt() && !record("+--").is_in_doubt());
        assert!(!record("-").is_in_doubt(), "it never served");
    }

    #[test]
    fn one_that_answers_serves_once_its_volumes_are_back_and_it_does_not_always_fall_again() {
        let rebuilds = Aim { at_work: Some(Work::Rebuild), ..WANTED };
        assert_eq!(judge(&OLD, &record("+"), rebuilds.clone()).0, Starting);
        assert_eq!(judge(&OLD, &record("+--"), rebuilds.clone()).0, Degraded);
        assert_eq!(judge(&Process::Ended(String::new()), &record("+"), rebuilds).0, Failed);
        let falls = || Aim { trouble: Some("it fell 4 times".to_string()), ..WANTED };
        let brought_up = Aim { at_work: Some(Work::BringUp), ..falls() };
        for (process, aim) in [(OLD, falls()), (Process::NoContainer, brought_up)] {
            let told = (Failed, "it fell 4 times".to_string());
            assert_eq!(judge(&process, &record("+"), aim), told, "{process:?}");
        }
        let unwanted = Aim { wanted: false, ..falls() };
        assert_eq!(judge(&Process::NoContainer, &record(""), unwanted).0, Absent);
    }

    #[test]
    fn not_wanted_is_not_unhealthy() {
        let is = |process: &Process, wanted, at_work| {
            judge(process, &record(""), Aim { wanted, at_work, trouble: None }).0
        };
        let away = Process::Unknown("nobody listens".to_string());
        for process in [&Process::NoContainer, &away] {
            assert_eq!(is(process, false, None), Absent);
            assert_eq!(is(process, true, None), Failed);
            assert_eq!(is(process, true, Some(Work::BringUp)), Starting);
            assert_eq!(is(process, false, Some(Work::BringUp)), Starting);
            assert_eq!(is(process, true, Some(Work::TakeAway)), Absent);
        }
    }
}
