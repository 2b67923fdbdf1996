//! Ledger of a target's volumes between two observations. No I/O, no clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::volume_sessions::VolumeSessions;
use crate::model::code::Code;
use crate::model::fault::{Fault, Finding};
use crate::model::guest::{Guests, Reconnect};
use crate::model::path::CleanPath;
use crate::model::status::VolumeTally;
use crate::model::volume::{
    VolumeName, VolumeSeen, VolumeSpec, VolumeSpecs, VolumeState, VolumeStatus, Volumes,
};
use crate::plan::guests::{may_lose_reconnects, see};
use crate::plan::volumes::evaluate;

/// Time after volumes were made again in which their guests come back.
pub(super) const RETURN_TIME: Duration = Duration::from_secs(30);
/// That time for a guest of which is known that it was connected, and that it has not come back.
const RETURN_AT_MOST: Duration = Duration::from_secs(600);

/// Volumes of one target, with their status.
#[derive(Debug, Default)]
pub(super) struct VolumeStatuses {
    statuses: Volumes,
    sessions: BTreeMap<VolumeName, VolumeSessions>,
}

/// Parameters of an observation of volumes: its time, and the time that a session may take to start.
#[derive(Debug, Clone)]
pub(super) struct VolumeObservation<'a> {
    pub(super) now: Instant,
    /// `now` as text, in RFC 3339.
    pub(super) at: String,
    pub(super) sockets: &'a CleanPath,
    pub(super) stuck_after: Duration,
    /// Time since they were first reconciled in this process of the target; `None` if there were none then.
    pub(super) remade: Option<Duration>,
}

impl VolumeStatuses {
    pub(super) fn statuses(&self) -> &Volumes {
        &self.statuses
    }

    /// Notes the exit of the target: no volume serves, and a VM that was connected waits for it.
    pub(super) fn exited(&mut self, at: &str) {
        self.sessions.values_mut().for_each(VolumeSessions::exited);
        for status in self.statuses.values_mut() {
            status.disconnected |= status.sessions > 0;
            status.sessions = 0;
            change(status, VolumeState::Pending, "its target is down", at);
        }
    }

    /// Drops volumes that are no longer desired.
    pub(super) fn drop_unwanted(&mut self, wanted: &VolumeSpecs) {
        self.statuses.retain(|name, _| wanted.contains_key(name));
        self.sessions.retain(|name, _| wanted.contains_key(name));
    }

    /// Notes the reason for which a pending volume waits for its target.
    pub(super) fn waits(&mut self, name: &VolumeName, why: &str, look: &VolumeObservation<'_>) {
        let status = self.statuses.get_mut(name).filter(|it| it.state == VolumeState::Pending);
        if let Some(status) = status {
            change(status, VolumeState::Pending, why, &look.at);
        }
    }

    /// Drops volumes that are no longer desired, and adds those that are newly desired.
    pub(super) fn keep(&mut self, wanted: &VolumeSpecs, look: &VolumeObservation<'_>) {
        self.drop_unwanted(wanted);
        for name in wanted.keys() {
            self.statuses.entry(name.clone()).or_insert_with(|| VolumeStatus {
                since: look.at.clone(),
                socket_path: look.sockets.join(name.as_str()),
                ..VolumeStatus::unknown()
            });
        }
    }

    /// Notes the observation of a volume at the end of a pass, and the `fault` of the pass, if any.
    pub(super) fn note(
        &mut self,
        spec: &VolumeSpec,
        seen: &VolumeSeen,
        fault: Option<&Fault>,
        look: &VolumeObservation<'_>,
    ) {
        let Some(status) = self.statuses.get_mut(&spec.name) else { return };
        let connected = seen.controller.as_ref().map_or(&[][..], |it| &it.sessions);
        let sessions = self.sessions.entry(spec.name.clone()).or_default();
        let most = if status.disconnected { RETURN_AT_MOST } else { RETURN_TIME };
        sessions.note(connected, look.remade.is_some_and(|since| since < most), look.now);
        let (state, reason) = match fault {
            Some(fault) => (VolumeState::Degraded, fault.text.clone()),
            None => evaluate(seen, sessions.fault(look.now, look.stuck_after)),
        };
        status.sessions = connected.len();
        status.disconnected &= status.sessions == 0;
        if status.sessions == 0 && !status.disconnected {
            (status.reconnect_seconds, status.findings) = (None, Vec::new());
        }
        change(status, state, &reason, &look.at);
    }

    /// Notes the guests that are connected; returns the findings that are new.
    pub(super) fn see_guests(&mut self, guests: &Guests) -> Vec<Finding> {
        let mut news = Vec::new();
        for (name, status) in self.statuses.iter_mut().filter(|(_, status)| status.sessions > 0) {
            if let (Some(guest), Some(sessions)) =
                (guests.get(&status.socket_path), self.sessions.get_mut(name))
            {
                sessions.note_guest(may_lose_reconnects(guest.as_ref()));
            }
            news.extend(see(name, status, guests));
        }
        news
    }

    /// `true` if a session has not started yet and may turn out to be stuck, or if a disconnected guest has not come
    /// back.
    pub(super) fn awaits_sessions(&self) -> bool {
        let stuck = |name: &VolumeName| {
            self.statuses.get(name).is_some_and(|it| it.state == VolumeState::Stuck)
        };
        self.sessions.iter().any(|(name, sessions)| sessions.has_unstarted() && !stuck(name))
            || self.statuses.values().any(|status| status.disconnected)
    }

    /// Fault of the last attempt to make the volume, if that failed.
    pub(super) fn failed_before(&self, name: &VolumeName) -> Option<Fault> {
        let status = self.statuses.get(name).filter(|it| it.state == VolumeState::Degraded)?;
        Some(Fault::new(Code::VolumeDegraded, status.reason.clone()))
    }

    /// `true` if a guest uses another volume, or waits for it.
    pub(super) fn has_guests_but_of(&self, name: &VolumeName) -> bool {
        let mut others = self.statuses.iter().filter(|(other, _)| *other != name);
        others.any(|(_, status)| status.sessions > 0 || status.disconnected)
    }

    /// `true` if a volume is degraded, and thus to be retried.
    pub(super) fn has_degraded(&self) -> bool {
        self.statuses.values().any(|status| status.state == VolumeState::Degraded)
    }

    /// Volumes that serve, or are stuck with a guest connected.
    pub(super) fn served(&self) -> Vec<VolumeName> {
        self.statuses.keys().filter(|name| self.serves(name)).cloned().collect()
    }

    /// `true` if the volume serves, or is stuck with a guest connected.
    pub(super) fn serves(&self, name: &VolumeName) -> bool {
        let state = self.statuses.get(name).map(|status| status.state);
        matches!(state, Some(VolumeState::Serving | VolumeState::Stuck))
    }

    pub(super) fn tally(&self) -> VolumeTally {
        let guests = || self.statuses.values().filter_map(|status| status.reconnect_seconds);
        let count = |state| self.statuses.values().filter(|status| status.state == state).count();
        VolumeTally {
            wanted: self.statuses.len(),
            serving: count(VolumeState::Serving),
            degraded: count(VolumeState::Degraded),
            stuck: count(VolumeState::Stuck),
            disconnected_sessions: self.statuses.values().filter(|it| it.disconnected).count(),
            expected_pause_seconds: guests()
                .filter(|it| it.pause().is_some())
                .reduce(Reconnect::slower),
            not_reconnecting: guests().filter(|it| it.pause().is_none()).count(),
        }
    }
}

fn change(status: &mut VolumeStatus, state: VolumeState, reason: &str, at: &str) {
    if status.state != state {
        status.since = at.to_string();
    }
    (status.state, status.reason) = (state, reason.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::guest::Guest;
    use crate::model::volume::{ControllerSeen, SessionSeen};

    const STUCK_AFTER: Duration = Duration::from_secs(3);

    fn seen(sessions: &[(bool, u64)]) -> VolumeSeen {
        let session = |(started, queues): &(bool, u64)| SessionSeen {
            id: (0, 0),
            started: *started,
            queues: *queues,
        };
        let sessions = sessions.iter().map(session).collect();
        let bdev = Some("v".to_string());
        let controller = ControllerSeen { bdev, read_only: false, sessions };
        VolumeSeen { controller: Some(controller), socket_is_given: true, ..VolumeSeen::default() }
    }

    /// Statuses of one volume, and a function that notes an observation of it after so many seconds.
    fn statuses() -> (
        VolumeStatuses,
        impl Fn(&mut VolumeStatuses, u64, &VolumeSeen, Option<&Fault>) -> VolumeStatus,
    ) {
        let (spec, begin) = (VolumeSpec::example("v"), Instant::now());
        let sockets: CleanPath = "/s".parse().unwrap();
        let look = move |seconds: u64, sockets: &CleanPath| {
            (begin + Duration::from_secs(seconds), sockets.clone())
        };
        let note = move |statuses: &mut VolumeStatuses,
                         seconds,
                         seen: &VolumeSeen,
                         fault: Option<&Fault>| {
            let (now, sockets) = look(seconds, &sockets);
            let look = VolumeObservation {
                now,
                at: format!("second {seconds}"),
                sockets: &sockets,
                stuck_after: STUCK_AFTER,
                remade: None,
            };
            statuses.keep(&[(spec.name.clone(), spec.clone())].into(), &look);
            statuses.note(&spec, seen, fault, &look);
            statuses.statuses()[&spec.name].clone()
        };
        (VolumeStatuses::default(), note)
    }

    #[test]
    fn a_session_that_does_not_start_for_long_is_stuck_and_one_that_does_late_is_not() {
        let (mut statuses, note) = statuses();
        let unstarted = seen(&[(false, 1)]);
        assert_eq!(note(&mut statuses, 0, &unstarted, None).state, VolumeState::Serving);
        assert!(statuses.awaits_sessions());
        assert_eq!(note(&mut statuses, 2, &unstarted, None).state, VolumeState::Serving);
        assert_eq!(note(&mut statuses, 3, &unstarted, None).state, VolumeState::Stuck);
        assert!(!statuses.awaits_sessions(), "nothing is waited for any more");
        assert_eq!(statuses.tally().stuck, 1);
        assert_eq!(note(&mut statuses, 4, &seen(&[(true, 1)]), None).state, VolumeState::Serving);
        assert_eq!(note(&mut statuses, 9, &unstarted, None).state, VolumeState::Serving, "anew");
    }

    #[test]
    fn sessions_from_before_an_exit_are_awaited_until_they_return() {
        let (mut statuses, note) = statuses();
        assert_eq!(note(&mut statuses, 0, &seen(&[(true, 1)]), None).sessions, 1);
        statuses.exited("then");
        let exited = statuses.statuses().values().next().unwrap().clone();
        assert_eq!((exited.state, exited.sessions), (VolumeState::Pending, 0));
        assert!(exited.disconnected && statuses.awaits_sessions());
        assert!(note(&mut statuses, 1, &seen(&[]), None).disconnected);
        statuses.exited("again");
        assert_eq!(statuses.tally().disconnected_sessions, 1, "it is still not back");
        assert!(!note(&mut statuses, 2, &seen(&[(true, 1)]), None).disconnected);
        assert!(!statuses.awaits_sessions());
    }

    #[test]
    fn how_a_guest_reconnects_is_known_until_it_has_gone() {
        let (mut statuses, note) = statuses();
        let connected = seen(&[(true, 1)]);
        let guest = |seconds| Guest {
            shares_memory: true,
            machine: "web-1 (pid 70)".to_string(),
            reconnect: Reconnect::each(Duration::from_secs(seconds)),
            qemu: None,
        };
        let guests = |seconds| Guests::from([("/s/v".to_string(), Some(guest(seconds)))]);
        let guests_known = |statuses: &VolumeStatuses| {
            let tally = statuses.tally();
            (tally.expected_pause_seconds, tally.not_reconnecting)
        };
        note(&mut statuses, 0, &seen(&[]), None);
        assert_eq!(statuses.see_guests(&guests(10)), [], "nobody is connected");
        note(&mut statuses, 1, &connected, None);
        assert_eq!(statuses.see_guests(&guests(0)).len(), 1);
        assert_eq!(guests_known(&statuses), (None, 1));
        assert_eq!(statuses.see_guests(&guests(10)).len(), 1);
        let known = (Some(Reconnect::each(Duration::from_secs(10))), 0);
        assert_eq!(guests_known(&statuses), known);
        statuses.exited("then");
        assert_eq!(statuses.see_guests(&Guests::new()), []);
        note(&mut statuses, 2, &seen(&[]), None);
        assert_eq!(guests_known(&statuses), known, "it is waited for");
        note(&mut statuses, 3, &connected, None);
        assert_eq!(statuses.see_guests(&guests(10)), [], "it was reported before");
        note(&mut statuses, 4, &seen(&[]), None);
        assert_eq!(guests_known(&statuses), (None, 0));
    }

    #[test]
    fn a_failure_is_reported_with_its_beginning() {
        let (mut statuses, note) = statuses();
        let fault = Fault::new(Code::Internal, "no such file");
        note(&mut statuses, 1, &VolumeSeen::default(), Some(&fault));
        let status = note(&mut statuses, 5, &VolumeSeen::default(), Some(&fault));
        assert_eq!((status.state, status.reason.as_str()), (VolumeState::Degraded, "no such file"));
        assert_eq!((status.since.as_str(), status.socket_path.as_str()), ("second 1", "/s/v"));
        assert!(statuses.has_degraded());
        let (none, sockets) = (VolumeSpecs::new(), "/s".parse().unwrap());
        let look = VolumeObservation {
            now: Instant::now(),
            at: String::new(),
            sockets: &sockets,
            stuck_after: STUCK_AFTER,
            remade: None,
        };
        statuses.keep(&none, &look);
        assert_eq!(statuses.tally(), VolumeTally::default());
    }
}
