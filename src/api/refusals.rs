//! Refused callers: counted by reason, logged in the audit log, and slowed down per client.
//!
//! The first refusals of a client are answered at once and logged one by one. A client that is refused further, for
//! example because it guesses tokens or looks for open routes, waits for each answer, and only the number of these
//! refusals is logged.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::model::quota::QuotaClient;

/// Number of refusals of one client that are answered at once. One more is allowed with each second.
const AT_ONCE: f64 = 10.0;
/// Delay of the answer to each refusal beyond `AT_ONCE`.
const DELAY: Duration = Duration::from_secs(1);
/// Limit of remembered clients. While it is reached, each refusal of an unknown client is delayed and not logged.
const MOST_CLIENTS: usize = 4096;

/// Refused client: its quota identity, and its user ID if it is a known process of this node.
pub type Refusee = (QuotaClient, Option<u32>);

/// Treatment of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub delay: Duration,
    /// Number of the client's refusals before this one that were not logged. `None` if this one is not to be logged
    /// either.
    pub unlogged: Option<u64>,
    /// Set for the first refusal of a client that is not to be logged since [`Refusals::take_unlogged`] was last called
    /// for it.
    pub is_first_unlogged: bool,
}

/// Refusals since the process started; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<RefusalState>>);

#[derive(Debug, Default)]
struct RefusalState {
    counts: BTreeMap<&'static str, u64>,
    clients: HashMap<Refusee, RefusedClient>,
}

/// State of a refused client.
#[derive(Debug)]
struct RefusedClient {
    /// Number of refusals, reduced by one with each second.
    level: f64,
    at: Instant,
    unlogged: u64,
    /// Set if a task is going to take `unlogged` and log it.
    are_awaited: bool,
}

impl RefusedClient {
    fn level(&self, now: Instant) -> f64 {
        (self.level - now.duration_since(self.at).as_secs_f64()).max(0.0)
    }
}

impl Refusals {
    /// Counts a refusal of `client`. `reason` is one word, the label of the metric.
    pub fn note(&self, client: Refusee, reason: &'static str, now: Instant) -> Pace {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state.counts.entry(reason).or_default() += 1;
        let clients = &mut state.clients;
        if clients.len() >= MOST_CLIENTS && !clients.contains_key(&client) {
            clients.retain(|_, seen| seen.level(now) > 0.0 || seen.are_awaited);
            if clients.len() >= MOST_CLIENTS {
                return Pace { delay: DELAY, unlogged: None, is_first_unlogged: false };
            }
        }
        let new = RefusedClient { level: 0.0, at: now, unlogged: 0, are_awaited: false };
        let seen = clients.entry(client).or_insert(new);
        let level = seen.level(now);
        seen.at = now;
        if level + 1.0 > AT_ONCE {
            // The level does not rise here: otherwise a client with very many refusals would be delayed for hours
            // afterwards.
            (seen.level, seen.unlogged) = (level, seen.unlogged + 1);
            let is_first_unlogged = !std::mem::replace(&mut seen.are_awaited, true);
            return Pace { delay: DELAY, unlogged: None, is_first_unlogged };
        }
        seen.level = level + 1.0;
        let unlogged = Some(std::mem::take(&mut seen.unlogged));
        Pace { delay: Duration::ZERO, unlogged, is_first_unlogged: false }
    }

    /// Returns the number of unlogged refusals of `client`, and resets it to 0.
    pub fn take_unlogged(&self, client: &Refusee) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = |seen: &mut RefusedClient| {
            seen.are_awaited = false;
            std::mem::take(&mut seen.unlogged)
        };
        state.clients.get_mut(client).map_or(0, taken)
    }
}

impl Collector for Refusals {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner).counts.clone();
        if counts.is_empty() {
            return Ok(());
        }
        let (name, help) =
            ("vhost_http_refused", "Calls and connections that were refused, by reason.");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, count) in counts {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    fn client(number: u32) -> Refusee {
        (QuotaClient::V4(Ipv4Addr::from(number)), None)
    }

    #[test]
    fn client_that_goes_on_waits_and_another_does_not() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        for _ in 0..10 {
            let pace = refusals.note(client(1), "token-wrong", now);
            let expected =
                Pace { delay: Duration::ZERO, unlogged: Some(0), is_first_unlogged: false };
            assert_eq!(pace, expected);
        }
        for number in 0..3 {
            let pace = refusals.note(client(1), "token-wrong", now);
            let expected = Pace { delay: DELAY, unlogged: None, is_first_unlogged: number == 0 };
            assert_eq!(pace, expected);
        }
        assert_eq!(refusals.note(client(2), "token-wrong", now).delay, Duration::ZERO);
        assert_eq!(refusals.note(client(1), "token-wrong", at(1)).unlogged, Some(3));
        assert_eq!(refusals.note(client(1), "token-wrong", at(1)).delay, DELAY);
        assert_eq!(
            (refusals.take_unlogged(&client(1)), refusals.take_unlogged(&client(1))),
            (1, 0)
        );
        assert_eq!(refusals.note(client(1), "token-wrong", at(60)).delay, Duration::ZERO);
    }

    #[test]
    fn memory_for_clients_is_bounded_and_forgets_those_that_stopped() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        for number in 0..5000 {
            refusals.note(client(number), "token-missing", now);
        }
        assert_eq!(refusals.0.lock().unwrap().clients.len(), MOST_CLIENTS);
        assert_eq!(refusals.note(client(9999), "token-missing", now).delay, DELAY);
        let later = now + Duration::from_secs(10);
        assert_eq!(refusals.note(client(9999), "token-missing", later).delay, Duration::ZERO);
        assert_eq!(refusals.0.lock().unwrap().clients.len(), 1);
    }

    #[test]
    fn page_counts_them_by_reason() {
        let refusals = Refusals::default();
        refusals.note(client(1), "token-wrong", Instant::now());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(refusals));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        assert!(page.contains("vhost_http_refused_total{reason=\"token-wrong\"} 1"), "{page}");
    }
}
