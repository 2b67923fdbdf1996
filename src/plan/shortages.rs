//! Findings on pools that have fewer free pages than are kept for guests.

use std::time::{Duration, Instant};

use crate::model::code::Code;
use crate::model::fault::Finding;
use crate::model::status::PoolReport;
use crate::model::units::PageSize;

/// Time for which pages have to be missing before that is a finding: a guest that starts takes its pages some time before
/// its reservation is claimed.
const LASTS: Duration = Duration::from_secs(60);

/// Shortages of free pages.
#[derive(Debug, Default)]
pub struct Shortages {
    /// Findings, each with the time since which pages have been missing.
    current: Vec<(Instant, Finding)>,
    /// Codes of the findings that were told.
    told: Vec<Code>,
}

impl Shortages {
    /// Judges the pools as observed at `now`; returns new findings.
    pub fn see(&mut self, pools: &[PoolReport], now: Instant) -> Vec<Finding> {
        let since = |code| {
            let known = self.current.iter().find(|(_, finding)| finding.code == code);
            known.map_or(now, |(since, _)| *since)
        };
        self.current =
            shortages(pools).into_iter().map(|finding| (since(finding.code), finding)).collect();
        self.current.iter_mut().for_each(|(since, _)| *since = (*since).min(now));
        let last: Vec<Finding> = self
            .current
            .iter()
            .filter(|(since, _)| now.duration_since(*since) >= LASTS)
            .map(|(_, finding)| finding.clone())
            .collect();
        let new = last.iter().filter(|finding| !self.told.contains(&finding.code)).cloned();
        let new = new.collect();
        self.told = last.iter().map(|finding| finding.code).collect();
        new
    }

    /// Findings that were told.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        let current = self.current.iter().map(|(_, finding)| finding);
        current.filter(|finding| self.told.contains(&finding.code))
    }
}

fn shortages(pools: &[PoolReport]) -> Vec<Finding> {
    let missing = |wanted: fn(&PoolReport) -> u64| {
        let lacks = |pool: &PoolReport| {
            let pages = wanted(pool).saturating_sub(pool.free_pages);
            let size = PageSize::from_kib(pool.size_kib).map_or(String::new(), |it| it.to_string());
            (pages > 0).then(|| format!("{pages} of {}/{size}", pool.node))
        };
        pools.iter().filter_map(lacks).collect::<Vec<_>>().join(", ")
    };
    let reserved = missing(|pool| pool.reserved_pages);
    let arrival = missing(|pool| match pool.arrival_pages {
        0 => 0,
        arrival => pool.reserved_pages.saturating_add(arrival),
    });
    let mut found = Vec::new();
    if !reserved.is_empty() {
        let text = format!(
            "hugepages that are reserved for guests were taken by others ({reserved} are missing): a guest with a reservation \
             may not start; see GET /v1/reservations"
        );
        found.push(Finding::new(Code::ReservationShort, text));
    }
    if !arrival.is_empty() {
        let text = format!(
            "the reserve for guests that arrive by migration (pools.arrival_reserve) is not full: {arrival} are missing, as \
             the kernel gave no more, or a floor forbids it; free memory, or lower the reserve"
        );
        found.push(Finding::new(Code::ArrivalReserveShort, text));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::NumaNode;

    fn pool(free_pages: u64) -> PoolReport {
        PoolReport {
            size_kib: 2048,
            node: NumaNode(1),
            pages: 9,
            free_pages,
            grown_pages: 0,
            reserved_pages: 4,
            arrival_pages: 3,
        }
    }

    #[test]
    fn shortage_that_lasts_is_told_once_until_it_ends() {
        let (mut shortages, start) = (Shortages::default(), Instant::now());
        let mut codes = |free, seconds| {
            let new = shortages.see(&[pool(free)], start + Duration::from_secs(seconds));
            let codes = new.iter().map(|it| it.code).collect::<Vec<_>>();
            (codes, shortages.findings().count())
        };
        assert_eq!(codes(5, 0), (vec![], 0));
        assert_eq!(codes(5, 59), (vec![], 0));
        assert_eq!(codes(5, 60), (vec![Code::ArrivalReserveShort], 1));
        assert_eq!(codes(3, 61), (vec![], 1));
        assert_eq!(codes(3, 121), (vec![Code::ReservationShort], 2));
        assert_eq!(codes(7, 122), (vec![], 0));
        assert_eq!(codes(5, 123), (vec![], 0));
    }

    #[test]
    fn findings_name_pools_and_pages() {
        let texts: Vec<String> =
            super::shortages(&[pool(1)]).into_iter().map(|it| it.text).collect();
        assert!(
            texts[0].contains("3 of node1/2M") && texts[1].contains("6 of node1/2M"),
            "{texts:?}"
        );
    }
}
