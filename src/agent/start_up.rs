//! What a start brings back: the engine restarts no target, so those that are wanted and do not run are
//! brought up here, once; what falls later is another matter.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::desired::DesiredTargets;
use super::target::Targets;
use crate::model::target::TargetName;

/// Between two tries, the first: the engine may be starting too …
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// … and the longest.
const LAST_PAUSE: Duration = Duration::from_secs(64);

/// The code of a target that was started and does not serve.
const NOT_READY: &str = "target-not-ready";

/// Brings up what is wanted, all at the same time, each until it succeeds or is not wanted any more.
pub async fn bring_back(targets: Targets, desired: DesiredTargets) {
    let names: Vec<TargetName> = desired.watch().borrow().targets.keys().cloned().collect();
    join_all(names.iter().map(|name| bring_one_back(&targets, &desired, name))).await;
}

async fn bring_one_back(targets: &Targets, desired: &DesiredTargets, name: &TargetName) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(spec) = desired.get(name) else { return };
        let why = match targets.bring_back(spec).await {
            Ok(report) if report.errors.is_empty() => return,
            // It came up and fell: its container stays, to be looked at.
            Ok(report) if report.errors.iter().any(|fault| fault.code == NOT_READY) => {
                tracing::error!(
                    target_name = %name,
                    "{name} is wanted, and did not come up after the start: {}", report.error_text()
                );
                return;
            }
            Ok(report) => report.error_text(),
            Err(fault) => fault.to_string(),
        };
        tracing::warn!(
            target_name = %name, again_in = ?pause,
            "{name} is wanted, and could not be brought up after the start: {why}"
        );
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
