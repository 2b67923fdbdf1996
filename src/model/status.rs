//! Status of the node, as published to the controller and at `GET /v1/status`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::fault::Finding;
use super::guest::Reconnect;
use super::path::CleanPath;
use super::target::{Desired, TargetHealth, TargetName, TargetState};
use super::units::NumaNode;
use super::volume::Volumes;

/// Counts of one target's volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeTally {
    /// Desired volumes.
    pub wanted: usize,
    /// Volumes that serve.
    pub serving: usize,
    /// Volumes whose last reconcile failed.
    pub degraded: usize,
    /// Volumes whose VM needs a restart.
    pub stuck: usize,
    /// Volumes whose VM was connected before their target exited, and has not reconnected.
    pub disconnected_sessions: usize,
    /// Longest pause of the volumes' guests between two tries to reconnect, in seconds: a guest may wait that long
    /// after the target is back. Absent if no guest is known to reconnect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_pause_seconds: Option<Reconnect>,
    /// Volumes whose guest does not reconnect.
    #[serde(default)]
    pub not_reconnecting: usize,
}

/// Last exit of a target's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastExit {
    /// Time when the exit was found, in RFC 3339.
    pub at: String,
    /// Exit code, or the reason why there was none.
    pub cause: String,
}

/// Status of one target: everything that is published of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TargetStatus {
    /// Health; `None` before the first observation.
    pub health: Option<TargetHealth>,
    /// Control socket at which the target is observed.
    pub control: Option<CleanPath>,
    /// Number of the last observation that this status is derived from.
    pub observation: u64,
    /// Restarts by the agent since the agent's own start.
    pub restarts: u64,
    /// Exits of the target's process since the agent's own start.
    pub exits: u64,
    /// Last exit since the agent's own start. A restart of the target does not clear it.
    pub last_exit: Option<LastExit>,
    pub volumes: VolumeTally,
    pub volume_statuses: Arc<Volumes>,
    /// Findings about the target, beyond those of its volumes.
    pub findings: Vec<Finding>,
}

/// Status of every target that is desired or was observed.
pub type TargetStatuses = BTreeMap<TargetName, TargetStatus>;

/// Target in a report to the controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReport {
    pub name: TargetName,
    pub state: TargetState,
    /// Reason for the state.
    pub reason: String,
    /// Start of the state, in RFC 3339.
    pub since: String,
    /// Restarts by the agent since the agent's own start.
    pub restarts: u64,
    /// Last exit since the agent's own start. A restart of the target does not clear it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_exit: Option<LastExit>,
    #[serde(flatten)]
    pub volumes: VolumeTally,
}

/// Hugepages of one size on one NUMA node, in a report to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolReport {
    /// Size of a page, in KiB.
    pub size_kib: u64,
    pub node: NumaNode,
    /// Pages in total.
    pub pages: u64,
    /// Pages not handed out.
    pub free_pages: u64,
    /// Pages grown by the agent in this boot and not given back.
    pub grown_pages: u64,
    /// Free pages that are kept for open reservations.
    #[serde(default)]
    pub reserved_pages: u64,
    /// Free pages that are kept, beside those, for guests that arrive by migration.
    #[serde(default)]
    pub arrival_pages: u64,
}

/// Report on the node to the controller.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// The controller's name for this host; empty before a controller has connected.
    pub host_uuid: String,
    pub boot_id: String,
    pub agent_version: String,
    /// Counter that grows when anything but `at` changes. It goes on over restarts of the agent.
    pub generation: u64,
    /// Time of the report, in RFC 3339.
    pub at: String,
    /// Targets that are desired or present, by name.
    pub targets: Vec<TargetReport>,
    pub pools: Vec<PoolReport>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// Reason of a desired target that was not observed yet.
const NOT_LOOKED_AT: &str = "it is wanted, and was not looked at yet";

/// Builds the reports on the targets that are desired or present. A desired target that was not observed yet is
/// reported as starting. Its state began at `now`, or at the time in `before` if that reports the same.
pub fn target_reports(
    statuses: &TargetStatuses,
    desired: &Desired,
    before: &[TargetReport],
    now: &str,
) -> Vec<TargetReport> {
    let wanted = |name: &TargetName| desired.targets.contains_key(name);
    let mut names: Vec<&TargetName> = statuses.keys().chain(desired.targets.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let report = |name: &TargetName| {
        let status = statuses.get(name);
        let known = status.and_then(|status| status.health.as_ref());
        let (state, reason, since) = match known {
            Some(known) if known.state != TargetState::Absent => {
                (known.state, known.reason.clone(), known.since.clone())
            }
            _ if wanted(name) => {
                let starting = |r: &&TargetReport| {
                    r.name == *name && r.state == TargetState::Starting && r.reason == NOT_LOOKED_AT
                };
                let since = before.iter().find(starting).map_or(now, |report| &report.since);
                (TargetState::Starting, NOT_LOOKED_AT.to_string(), since.to_string())
            }
            _ => return None,
        };
        let restarts = status.map_or(0, |status| status.restarts);
        let volumes = status.map(|status| status.volumes).unwrap_or_default();
        let last_exit = status.and_then(|status| status.last_exit.clone());
        let name = name.clone();
        Some(TargetReport { name, state, reason, since, restarts, last_exit, volumes })
    };
    names.into_iter().filter_map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::target::TargetSpec;

    fn desired(names: &[&str]) -> Desired {
        let targets = names.iter().map(|name| TargetSpec::example(name));
        Desired {
            targets: targets.map(|spec| (spec.name.clone(), spec)).collect(),
            ..Desired::default()
        }
    }

    fn status(name: &str, state: Option<TargetState>) -> (TargetName, TargetStatus) {
        let name: TargetName = name.parse().unwrap();
        let health = state.map(|state| TargetHealth {
            name: name.clone(),
            state,
            reason: "why".to_string(),
            since: "then".to_string(),
            version: None,
            age_ms: Some(7),
            pid: Some(7),
        });
        (name, TargetStatus { health, restarts: 3, exits: 4, ..TargetStatus::default() })
    }

    fn reported(reports: &[TargetReport]) -> Vec<(&str, TargetState, &str)> {
        reports.iter().map(|r| (r.name.as_str(), r.state, r.since.as_str())).collect()
    }

    #[test]
    fn desired_or_observed_targets_are_reported_and_others_not() {
        use TargetState::{Absent, Failed, Serving, Starting};
        let statuses = TargetStatuses::from([
            status("gone", Some(Absent)),
            status("anothers", Some(Serving)),
            status("dead", Some(Failed)),
            status("unlooked", None),
            status("forgotten", None),
            status("again", Some(Absent)),
        ]);
        let desired = desired(&["dead", "unlooked", "new", "again"]);
        let reports = target_reports(&statuses, &desired, &[], "now");
        let expected = [
            ("again", Starting, "now"),
            ("anothers", Serving, "then"),
            ("dead", Failed, "then"),
            ("new", Starting, "now"),
            ("unlooked", Starting, "now"),
        ];
        assert_eq!(reported(&reports), expected);
        assert_eq!(reports[2].restarts, 3);
        let later = target_reports(&statuses, &desired, &reports, "later");
        assert_eq!(later, reports, "time alone changes nothing");
    }

    #[test]
    fn a_report_is_written_as_it_is_documented() {
        let report = NodeReport {
            targets: target_reports(
                &TargetStatuses::from([status("a", Some(TargetState::Degraded))]),
                &Desired::default(),
                &[],
                "now",
            ),
            pools: vec![PoolReport {
                size_kib: 2048,
                node: NumaNode(1),
                pages: 3,
                free_pages: 2,
                grown_pages: 1,
                reserved_pages: 0,
                arrival_pages: 0,
            }],
            ..NodeReport::default()
        };
        let expected = serde_json::json!({
            "hostUuid": "", "bootId": "", "agentVersion": "", "generation": 0, "at": "",
            "targets": [{
                "name": "a", "state": "degraded", "reason": "why", "since": "then", "restarts": 3,
                "wanted": 0, "serving": 0, "degraded": 0, "stuck": 0, "disconnectedSessions": 0,
                "notReconnecting": 0,
            }],
            "pools": [{"sizeKib": 2048, "node": 1, "pages": 3, "freePages": 2, "grownPages": 1,
                "reservedPages": 0, "arrivalPages": 0}],
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    }
}
