//! From what was seen to a state. Pure.

use crate::model::target::TargetState;

/// What one round of looking at a target came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Its process.
    pub process: Process,
    /// The version that its control socket answered, or why it did not.
    pub answer: Result<String, String>,
}

/// A target's process, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// The engine has no container of that name.
    NoContainer,
    /// The container's process lives.
    Lives,
    /// It has ended; the text says how.
    Ended(String),
    /// The engine does not answer, and nothing is known of the process; the text says why.
    Unknown(String),
}

/// The state and its reason. Running is not serving (field note 12): only an answer counts.
pub fn judge(evidence: &Evidence) -> (TargetState, String) {
    match (&evidence.process, &evidence.answer) {
        (Process::NoContainer, _) => {
            (TargetState::Absent, "there is no container of that name".to_string())
        }
        (Process::Ended(how), _) => (TargetState::Failed, how.clone()),
        (Process::Lives, Ok(version)) => (TargetState::Serving, format!("{version} answers")),
        (Process::Lives, Err(why)) => (TargetState::Degraded, why.clone()),
        (Process::Unknown(why), Ok(_)) => (
            TargetState::Degraded,
            format!("the control socket answers, but whose it is cannot be told: {why}"),
        ),
        (Process::Unknown(why), Err(silence)) => {
            (TargetState::Failed, format!("{silence}; and the engine cannot be asked: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_living_process_with_an_answer_serves() {
        let yes = || Ok("SPDK v24.01".to_string());
        let no = || Err("no answer within 1s".to_string());
        let unknown = || Process::Unknown("it hangs".to_string());
        let ended = || Process::Ended("exit code 1".to_string());
        for (process, answer, state) in [
            (Process::Lives, yes(), TargetState::Serving),
            (Process::Lives, no(), TargetState::Degraded),
            (ended(), yes(), TargetState::Failed),
            (ended(), no(), TargetState::Failed),
            (Process::NoContainer, yes(), TargetState::Absent),
            (unknown(), yes(), TargetState::Degraded),
            (unknown(), no(), TargetState::Failed),
        ] {
            let evidence = Evidence { process, answer };
            assert_eq!(judge(&evidence).0, state, "{evidence:?}");
        }
    }
}
