//! Findings on guests that the next exit of their target harms more than it has to.

use std::time::Duration;

use crate::model::code::Code;
use crate::model::fault::Finding;
use crate::model::guest::{Guest, Guests, Reconnect};
use crate::model::volume::{VolumeName, VolumeStatus};

/// Longest reconnect interval without a finding. A target is back with its controllers within about a second; a guest
/// that retries less often waits for its own timer instead. QEMU before 9.2 takes whole seconds, so this is its
/// shortest.
const SHORT: Duration = Duration::from_secs(1);
/// First version of QEMU (major, minor) that may lose a reconnect: if a target exits before it has answered QEMU's
/// first messages, the disk hangs until the VM is restarted. [`LOSES_NO_MORE`] is the first version after it without
/// that fault.
const LOSES: (u32, u32) = (7, 2);
const LOSES_NO_MORE: (u32, u32) = (8, 2);

/// `true` unless the guest's QEMU is known, and of a version that loses no reconnect.
pub fn may_lose_reconnects(guest: Option<&Guest>) -> bool {
    let version = guest.and_then(|guest| guest.qemu.as_ref());
    version.is_none_or(|version| loses_reconnects(version))
}

/// Records in `status` how the guest of a connected volume reconnects, with the findings about that; returns the new
/// findings. Without an entry for the volume's socket in `guests`, nothing changes.
pub fn see(name: &VolumeName, status: &mut VolumeStatus, guests: &Guests) -> Vec<Finding> {
    let Some(guest) = guests.get(&status.socket_path) else { return Vec::new() };
    status.reconnect_seconds = guest.as_ref().map(|guest| guest.reconnect);
    let findings = guest.as_ref().map(|guest| findings(name, guest)).unwrap_or_default();
    let before = std::mem::replace(&mut status.findings, findings);
    let is_new = |finding: &&Finding| before.iter().all(|known| known.code != finding.code);
    status.findings.iter().filter(is_new).cloned().collect()
}

/// Findings about the guest of a volume.
fn findings(volume: &VolumeName, guest: &Guest) -> Vec<Finding> {
    let (machine, reconnect) = (&guest.machine, guest.reconnect);
    let mut found = Vec::new();
    if !guest.shares_memory {
        found.push(private_memory(&format!("{machine}, as it was started,")));
    }
    let version = guest.qemu.as_ref().filter(|version| loses_reconnects(version));
    // Without a try to reconnect, none is lost.
    if let Some(version) = version.filter(|_| reconnect.pause().is_some()) {
        let text = format!(
            "{machine} runs QEMU {version}, which may lose {volume} until the VM is restarted when a target exits while \
             QEMU connects to it: update QEMU to 8.2 or newer, and restart or migrate the VM"
        );
        found.push(Finding::new(Code::GuestLosesReconnects, text));
    }
    found.extend(bad_reconnect(
        &format!("{machine}, as it was started,"),
        volume.as_str(),
        reconnect,
    ));
    found
}

/// Finding on memory that targets cannot access. `machine` names the virtual machine, and how that is known.
pub(super) fn private_memory(machine: &str) -> Finding {
    let text = format!(
        "{machine} does not share all of its memory, so that a target cannot read and write it and the disk fails: give it \
         <memoryBacking><access mode='shared'/></memoryBacking> (QEMU: share=on for its memory-backend-file)"
    );
    Finding::new(Code::GuestMemoryPrivate, text)
}

/// Finding on a guest that reconnects to `disk` too slowly or never. `machine` names it, and how that is known.
pub(super) fn bad_reconnect(machine: &str, disk: &str, reconnect: Reconnect) -> Option<Finding> {
    let advice =
        "<reconnect enabled='yes' timeout='1'/> (QEMU: reconnect=1, from 9.2 reconnect-ms=1000)";
    match reconnect.pause() {
        None => {
            let text = format!(
                "{machine} does not connect to {disk} again after its target has exited (its chardev has no reconnect): the \
                 disk hangs then until the VM is restarted; give it {advice}, and restart or migrate the VM"
            );
            Some(Finding::new(Code::GuestDoesNotReconnect, text))
        }
        Some(pause) if pause > SHORT => {
            let text = format!(
                "{machine} looks for {disk} only every {reconnect} after its target has exited, and waits up to that long for \
                 a target that is back in about a second: give it {advice} at its next start"
            );
            Some(Finding::new(Code::GuestReconnectsSlowly, text))
        }
        Some(_) => None,
    }
}

/// `true` for a QEMU version, such as `7.2.22`, that may lose a reconnect.
fn loses_reconnects(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    version.is_some_and(|version| (LOSES..LOSES_NO_MORE).contains(&version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(millis: u64, qemu: &str) -> Guest {
        Guest {
            machine: "web-1 (pid 70)".to_string(),
            reconnect: Reconnect::each(Duration::from_millis(millis)),
            shares_memory: true,
            qemu: Some(qemu.to_string()).filter(|qemu| !qemu.is_empty()),
        }
    }

    #[test]
    fn a_guest_is_found_fault_with_when_it_reconnects_slowly_never_or_may_lose_that() {
        use Code::{GuestDoesNotReconnect, GuestLosesReconnects, GuestReconnectsSlowly};
        for (millis, qemu, codes) in [
            (1000, "9.2.0", &[][..]),
            (500, "", &[]),
            (1001, "9.2.0", &[GuestReconnectsSlowly]),
            (10_000, "7.2.22", &[GuestLosesReconnects, GuestReconnectsSlowly]),
            (0, "9.2.0", &[GuestDoesNotReconnect]),
            // Which loses no reconnect, for it tries none.
            (0, "7.2.22", &[GuestDoesNotReconnect]),
        ] {
            let found = findings(&"v".parse().unwrap(), &guest(millis, qemu));
            assert_eq!(
                found.iter().map(|it| it.code).collect::<Vec<_>>(),
                codes,
                "{millis} {qemu}"
            );
            for Finding { text, .. } in &found {
                assert!(text.contains("web-1 (pid 70)") && text.contains('v'), "{text}");
            }
        }
        for (millis, part) in [(10_000, "every 10 s"), (0, "has no reconnect")] {
            let text = &findings(&"v".parse().unwrap(), &guest(millis, ""))[0].text;
            assert!(text.contains(part) && text.contains("as it was started"), "{text}");
        }
    }

    #[test]
    fn memory_that_no_target_can_access_is_a_finding() {
        let private = Guest { shares_memory: false, ..guest(1000, "") };
        let found = findings(&"v".parse().unwrap(), &private);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].code, Code::GuestMemoryPrivate);
        assert!(found[0].text.contains("web-1 (pid 70), as it was started,"), "{}", found[0].text);
    }

    #[test]
    fn versions_that_lose_reconnects_are_those_from_7_2_to_8_1() {
        for version in ["7.2.0", "7.2", "8.0.5", "8.1.5", "8.1.50"] {
            assert!(loses_reconnects(version), "{version}");
        }
        for version in ["7.1.9", "6.2.0", "8.2.0", "9.0.2", "10.0.0", "", "7", "v8.0", "8..1"] {
            assert!(!loses_reconnects(version), "{version}");
        }
    }

    #[test]
    fn findings_are_news_once() {
        let name = "v".parse().unwrap();
        let mut status =
            VolumeStatus { socket_path: "/s/v".to_string(), ..VolumeStatus::unknown() };
        let seen = |guest| Guests::from([("/s/v".to_string(), guest)]);
        let slow = seen(Some(guest(10_000, "")));
        assert_eq!(see(&name, &mut status, &slow).len(), 1);
        assert_eq!(see(&name, &mut status, &slow), []);
        assert_eq!(status.findings.len(), 1);
        // It was not connected yet when guests were looked for.
        assert_eq!(see(&name, &mut status, &Guests::new()), []);
        assert_eq!((status.reconnect_seconds.is_some(), status.findings.len()), (true, 1));
        // Not on a command line: nothing is known of it.
        assert_eq!(see(&name, &mut status, &seen(None)), []);
        assert_eq!((status.reconnect_seconds, status.findings.len()), (None, 0));
    }
}
