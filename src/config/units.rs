//! How durations and modes are written.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A duration as people write it: `30s`, `15m`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// Milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Span {
        Span(Duration::from_millis(milliseconds))
    }

    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = humantime::parse_duration(&text);
        parsed.map(Span).map_err(|e| {
            serde::de::Error::custom(format!("'{text}' is not a duration such as 30s or 15m: {e}"))
        })
    }
}

/// A file mode, written as a string of octal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Serialize for Mode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.map(Mode).ok_or_else(|| {
            serde::de::Error::custom(format!("'{text}' is not a mode in octal such as \"0755\""))
        })
    }
}
