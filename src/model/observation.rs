//! Observations of a target: facts with their age, and no evaluation.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::buffers::BufferUse;

/// Number of unanswered probes in a row from which on a target that had answered counts as not answering. With two
/// probes within the age that an answer may have, its silence is found within that age plus a probe's deadline.
pub const FAILURE_THRESHOLD: u32 = 2;

/// Time between the sending of two probes below which both are missed by the same stall of their target.
const APART: Duration = Duration::from_millis(100);

/// Observation of a target at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Sequence number, larger for each later observation, of whatever target.
    pub number: u64,
    /// Time of the observation.
    pub at: Instant,
    pub process: Process,
    pub answers: ProbeResults,
    /// Time when the last probe ended, answered or not.
    pub heard: Option<Instant>,
    /// Activity of the process while it did not answer.
    pub vitals: Vitals,
    /// Start of the silence of a process that had answered, in RFC 3339.
    pub silent_since: Option<String>,
    /// I/O buffers of the process.
    pub buffers: BufferUse,
    /// Set if the process is known, and no newer look at it is under way that could make this observation outdated.
    pub sure: bool,
}

impl Observation {
    /// Observation of a target that was not observed yet.
    pub fn unseen(at: Instant) -> Observation {
        Observation {
            number: 0,
            at,
            process: Process::Unknown("it was not looked at yet".to_string()),
            answers: ProbeResults::default(),
            heard: None,
            vitals: Vitals::default(),
            silent_since: None,
            buffers: BufferUse::default(),
            sure: false,
        }
    }

    /// Version that the target reports; `None` if its process does not live, or does not answer.
    pub fn version(&self) -> Option<&str> {
        self.pid().and_then(|_| self.answers.version())
    }

    /// `true` if an open request of the agent itself explains the silence. A stopped process is never busy.
    pub fn is_busy(&self) -> bool {
        let open = self.vitals.busy_until.is_some_and(|until| self.at < until);
        open && self.vitals.activity != Activity::Stopped
    }

    /// Pid of the living process.
    pub fn pid(&self) -> Option<u32> {
        match self.process {
            Process::Lives { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// `true` if the process is known not to exist.
    pub fn is_gone(&self) -> bool {
        matches!(self.process, Process::NoContainer | Process::Ended(_))
    }
}

/// Process of a target, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// Missing container: the engine has none of that name.
    NoContainer,
    /// Living process of the container.
    Lives {
        pid: u32,
        /// Set if the process has no current answer, and is so young that it may still be starting.
        young: bool,
    },
    /// Exited process; the text says how.
    Ended(String),
    /// Unknown process, for the engine does not answer; the text says why.
    Unknown(String),
}

/// Signs of progress of a silent process (proc_pid_stat(5), `schedstat`, cgroups(7)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vitals {
    pub activity: Activity,
    /// Time when the process was last observed to make progress: one of its threads computed, waited for a CPU, or did
    /// I/O. In a process with reactors, each reactor had to. `None` before the first observation.
    pub progress: Option<Instant>,
    /// Time of the last reply that came after the agent had stopped waiting for it.
    pub replied: Option<Instant>,
    /// Deadline of an open request of the agent itself that changes something in the target. It explains a silence
    /// until then.
    pub busy_until: Option<Instant>,
    /// Method of the request that `busy_until` is the deadline of.
    pub busy_with: Option<Cow<'static, str>>,
}

/// Activity of a process, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// Not observed.
    #[default]
    Unknown,
    /// Able to run.
    Runs,
    /// Stopped by a signal or a debugger (state T or t), or dead and not reaped.
    Stopped,
    /// Frozen cgroup (`docker pause`).
    Paused,
}

/// Results of the probes of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeResults {
    /// Version that the process reported last.
    version: Option<String>,
    /// Number of missed probes since the last answer.
    misses: u32,
    /// Reason why the last missed probe had no answer.
    silence: String,
    /// Time at which the last answered probe was sent.
    answered: Option<Instant>,
    /// Time at which the last missed probe was sent.
    missed: Option<Instant>,
}

impl ProbeResults {
    /// Records the end of the probe that was sent at `sent`. `answer` holds the version, or the reason why there was no
    /// answer.
    ///
    /// An unanswered probe is not counted as missed if it was sent before the last answered one. Nor is it, while the
    /// process is in doubt, if it was sent less than `APART` after the last missed one: both show the same stall.
    pub fn note(&mut self, sent: Instant, answer: Result<String, String>) {
        match answer {
            Ok(version) => {
                let answered = self.answered.max(Some(sent));
                *self =
                    ProbeResults { version: Some(version), answered, ..ProbeResults::default() };
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

    /// Time at which the last answered probe was sent.
    pub fn answered(&self) -> Option<Instant> {
        self.answered
    }

    /// Reason why the last missed probe had no answer.
    pub fn silence(&self) -> &str {
        &self.silence
    }

    /// `true` if the process has ever answered.
    pub fn has_answered(&self) -> bool {
        self.version.is_some()
    }

    /// Version that was reported last; `None` from [`FAILURE_THRESHOLD`] missed probes on.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref().filter(|_| self.misses < FAILURE_THRESHOLD)
    }

    /// Version that was reported last, however long ago.
    pub fn last_version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// `true` if the process has answered, and has missed probes since, but fewer than [`FAILURE_THRESHOLD`]. The next
    /// probe decides.
    pub fn is_in_doubt(&self) -> bool {
        self.version.is_some() && (1..FAILURE_THRESHOLD).contains(&self.misses)
    }

    /// `true` if a probe was missed since the last answer.
    pub fn is_silent(&self) -> bool {
        self.misses > 0
    }

    /// `true` if no probe has ended yet.
    pub fn is_empty(&self) -> bool {
        self.version.is_none() && self.misses == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(answered: bool) -> Result<String, String> {
        answered.then(|| "SPDK v24.01".to_string()).ok_or("no answer within 1s".to_string())
    }

    #[test]
    fn probes_that_share_one_stall_are_one_miss_and_an_overtaken_one_is_none() {
        let begin = Instant::now();
        let at = |millis: u64| begin + Duration::from_millis(millis);
        let mut answers = ProbeResults::default();
        answers.note(at(0), answer(true));
        for sent in [10, 20, 60, 109] {
            answers.note(at(sent), answer(false));
            assert!(answers.is_in_doubt(), "{sent}");
        }
        answers.note(at(300), answer(true));
        answers.note(at(200), answer(false));
        assert!(!answers.is_in_doubt(), "it was sent before the one that was answered");
        answers.note(at(400), answer(false));
        answers.note(at(500), answer(false));
        assert_eq!(answers.version(), None);
    }

    #[test]
    fn one_missed_probe_proves_nothing_and_one_reply_does() {
        let begin = Instant::now();
        let answers = |probes: &str| {
            let (mut answers, mut sent) = (ProbeResults::default(), begin);
            for probe in probes.chars() {
                sent += Duration::from_millis(500);
                answers.note(sent, answer(probe == '+'));
            }
            answers
        };
        for (probes, answers_still) in [
            ("+-", true),
            ("+--", false),
            ("+-+-+-", true),
            ("+---+", true),
            ("--+", true),
            ("-", false),
        ] {
            assert_eq!(answers(probes).version().is_some(), answers_still, "{probes}");
        }
        assert!(answers("+-").is_in_doubt());
        assert!(!answers("+").is_in_doubt() && !answers("+--").is_in_doubt());
        assert!(!answers("-").is_in_doubt(), "it never served");
    }
}
