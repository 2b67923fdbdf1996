//! Reservations: free hugepages that are kept for a guest that is about to start or to arrive, until its process has
//! them.
//!
//! ```text
//!           claimed                      released, process exited, lease ended
//! Open ───────────────▶ Claimed ───────────────────────────────────────────────▶ gone
//!   └── released, lease ended ──▶ gone
//! ```
//! A reservation is a goal: an open one keeps its pages free. Pages are fungible, so no page belongs to a reservation.
//! Pages that were grown for reservations are counted by pool ([`Ledger::temporary`](super::ledger::Ledger)), and are
//! given back as far as they exceed the pages of all reservations.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::code::Code;
use super::fault::Fault;
use super::pools::{PagesByPool, PoolPages, PoolWant};

/// Upper bound on the reservations of a node: more than guests that it can have.
pub const MOST_RESERVATIONS: usize = 512;

/// Name of a reservation, at most 128 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReservationName(String);

impl FromStr for ReservationName {
    type Err = Fault;

    fn from_str(text: &str) -> Result<ReservationName, Fault> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first && text.len() <= 128 && text.bytes().all(plain) {
            return Ok(ReservationName(text.to_string()));
        }
        let shown: String = text.chars().take(160).collect();
        let text = format!(
            "'{shown}' is no name for a reservation: it begins with a letter or digit, goes on with those and '_', '.', \
             '-', and has at most 128 characters"
        );
        Err(Fault::new(Code::InvalidReservation, text))
    }
}

impl TryFrom<String> for ReservationName {
    type Error = Fault;

    fn try_from(text: String) -> Result<ReservationName, Fault> {
        text.parse()
    }
}

impl From<ReservationName> for String {
    fn from(name: ReservationName) -> String {
        name.0
    }
}

impl fmt::Display for ReservationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Process that has the pages of a claimed reservation. Pid and start time together name one process of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    pub pid: u32,
    /// Start, in clock ticks since the boot.
    pub started: u64,
}

/// State of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReservationState {
    /// Its pages are kept free.
    Open,
    /// Its guest has the pages: a known process, or one that only the caller knows.
    Claimed(Option<Holder>),
}

/// Pages that are reserved, as requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservationRequest {
    pub name: ReservationName,
    pub wants: Vec<PoolWant>,
    /// Duration of the lease, in seconds.
    pub lease_seconds: u32,
    /// Set if the guest arrives by migration: it may take pages of the reserve for arrivals.
    pub arrival: bool,
}

/// Lease of a reservation. It does not count once a known process has the pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// End, in seconds since the boot: the wall clock may be set.
    pub end: u64,
    /// End by the wall clock, in RFC 3339; for callers to read.
    pub until: String,
}

impl Lease {
    /// The later one of `self` and `other`.
    pub fn longer(self, other: Lease) -> Lease {
        if other.end > self.end { other } else { self }
    }
}

/// Reservation of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    pub name: ReservationName,
    /// Pages as requested.
    pub wants: Vec<PoolWant>,
    /// Pages by pool, as chosen when the reservation was made.
    pub pages: Vec<PoolPages>,
    pub arrival: bool,
    pub state: ReservationState,
    pub lease: Lease,
}

impl Reservation {
    /// `true` while the pages are kept free.
    pub fn is_open(&self) -> bool {
        self.state == ReservationState::Open
    }

    /// Process that has the pages, if it is known.
    pub fn holder(&self) -> Option<Holder> {
        match self.state {
            ReservationState::Claimed(holder) => holder,
            ReservationState::Open => None,
        }
    }
}

/// Pages of `reservations`, by pool.
pub fn pages_of<'a>(reservations: impl Iterator<Item = &'a Reservation>) -> PagesByPool {
    let mut pages = PagesByPool::new();
    for part in reservations.flat_map(|reservation| &reservation.pages) {
        let sum = pages.entry(part.key()).or_default();
        *sum = sum.saturating_add(part.pages);
    }
    pages
}

/// Adds `more` to `pages`.
pub fn add_pages(pages: &mut PagesByPool, more: &PagesByPool) {
    for (key, more) in more {
        let sum = pages.entry(*key).or_default();
        *sum = sum.saturating_add(*more);
    }
}

/// Pages of `of` beyond those in `less`, by pool.
pub fn pages_beyond(of: &PagesByPool, less: &PagesByPool) -> PagesByPool {
    let beyond = of
        .iter()
        .map(|(key, pages)| (*key, pages.saturating_sub(less.get(key).copied().unwrap_or(0))));
    beyond.filter(|(_, pages)| *pages > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_words() {
        for name in ["vm-1", "libvirt-5f0c6b0e-0000-4000-8000-000000000000", "a"] {
            assert_eq!(name.parse::<ReservationName>().unwrap().to_string(), name);
        }
        let long = "x".repeat(129);
        for name in ["", "-a", "a/b", "../a", "a b", "ä", long.as_str()] {
            let fault = name.parse::<ReservationName>().unwrap_err();
            assert_eq!(fault.code, Code::InvalidReservation, "{name}");
        }
    }
}
