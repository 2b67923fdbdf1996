//! Guests of volumes, and their pause between tries to reconnect, from the command line of their QEMU (`qemu_args`).
//!
//! The command line shows only how the virtual machine was started. A disk that was plugged in later is not on it, so
//! nothing is known of the guest of that disk, not even that it does not reconnect. A disk that was unplugged later is
//! still on it, so the report may be out of date if the disk is plugged in again, there or in another machine.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Pause of a guest between two tries to reconnect to a socket that has gone. In JSON a number of seconds; 0 for no
/// tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnect(Duration);

impl Reconnect {
    /// No tries to reconnect, which is QEMU's default.
    pub const NEVER: Reconnect = Reconnect(Duration::ZERO);

    /// Builds the value for a guest that tries to reconnect at the interval `pause`.
    pub fn each(pause: Duration) -> Reconnect {
        Reconnect(pause)
    }

    /// Pause between tries; `None` without tries.
    pub fn pause(self) -> Option<Duration> {
        Some(self.0).filter(|pause| !pause.is_zero())
    }

    /// Longer of the pauses of `self` and `other`. No tries count as the longest pause.
    pub fn slower(self, other: Reconnect) -> Reconnect {
        let waits = |it: Reconnect| (it.pause().is_none(), it.0);
        if waits(other) > waits(self) { other } else { self }
    }
}

impl fmt::Display for Reconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pause() {
            Some(pause) => write!(f, "{} s", pause.as_secs_f64()),
            None => f.write_str("never"),
        }
    }
}

impl Serialize for Reconnect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.subsec_nanos() {
            0 => serializer.serialize_u64(self.0.as_secs()),
            _ => serializer.serialize_f64(self.0.as_secs_f64()),
        }
    }
}

impl<'de> Deserialize<'de> for Reconnect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reconnect, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map(Reconnect).map_err(D::Error::custom)
    }
}

/// A virtual machine that has the socket of a volume on its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Name of the virtual machine and pid of its QEMU.
    pub machine: String,
    pub reconnect: Reconnect,
    /// Set if targets can access all of its memory.
    pub shares_memory: bool,
    /// Version of the running QEMU, if known.
    pub qemu: Option<String>,
}

/// Guest of each socket that was looked up, by the path of the socket. `None` unless exactly one QEMU was started with
/// that socket; a guest may be connected all the same, such as one whose disk was plugged in later.
pub type Guests = BTreeMap<String, Option<Guest>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(count: u64) -> Reconnect {
        Reconnect(Duration::from_millis(count))
    }

    #[test]
    fn a_guest_that_never_looks_again_waits_longest() {
        for (one, other) in [(millis(1), millis(2)), (millis(9), Reconnect::NEVER)] {
            assert_eq!((one.slower(other), other.slower(one)), (other, other));
        }
    }

    #[test]
    fn json_is_a_number_of_seconds() {
        for (reconnect, json) in
            [(Reconnect::NEVER, "0"), (millis(10_000), "10"), (millis(1234), "1.234")]
        {
            assert_eq!(serde_json::to_string(&reconnect).unwrap(), json);
            assert_eq!(serde_json::from_str::<Reconnect>(json).unwrap(), reconnect);
        }
        for json in ["-1", "1e300", "\"1\""] {
            assert!(serde_json::from_str::<Reconnect>(json).is_err(), "{json}");
        }
    }
}
