//! A target as its observer saw it: facts with their age, and no judgement.

use std::borrow::Cow;
use std::time::{Duration, Instant};

/// Unanswered probes in a row after which a target that answered does no more. With two probes on their way
/// within the age that an answer may have, that is within this age and a probe's deadline.
pub const FAILURE_THRESHOLD: u32 = 2;

/// Two probes that were sent with less between them share one stall of their target.
const APART: Duration = Duration::from_millis(100);

/// One look at a target.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Larger with each one that is seen later, of whatever target.
    pub number: u64,
    /// When it was made.
    pub at: Instant,
    /// Its process.
    pub process: Process,
    /// What the process answered.
    pub answers: Answers,
    /// When the last probe ended, answered or not.
    pub heard: Option<Instant>,
    /// What its process was seen to do while it did not answer.
    pub vitals: Vitals,
    /// Since when a process that had answered does not any more, in RFC 3339.
    pub silent_since: Option<String>,
    /// Whether nothing is being looked at that could make it outdated.
    pub sure: bool,
}

impl Observation {
    /// One of which nothing is known yet.
    pub fn unseen(at: Instant) -> Observation {
        Observation {
            number: 0,
            at,
            process: Process::Unknown("it was not looked at yet".to_string()),
            answers: Answers::default(),
            heard: None,
            vitals: Vitals::default(),
            silent_since: None,
            sure: false,
        }
    }

    /// The version that its living process answers.
    pub fn version(&self) -> Option<&str> {
        self.pid().and_then(|_| self.answers.version())
    }

    /// Whether a request of the agent's own explains its silence. None does that of a stopped process.
    pub fn is_busy(&self) -> bool {
        let open = self.vitals.busy_until.is_some_and(|until| self.at < until);
        open && self.vitals.activity != Activity::Stopped
    }

    /// Its living process.
    pub fn pid(&self) -> Option<u32> {
        match self.process {
            Process::Lives { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Whether the process is known not to be there.
    pub fn is_gone(&self) -> bool {
        matches!(self.process, Process::NoContainer | Process::Ended(_))
    }
}

/// A target's process, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// The engine has no container of that name.
    NoContainer,
    /// The container's process lives.
    Lives {
        /// Its pid.
        pid: u32,
        /// Whether it is so young that it may still be starting.
        young: bool,
    },
    /// It has exited; the text says how.
    Ended(String),
    /// The engine does not answer, and nothing is known of the process; the text says why.
    Unknown(String),
}

/// What a silent process is seen to do (proc_pid_stat(5), `schedstat`, cgroups(7)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vitals {
    /// What the kernel says that it does.
    pub activity: Activity,
    /// When one of its threads was seen to compute, to wait for a CPU, or to do I/O last; for a process with
    /// reactors, when each of them was. None as long as it was not looked at.
    pub progress: Option<Instant>,
    /// When a reply of its came last that nobody waited for any more.
    pub replied: Option<Instant>,
    /// Until when a request of the agent's own that changes something explains its silence: its deadline.
    pub busy_until: Option<Instant>,
    /// That request's method.
    pub busy_with: Option<Cow<'static, str>>,
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// It was not looked at.
    #[default]
    Unknown,
    /// It can run.
    Runs,
    /// A signal or a debugger has stopped it (state T or t), or it is dead and not reaped.
    Stopped,
    /// Its cgroup is frozen (`docker pause`).
    Paused,
}

/// What the probes of one process came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
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

impl Answers {
    /// Notes the end of a probe that was sent at that time: the version, or why there was no answer.
    ///
    /// Those that were on their way together share one stall, and one that was sent before the last
    /// answer is overtaken by it: neither is another miss.
    pub fn note(&mut self, sent: Instant, answer: Result<String, String>) {
        match answer {
            Ok(version) => {
                let answered = self.answered.max(Some(sent));
                *self = Answers { version: Some(version), answered, ..Answers::default() };
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

    /// Why the last probe had no answer.
    pub fn silence(&self) -> &str {
        &self.silence
    }

    /// Whether the process has ever answered.
    pub fn has_answered(&self) -> bool {
        self.version.is_some()
    }

    /// The version, when the last probe was answered or it is too early to doubt it.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref().filter(|_| self.misses < FAILURE_THRESHOLD)
    }

    /// The version that it answered last, however long ago that is.
    pub fn last_version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Whether one more probe decides: it served, and has missed some, but too few.
    pub fn is_in_doubt(&self) -> bool {
        self.version.is_some() && (1..FAILURE_THRESHOLD).contains(&self.misses)
    }

    /// Whether a probe was not answered since the last answer.
    pub fn is_silent(&self) -> bool {
        self.misses > 0
    }

    /// Whether no probe has ended yet.
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
        let mut answers = Answers::default();
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
    fn one_missed_probe_is_no_proof_and_one_answer_is() {
        let begin = Instant::now();
        let answers = |probes: &str| {
            let (mut answers, mut sent) = (Answers::default(), begin);
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
