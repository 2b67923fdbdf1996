//! Ledger of the sessions of one volume between two observations. No I/O, no clock.
//!
//! A session that does not run is a fault in two cases only. The target did not start it although the virtual machine
//! has set up its queues: SPDK has no buffers or channels left for one more connected disk. Or the virtual machine lost
//! its reconnect to a target that died. A session without queues is usually none: it belongs to a machine that is
//! paused, that waits for its migration, or whose driver has not begun
//! (packaging/doc/facts.md, "Guests when a target dies").

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::volume::SessionSeen;
use crate::plan::volumes::SessionFault;

/// Sessions of a volume.
#[derive(Debug, Default)]
pub(super) struct VolumeSessions {
    sessions: BTreeMap<(u64, u64), ObservedSession>,
    /// Set once the volume was observed in the process that serves: a session that comes later is a new one.
    is_observed: bool,
    /// Set unless the QEMU of the volume is of a version that loses no reconnect; `None` before it was looked for.
    may_lose_reconnects: Option<bool>,
}

#[derive(Debug, Default)]
struct ObservedSession {
    /// Set if the session may be that of a guest of an earlier process of the target.
    may_be_returned: bool,
    has_run: bool,
    /// Fault, and the time since which the session has not started.
    unstarted: Option<(SessionFault, Instant)>,
}

impl VolumeSessions {
    /// Notes an observation of the sessions. `returning` is set while guests of an earlier process of the target may
    /// come back.
    pub(super) fn note(&mut self, seen: &[SessionSeen], returning: bool, now: Instant) {
        self.sessions.retain(|id, _| seen.iter().any(|session| session.id == *id));
        let may_be_returned = returning || !self.is_observed;
        self.is_observed = true;
        for SessionSeen { id, started, queues } in seen {
            let new = || ObservedSession { may_be_returned, ..ObservedSession::default() };
            let session = self.sessions.entry(*id).or_insert_with(new);
            session.has_run |= started;
            let fault = match (started, queues) {
                (true, _) => None,
                (false, 1..) => Some(SessionFault::Refused),
                (false, 0) => Some(SessionFault::Silent)
                    .filter(|_| session.may_be_returned && !session.has_run),
            };
            let before = session.unstarted.filter(|(before, _)| Some(*before) == fault);
            let since = before.map_or(now, |(_, since)| since);
            session.unstarted = fault.map(|fault| (fault, since));
        }
    }

    /// Notes the result of looking for the QEMU that was started with the volume.
    pub(super) fn note_guest(&mut self, may_lose_reconnects: bool) {
        self.may_lose_reconnects = Some(may_lose_reconnects);
    }

    /// Notes the exit of the target, and with it the end of all sessions.
    pub(super) fn exited(&mut self) {
        self.sessions.clear();
        self.is_observed = false;
    }

    /// Fault of a session that has not started for the time `after`.
    pub(super) fn fault(&self, now: Instant, after: Duration) -> Option<SessionFault> {
        let late = |since: Instant| now.saturating_duration_since(since) >= after;
        let may_be_lost = self.may_lose_reconnects == Some(true);
        let mut unstarted = self.unstarted();
        let is_fault = |(fault, since): &(SessionFault, Instant)| {
            late(*since) && (*fault == SessionFault::Refused || may_be_lost)
        };
        unstarted.find(is_fault).map(|(fault, _)| fault)
    }

    /// `true` if a session has not started that may, or may turn out to be at fault.
    pub(super) fn has_unstarted(&self) -> bool {
        let is_fine = self.may_lose_reconnects == Some(false);
        self.unstarted().any(|(fault, _)| fault == SessionFault::Refused || !is_fine)
    }

    fn unstarted(&self) -> impl Iterator<Item = (SessionFault, Instant)> {
        self.sessions.values().filter_map(|session| session.unstarted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(3);

    fn session(started: bool, queues: u64) -> SessionSeen {
        SessionSeen { id: (7, 0), started, queues }
    }

    /// Fault after the observations, one in each second: `returning`, and the session, if there is one.
    fn fault(observed: &[(bool, Option<SessionSeen>)]) -> Option<SessionFault> {
        let (mut sessions, mut now) = (VolumeSessions::default(), Instant::now());
        sessions.note_guest(true);
        for (returning, seen) in observed {
            sessions.note(seen.as_slice(), *returning, now);
            now += Duration::from_secs(1);
        }
        sessions.fault(now, AFTER)
    }

    #[test]
    fn silent_session_is_lost_only_if_it_was_there_before() {
        let silent = Some(session(false, 0));
        let runs = Some(session(true, 1));
        for (observed, expected) in [
            // The agent came later than the session, or the target was just started again.
            (vec![(false, silent); 4], Some(SessionFault::Silent)),
            (
                vec![(true, None), (true, silent), (true, silent), (true, silent), (true, silent)],
                Some(SessionFault::Silent),
            ),
            (
                vec![
                    (true, None),
                    (true, silent),
                    (false, silent),
                    (false, silent),
                    (false, silent),
                ],
                Some(SessionFault::Silent),
            ),
            (vec![(false, silent); 2], None),
            // A machine that is started paused, or waits for its migration.
            (
                vec![
                    (false, None),
                    (false, silent),
                    (false, silent),
                    (false, silent),
                    (false, silent),
                ],
                None,
            ),
            // A machine that was paused, and one that boots again.
            (
                vec![(true, runs), (true, silent), (true, silent), (true, silent), (true, silent)],
                None,
            ),
            (
                vec![(true, silent), (true, silent), (true, silent), (true, silent), (true, runs)],
                None,
            ),
        ] {
            assert_eq!(fault(&observed), expected, "{observed:?}");
        }
    }

    #[test]
    fn session_with_queues_that_does_not_start_is_refused() {
        let refused = Some(session(false, 1));
        for first in [None, refused, Some(session(true, 1))] {
            let observed = [(false, first), (false, refused), (false, refused), (false, refused)];
            assert_eq!(fault(&observed), Some(SessionFault::Refused), "{first:?}");
        }
        // v24.01 takes a second to start a session, also one that was silent for long.
        let silent = Some(session(false, 0));
        assert_eq!(fault(&[(false, refused), (false, refused)]), None);
        assert_eq!(fault(&[(true, silent), (true, silent), (true, silent), (true, refused)]), None);
    }

    #[test]
    fn silent_session_is_lost_only_with_a_qemu_that_may_lose_it() {
        let (mut sessions, now) = (VolumeSessions::default(), Instant::now());
        let fault = |sessions: &VolumeSessions| sessions.fault(now + AFTER, AFTER);
        let other = SessionSeen { id: (8, 1), ..session(false, 1) };
        sessions.note(&[session(false, 0), other], true, now);
        assert_eq!(fault(&sessions), Some(SessionFault::Refused));
        sessions.note(&[session(false, 0)], true, now);
        assert_eq!(fault(&sessions), None, "nobody has looked for the QEMU yet");
        assert!(sessions.has_unstarted());
        sessions.note_guest(true);
        assert_eq!(fault(&sessions), Some(SessionFault::Silent));
        sessions.note_guest(false);
        assert!(fault(&sessions).is_none() && !sessions.has_unstarted());
        sessions.exited();
        sessions.note(&[session(false, 0)], true, now);
        assert_eq!(fault(&sessions), None, "its version is still known");
    }

    #[test]
    fn number_that_is_used_again_is_that_of_another_session() {
        let (mut sessions, now) = (VolumeSessions::default(), Instant::now());
        sessions.note_guest(true);
        sessions.note(&[session(false, 0)], true, now);
        sessions.note(&[SessionSeen { id: (7, 1), ..session(false, 0) }], false, now);
        assert_eq!(sessions.fault(now + AFTER, AFTER), None);
    }
}
