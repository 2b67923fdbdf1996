//! `vhost-agent up`: prepares the node, deploys a target, and verifies its I/O.
//!
//! Each part is the same as its own command (`prepare`, `deploy`, `health --deep`), by the same agent; the first
//! failure ends the run.

use anyhow::Result;
use serde::Serialize;

use super::agent_client::{Agent, NodeRoot};
use super::deploy::{self, Verb};
use super::health::proven;
use super::prepare::{self, prepared};
use super::render::{ProgressBars, print, print_json, print_prepare, print_proven};
use super::{Output, exit};
use crate::config::Settings;
use crate::model::deep::ProvenHealth;
use crate::model::prepare::{Outcome, PrepareReport};

/// Results, as one document; a part that was not reached is null.
#[derive(Debug, Default, Serialize)]
struct UpOutcome {
    /// Choices made by default, and the reason for an early end.
    notes: Vec<String>,
    prepare: Option<PrepareReport>,
    deploy: Option<PrepareReport>,
    /// Health of the target afterwards, with the deep probe.
    health: Option<ProvenHealth>,
}

/// Result of a part, for output.
enum PartOutcome<'a> {
    Note(&'a str),
    Steps(&'a str, &'a PrepareReport),
    Health(&'a ProvenHealth),
}

/// State of a run.
struct Up {
    agent: Agent,
    settings: Settings,
    args: deploy::DeployArgs,
    output: Output,
    done: UpOutcome,
}

pub(super) async fn run(
    place: NodeRoot,
    mut args: deploy::DeployArgs,
    output: Output,
) -> Result<u8> {
    let chosen = args.or_built_in(&place.settings);
    args.validate(&place.settings)?;
    let agent = if args.is_dry_run() { place.looker().await? } else { place.owner().await? };
    let done = UpOutcome::default();
    let mut up = Up { agent, settings: place.settings, args, output, done };
    if let Some(text) = chosen {
        up.note(text)?;
    }
    let ended = up.parts().await;
    if output == Output::Json {
        print_json(&up.done)?;
    }
    ended
}

/// Success of a run that ended with this health, with a note on a target that is degraded by its load alone; else the
/// reason for its failure.
fn verdict(health: &ProvenHealth) -> Result<Option<String>, &'static str> {
    let ProvenHealth { health: target, deep } = health;
    match deep.ok {
        true if health.is_good() => Ok(None),
        true if target.is_up() => {
            Ok(Some(format!("I/O is proven, but the target is degraded: {}", target.reason)))
        }
        true => Err("the target does not serve as it should"),
        false => Err("I/O through the target is not proven"),
    }
}

impl Up {
    async fn parts(&mut self) -> Result<u8> {
        let dry_run = self.args.is_dry_run();
        let prepare = self.prepare(dry_run).await?;
        match prepare {
            Outcome::Failed => return self.stopped("the node could not be prepared"),
            Outcome::WouldChange => {
                self.note("the target's plan can be told when the node is prepared".to_string())?;
                return Ok(exit::of(prepare));
            }
            Outcome::Holds | Outcome::Changed => {}
        }
        let deploy = self.deploy().await?;
        if deploy == Outcome::Failed {
            return self.stopped("the target could not be deployed");
        }
        if dry_run {
            return Ok(exit::of(deploy));
        }
        let health = proven(&self.agent, &self.settings, self.args.name(), None).await?;
        self.show(&PartOutcome::Health(&health))?;
        let verdict = verdict(&health);
        self.done.health = Some(health);
        match verdict {
            Ok(note) => {
                if let Some(note) = note {
                    self.note(note)?;
                }
                Ok(exit::HOLDS)
            }
            Err(why) => self.stopped(why),
        }
    }

    async fn prepare(&mut self, dry_run: bool) -> Result<Outcome> {
        let usual = prepare::PrepareArgs::usual();
        let body = usual.body(&self.settings)?;
        let target = self.args.spec(&self.settings)?;
        if let Some(text) = usual.explained(&target, &self.settings)? {
            self.note(text)?;
        }
        let bars = ProgressBars::new(self.output, dry_run);
        let report = prepared(&self.agent, &body, dry_run, &bars).await;
        bars.clear();
        let report = report?;
        self.show(&PartOutcome::Steps("the node", &report))?;
        let outcome = report.outcome;
        self.done.prepare = Some(report);
        Ok(outcome)
    }

    async fn deploy(&mut self) -> Result<Outcome> {
        let title = format!("the target {}", self.args.name());
        let bars = ProgressBars::new(self.output, self.args.is_dry_run());
        let report = self.args.carried_out(Verb::Deploy, &self.agent, &bars).await;
        bars.clear();
        let report = report?;
        self.show(&PartOutcome::Steps(&title, &report))?;
        let outcome = report.outcome;
        self.done.deploy = Some(report);
        Ok(outcome)
    }

    fn stopped(&mut self, why: &str) -> Result<u8> {
        let text = format!(
            "stopped here, for {why}: do what the error says, then give this command again"
        );
        self.note(text)?;
        Ok(exit::FAILED)
    }

    fn note(&mut self, text: String) -> Result<()> {
        self.show(&PartOutcome::Note(&text))?;
        self.done.notes.push(text);
        Ok(())
    }

    /// Prints a part when it has ended; nothing with JSON output.
    fn show(&self, part: &PartOutcome<'_>) -> Result<()> {
        if self.output == Output::Json {
            return Ok(());
        }
        match part {
            PartOutcome::Note(text) => print(text),
            PartOutcome::Steps(title, report) => {
                print(&format!("\n== {title}"))?;
                print_prepare(report, self.output)
            }
            PartOutcome::Health(health) => {
                print("\n== I/O")?;
                print_proven(health, self.output)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::deep::DeepHealth;
    use crate::model::target::{TargetHealth, TargetName, TargetState};

    #[test]
    fn target_that_is_degraded_by_its_load_alone_is_a_success_with_a_note() {
        use TargetState::{Degraded, Failed, Serving};
        let ended = |state, pid, ok| {
            let health = TargetHealth {
                name: TargetName::usual(),
                state,
                reason: "its large I/O buffers are exhausted".into(),
                since: "then".into(),
                version: Some("SPDK v24.01".into()),
                age_ms: None,
                pid,
            };
            let (at, duration_ms) = ("now".into(), 1.0);
            let deep = DeepHealth { ok, at, duration_ms, io: None, error: None };
            verdict(&ProvenHealth { health, deep })
        };
        assert_eq!(ended(Serving, Some(7), true), Ok(None));
        let note = ended(Degraded, Some(7), true).unwrap().unwrap();
        assert!(note.contains("buffers are exhausted"), "{note}");
        let not_serving = Err("the target does not serve as it should");
        assert_eq!(ended(Degraded, None, true), not_serving);
        assert_eq!(ended(Failed, Some(7), true), not_serving);
        assert!(
            ended(Degraded, Some(7), false).is_err() && ended(Serving, Some(7), false).is_err()
        );
    }
}
