//! Health of a target from its observation: the state and its reason. Pure.
//!
//! A running process is not yet a serving target (field note 12): only an answer counts. An exit is certain, and
//! reported at once. One missed probe is not certain, because a busy target may answer the next one: a serving target
//! changes its state only after [`FAILURE_THRESHOLD`](crate::model::observation::FAILURE_THRESHOLD) missed probes in a
//! row. One that answers and lacks buffers for its I/O is degraded, too.

use crate::model::observation::{Activity, Observation, Process};
use crate::model::target::{OwnerWork, TargetState};

/// Facts about a target beyond its observation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetContext {
    /// Set if the target is desired.
    pub wanted: bool,
    /// Work that the target's task does on it, if any.
    pub at_work: Option<OwnerWork>,
    /// Set if its volumes are yet to be restored.
    pub rebuilds: bool,
    /// Evidence of the crash loop, while the target is in one.
    pub trouble: Option<String>,
}

/// Evaluates the state of a target, and the reason for that state.
pub fn evaluate(seen: &Observation, context: &TargetContext) -> (TargetState, String) {
    use TargetState::{Absent, Degraded, Failed, Paused, Serving, Starting};
    let state = |state, text: &str| (state, text.to_string());
    let answers = &seen.answers;
    let trouble = context.trouble.as_ref().filter(|_| context.wanted);
    let bringing_up = context.at_work == Some(OwnerWork::BringUp);
    match (&seen.process, answers.version()) {
        (Process::Lives { .. }, _) if seen.vitals.activity == Activity::Paused => state(
            Paused,
            "it is paused: its cgroup is frozen, so that it neither answers nor serves; `docker unpause` it",
        ),
        (Process::Lives { .. }, Some(version)) if !context.rebuilds && trouble.is_none() => {
            match seen.buffers.shortage() {
                None => (Serving, format!("{version} answers")),
                Some(shortage) => (Degraded, format!("{version} answers, but {shortage}")),
            }
        }
        // In a crash loop, a target that is up again stays `Failed` until its volumes are back.
        (_, _) if trouble.is_some() => (Failed, trouble.cloned().unwrap_or_default()),
        (Process::Lives { .. }, Some(version)) => {
            (Starting, format!("{version} answers, and its volumes are being brought back"))
        }
        (Process::Lives { .. }, None) if answers.is_empty() => {
            state(Starting, "its process lives, and has not been asked yet")
        }
        (Process::Lives { young: true, .. }, None) if !answers.has_answered() => {
            (Starting, format!("its process lives, and does not answer yet: {}", answers.silence()))
        }
        (Process::Lives { .. }, None) => lives_in_silence(seen, context),
        (Process::Unknown(why), Some(_)) => {
            (Degraded, format!("the control socket answers, but whose it is cannot be told: {why}"))
        }
        (_, _) if bringing_up => state(Starting, "it is being brought up"),
        (_, _) if context.at_work.is_some() => state(Absent, "it is being taken away"),
        (Process::NoContainer, _) if context.wanted => {
            state(Failed, "it is wanted, and there is no container of that name")
        }
        (Process::NoContainer, _) => state(Absent, "there is no container of that name"),
        (Process::Ended(how), _) => (Failed, how.clone()),
        (Process::Unknown(why), None) => {
            let state = if context.wanted { Failed } else { Absent };
            let silence = match answers.silence() {
                "" => String::new(),
                silence => format!("{silence}; and "),
            };
            (state, format!("{silence}the engine cannot be asked: {why}"))
        }
    }
}

/// State of a living process that does not answer, although it answered before or had the time to start. While a
/// request of the agent's own keeps it busy, it counts as serving, or as starting until its volumes are back.
fn lives_in_silence(seen: &Observation, context: &TargetContext) -> (TargetState, String) {
    let silence = seen.answers.silence();
    match (seen.is_busy(), seen.answers.last_version(), &seen.vitals.busy_with) {
        (true, Some(version), Some(method)) if !context.rebuilds => (
            TargetState::Serving,
            format!(
                "{version} is busy with the agent's own {method}, and answers nothing else meanwhile"
            ),
        ),
        (true, Some(version), Some(method)) => (
            TargetState::Starting,
            format!(
                "{version} is busy with the agent's own {method}: its volumes are being brought back"
            ),
        ),
        _ => {
            let since = seen.silent_since.as_ref();
            let since =
                since.map_or(String::new(), |since| format!("unresponsive since {since}: "));
            let stopped = match seen.vitals.activity {
                Activity::Stopped => "; its process is stopped (SIGSTOP or a debugger)",
                _ => "",
            };
            (TargetState::Degraded, format!("{since}{silence}{stopped}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::model::buffers::BufferUse;
    use crate::model::observation::Vitals;
    use TargetState::{Absent, Degraded, Failed, Serving, Starting};

    const OLD: Process = Process::Lives { pid: 7, young: false };
    const YOUNG: Process = Process::Lives { pid: 7, young: true };

    fn wanted() -> TargetContext {
        TargetContext { wanted: true, ..TargetContext::default() }
    }

    /// A process with these probes: `+` answered, `-` not.
    fn seen(process: &Process, probes: &str) -> Observation {
        let mut seen = Observation { number: 1, ..Observation::unseen(Instant::now()) };
        let mut sent = seen.at;
        for probe in probes.chars() {
            sent += Duration::from_millis(500);
            let answer = (probe == '+').then(|| "SPDK v24.01".to_string());
            seen.answers.note(sent, answer.ok_or("no answer within 1s".to_string()));
        }
        Observation { process: process.clone(), ..seen }
    }

    #[test]
    fn only_a_living_process_with_an_answer_serves() {
        let unknown = || Process::Unknown("it hangs".to_string());
        let ended = || Process::Ended("exit code 1".to_string());
        for (process, probes, state) in [
            (OLD, "+", Serving),
            (OLD, "+-", Serving),
            (OLD, "+--", Degraded),
            (YOUNG, "+--", Degraded),
            (OLD, "-", Degraded),
            (YOUNG, "-", Starting),
            (YOUNG, "", Starting),
            (ended(), "+", Failed),
            (ended(), "-", Failed),
            (Process::NoContainer, "+", Failed),
            (unknown(), "+", Degraded),
            (unknown(), "-", Failed),
        ] {
            assert_eq!(
                evaluate(&seen(&process, probes), &wanted()).0,
                state,
                "{process:?} {probes}"
            );
        }
    }

    #[test]
    fn one_that_answers_serves_once_its_volumes_are_back_and_it_does_not_always_exit_again() {
        let rebuilds = TargetContext { rebuilds: true, ..wanted() };
        assert_eq!(evaluate(&seen(&OLD, "+"), &rebuilds).0, Starting);
        assert_eq!(evaluate(&seen(&OLD, "+--"), &rebuilds).0, Degraded);
        assert_eq!(evaluate(&seen(&Process::Ended(String::new()), "+"), &rebuilds).0, Failed);
        let trouble = TargetContext { trouble: Some("it exited 4 times".to_string()), ..wanted() };
        let brought_up = TargetContext { at_work: Some(OwnerWork::BringUp), ..trouble.clone() };
        for (process, context) in [(OLD, trouble.clone()), (Process::NoContainer, brought_up)] {
            let state = (Failed, "it exited 4 times".to_string());
            assert_eq!(evaluate(&seen(&process, "+"), &context), state, "{process:?}");
        }
        let unwanted = TargetContext { wanted: false, ..trouble };
        assert_eq!(evaluate(&seen(&Process::NoContainer, ""), &unwanted).0, Absent);
    }

    #[test]
    fn not_wanted_is_not_unhealthy() {
        let is = |process: &Process, wanted, at_work| {
            let context = TargetContext { wanted, at_work, ..TargetContext::default() };
            evaluate(&seen(process, ""), &context).0
        };
        let away = Process::Unknown("nobody listens".to_string());
        for process in [&Process::NoContainer, &away] {
            assert_eq!(is(process, false, None), Absent);
            assert_eq!(is(process, true, None), Failed);
            assert_eq!(is(process, true, Some(OwnerWork::BringUp)), Starting);
            assert_eq!(is(process, false, Some(OwnerWork::BringUp)), Starting);
            assert_eq!(is(process, true, Some(OwnerWork::TakeAway)), Absent);
        }
    }

    #[test]
    fn target_that_answers_and_lacks_buffers_is_degraded_with_the_size_to_set() {
        let mut lacks = seen(&OLD, "+");
        lacks.buffers = BufferUse { lacks_large: true, ..BufferUse::default() };
        let (state, reason) = evaluate(&lacks, &wanted());
        assert!(state == Degraded && reason.contains("large_pool_count"), "{state} {reason}");
        assert!(reason.starts_with("SPDK v24.01 answers, but "), "{reason}");
        let rebuilds = TargetContext { rebuilds: true, ..wanted() };
        assert_eq!(evaluate(&lacks, &rebuilds).0, Starting, "its volumes come first");
    }

    #[test]
    fn silence_is_reported_with_its_reason() {
        let mut silent = seen(&OLD, "+--");
        let until = Some(silent.at + Duration::from_secs(1));
        let busy_with = Some("bdev_malloc_create".into());
        silent.vitals = Vitals { busy_until: until, busy_with, ..Vitals::default() };
        let (state, reason) = evaluate(&silent, &wanted());
        assert!(state == Serving && reason.contains("own bdev_malloc_create"), "{state} {reason}");
        silent.at += Duration::from_secs(2);
        silent.vitals.activity = Activity::Stopped;
        silent.silent_since = Some("noon".to_string());
        let (state, reason) = evaluate(&silent, &wanted());
        assert!(state == Degraded && reason.starts_with("unresponsive since noon: no answer"));
        assert!(reason.contains("is stopped"), "{reason}");
        silent.vitals.activity = Activity::Paused;
        assert_eq!(evaluate(&silent, &wanted()).0, TargetState::Paused);
    }
}
