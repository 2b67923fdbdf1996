//! I/O buffers of a target, which SPDK's library iobuf keeps in two pools, and requests that had to wait for one.
//!
//! A request that needs a buffer waits until another one gives it back. The pools are made when the target starts and
//! never grow, so that a target whose requests wait again and again needs larger ones
//! (packaging/doc/facts.md, "Probes").

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::code::Code;
use super::fault::Finding;
use super::target::TargetName;

/// Time for which a pool counts as exhausted after requests waited for its buffers. With it, a load that comes in
/// bursts makes the target degraded once, not with each burst.
pub const EXHAUSTED_FOR: Duration = Duration::from_secs(60);

/// Explanation of a session that a target does not start although the virtual machine has set up its queues. The target
/// does not say which of its causes it is.
pub const NOT_STARTED: &str = "the target did not start its session, mostly for want of I/O buffers in SPDK, where each \
    connected disk takes 256 small and 32 large ones (32 disks where nothing set the pools); see iobuf and \"I/O channel\" in \
    its log: disconnect another disk and restart this VM, or set larger pools and recreate the target \
    (operations.md, \"I/O buffers\")";

/// Small buffers of a target that sets no number of them (`iobuf_set_options`); each has 8 KiB.
const USUAL_SMALL: u64 = 8192;
/// Large buffers of a target that sets no number of them; each has 132 KiB.
const USUAL_LARGE: u64 = 1024;

/// Requests that had to wait for a buffer, by the pool of the buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BufferWaits {
    pub small: u64,
    pub large: u64,
}

impl BufferWaits {
    fn plus(self, more: BufferWaits) -> BufferWaits {
        BufferWaits {
            small: self.small.saturating_add(more.small),
            large: self.large.saturating_add(more.large),
        }
    }

    /// Growth since `before`. A counter that became smaller, as when a thread of the target ended, has not grown.
    fn since(self, before: BufferWaits) -> BufferWaits {
        BufferWaits {
            small: self.small.saturating_sub(before.small),
            large: self.large.saturating_sub(before.large),
        }
    }
}

/// Counters of a target, by the name of its module.
pub type WaitsByModule = BTreeMap<String, BufferWaits>;

/// Answer of a target about its buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BufferAnswer {
    Counted(WaitsByModule),
    /// The target has no method that counts them.
    NotCounted,
}

/// Buffers of a target as of an observation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BufferUse {
    /// Requests that waited since the target is observed, over all of its processes; `None` before the first counters.
    pub waits: Option<BufferWaits>,
    /// Set while the small buffers are exhausted.
    pub lacks_small: bool,
    /// Set while the large buffers are exhausted.
    pub lacks_large: bool,
}

impl BufferUse {
    /// Shortage of buffers, with the sizes to set; `None` if there is none. The text has no counters, so that it is the
    /// same as long as the shortage is.
    pub fn shortage(&self) -> Option<String> {
        let pools =
            [(self.lacks_small, "small", USUAL_SMALL), (self.lacks_large, "large", USUAL_LARGE)];
        let lacking = pools.into_iter().filter(|(lacks, ..)| *lacks);
        let (kinds, sizes): (Vec<&str>, Vec<String>) = lacking
            .map(|(_, kind, usual)| {
                let size = format!(
                    "{kind}_pool_count to twice what it is ({} where nothing set it, for SPDK makes {usual})",
                    2 * usual
                );
                (kind, size)
            })
            .unzip();
        (!kinds.is_empty()).then(|| {
            format!(
                "its {} I/O buffers are exhausted, so that requests of guests wait for one (the counter retry of \
                 iobuf_get_stats grows): set {} with iobuf_set_options in a file that --json in the target's command \
                 names (operations.md, \"I/O buffers\")",
                kinds.join(" and "),
                sizes.join(" and ")
            )
        })
    }

    /// Finding about the target `name`, if it lacks buffers.
    pub fn finding(&self, name: &TargetName) -> Option<Finding> {
        let shortage = self.shortage()?;
        Some(Finding::new(Code::BuffersExhausted, format!("{name}: {shortage}")))
    }
}

/// Record of the buffers of one target over its answers.
#[derive(Debug, Default)]
pub struct BufferRecord {
    /// Counters of the process, and the time at which they were asked for.
    last: Option<(Instant, WaitsByModule)>,
    waits: Option<BufferWaits>,
    /// Time of the last request for counters by which those of the small buffers had grown.
    small_grew: Option<Instant>,
    /// Time of the last request for counters by which those of the large buffers had grown.
    large_grew: Option<Instant>,
    /// Set if the process counts nothing.
    is_not_counted: bool,
}

impl BufferRecord {
    /// `true` unless the process has answered that it counts nothing.
    pub fn is_asked(&self) -> bool {
        !self.is_not_counted
    }

    /// Records the answer to a request that was sent at `sent`. The first counters of a process are where growth begins:
    /// older waits may be of another day.
    pub fn note(&mut self, sent: Instant, answer: BufferAnswer) {
        let BufferAnswer::Counted(counters) = answer else {
            self.is_not_counted = true;
            return;
        };
        let mut grown = BufferWaits::default();
        if let Some((asked, before)) = &self.last {
            if sent <= *asked {
                return;
            }
            for (module, waits) in &counters {
                let before = before.get(module).copied().unwrap_or_default();
                grown = grown.plus(waits.since(before));
            }
        }
        self.last = Some((sent, counters));
        self.waits = Some(self.waits.unwrap_or_default().plus(grown));
        self.small_grew = (grown.small > 0).then_some(sent).or(self.small_grew);
        self.large_grew = (grown.large > 0).then_some(sent).or(self.large_grew);
    }

    /// Forgets everything of the process but the sum of its waits: another one takes its place.
    pub fn begin_anew(&mut self) {
        *self = BufferRecord { waits: self.waits, ..BufferRecord::default() };
    }

    /// Use of the buffers as of `now`.
    pub fn at(&self, now: Instant) -> BufferUse {
        let lacks = |grew: Option<Instant>| grew.is_some_and(|at| now < at + EXHAUSTED_FOR);
        BufferUse {
            waits: self.waits,
            lacks_small: lacks(self.small_grew),
            lacks_large: lacks(self.large_grew),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(modules: &[(&str, u64, u64)]) -> BufferAnswer {
        let waits = |(name, small, large): &(&str, u64, u64)| {
            (name.to_string(), BufferWaits { small: *small, large: *large })
        };
        BufferAnswer::Counted(modules.iter().map(waits).collect())
    }

    fn waits(small: u64, large: u64) -> Option<BufferWaits> {
        Some(BufferWaits { small, large })
    }

    // The shape of longhorn#13322: 18.9 million retries of large buffers, and none of small ones.
    #[test]
    fn only_growth_between_two_answers_is_a_shortage() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut record = BufferRecord::default();
        assert_eq!(record.at(at(0)), BufferUse::default());
        record.note(at(0), counted(&[("bdev", 0, 0), ("nvmf_TCP", 0, 18_900_000)]));
        assert_eq!((record.at(at(0)).shortage(), record.at(at(0)).waits), (None, waits(0, 0)));
        record.note(at(1), counted(&[("bdev", 0, 0), ("nvmf_TCP", 0, 18_900_007)]));
        let shortage = record.at(at(1)).shortage().unwrap();
        for words in ["its large I/O buffers", "large_pool_count", "2048", "--json"] {
            assert!(shortage.contains(words) && !shortage.contains("small"), "{shortage}");
        }
        let finding = record.at(at(1)).finding(&"a".parse().unwrap()).unwrap();
        assert_eq!(finding, Finding::new(Code::BuffersExhausted, format!("a: {shortage}")));
        record.note(at(59), counted(&[("bdev", 3, 0), ("nvmf_TCP", 0, 18_900_007)]));
        let both = record.at(at(60));
        assert_eq!((both.waits, both.lacks_small, both.lacks_large), (waits(3, 7), true, true));
        assert!(both.shortage().unwrap().contains("small_pool_count"));
        assert!(!record.at(at(61)).lacks_large && record.at(at(61)).lacks_small, "it passes");
        assert_eq!(record.at(at(119)).shortage(), None);
    }

    #[test]
    fn counters_that_fall_or_come_late_are_no_growth() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut record = BufferRecord::default();
        record.note(at(0), counted(&[("bdev", 9, 9), ("accel", 5, 5)]));
        record.note(at(2), counted(&[("bdev", 2, 2)]));
        record.note(at(1), counted(&[("bdev", 9, 9)]));
        assert_eq!(record.at(at(2)).waits, waits(0, 0));
        record.note(at(3), counted(&[("bdev", 3, 2)]));
        assert_eq!(record.at(at(3)).waits, waits(1, 0));
    }

    #[test]
    fn another_process_lacks_nothing_yet_and_is_asked_again() {
        let begin = Instant::now();
        let mut record = BufferRecord::default();
        record.note(begin, counted(&[("bdev", 0, 0)]));
        record.note(begin + Duration::from_millis(1), counted(&[("bdev", 4, 0)]));
        record.note(begin + Duration::from_millis(2), BufferAnswer::NotCounted);
        assert!(record.at(begin).lacks_small && !record.is_asked());
        record.begin_anew();
        assert!(!record.at(begin).lacks_small && record.is_asked());
        record.note(begin + Duration::from_millis(3), counted(&[("bdev", 1, 0)]));
        assert_eq!(record.at(begin).waits, waits(4, 0), "the sum only grows");
    }
}
