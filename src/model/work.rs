//! Identity of long-running work.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Identity of one piece of long-running work. Its progress, events and log lines and the stream of its caller all have
/// the same id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(u64);

impl WorkId {
    /// Returns an id that no other work has, not even work of another run of the agent.
    pub fn next() -> WorkId {
        // Ids of two runs differ as long as a run begins at most 1024 pieces of work per millisecond of its life.
        static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            AtomicU64::new(u64::try_from(since.as_millis()).unwrap_or_default() << 10)
        });
        WorkId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for WorkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl FromStr for WorkId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<WorkId, Self::Err> {
        Ok(WorkId(u64::from_str_radix(text, 16)?))
    }
}

impl Serialize for WorkId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WorkId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<WorkId, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_has_an_identity_of_its_own_that_reads_as_it_is_written() {
        let (one, other) = (WorkId::next(), WorkId::next());
        assert_ne!(one, other);
        let json = serde_json::to_string(&one).unwrap();
        assert_eq!(json, format!("\"{one}\""));
        assert_eq!(serde_json::from_str::<WorkId>(&json).unwrap(), one);
        assert!(serde_json::from_str::<WorkId>("\"no\"").is_err());
    }
}
