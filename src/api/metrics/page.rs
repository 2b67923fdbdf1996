//! Text form of a metric family: its name, its help, and a line for each set of label values.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Labels of one line: name and value of each. All lines of a family have the same names.
pub(super) type Labels<'a, const N: usize> = [(&'static str, &'a str); N];
/// No labels.
pub(super) const ALONE: Labels<'static, 0> = [];

/// Writer of metric families.
pub(super) struct Page<'a>(DescriptorEncoder<'a>);

impl<'a> Page<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Page<'a> {
        Page(encoder)
    }

    /// Writes a family of counters. The encoder adds `_total` to `name`.
    pub(super) fn counters<'l, const N: usize>(
        &mut self,
        (name, help): (&str, &str),
        lines: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        let lines = lines.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, MetricType::Counter, lines)
    }

    /// Writes a counter without labels whose value need not be whole.
    pub(super) fn counter(&mut self, (name, help): (&str, &str), value: f64) -> fmt::Result {
        let lines = [(ALONE, ConstCounter::new(value))];
        self.family(name, help, MetricType::Counter, lines)
    }

    /// Writes a family of gauges.
    pub(super) fn gauges<'l, const N: usize>(
        &mut self,
        (name, help): (&str, &str),
        lines: impl IntoIterator<Item = (Labels<'l, N>, u64)>,
    ) -> fmt::Result {
        let lines = lines.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, MetricType::Gauge, lines)
    }

    /// Writes a gauge without labels, if its value is known.
    pub(super) fn gauge(&mut self, about: (&str, &str), value: Option<u64>) -> fmt::Result {
        self.gauges(about, value.map(|value| (ALONE, value)))
    }

    /// Writes a family of gauges whose values are seconds.
    pub(super) fn seconds<'l, const N: usize>(
        &mut self,
        (name, help): (&str, &str),
        lines: impl IntoIterator<Item = (Labels<'l, N>, f64)>,
    ) -> fmt::Result {
        let lines = lines.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, MetricType::Gauge, lines)
    }

    /// Writes a family; one without a line is left out.
    fn family<'l, const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        lines: impl IntoIterator<Item = (Labels<'l, N>, M)>,
    ) -> fmt::Result {
        let mut lines = lines.into_iter().peekable();
        if lines.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, metric) in lines {
            if N == 0 {
                return metric.encode(family);
            }
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
