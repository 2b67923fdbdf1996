//! Samples, their quantiles, and how they are printed beside floor and aim.

use std::time::{Duration, Instant};

/// Durations of one thing measured often.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Measures `work` once.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        self.push(began.elapsed());
        done
    }

    /// Adds a duration measured elsewhere.
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The duration that `share` of the samples do not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let at = (last as f64 * share).round() as usize;
        sorted.get(at).copied().unwrap_or_default()
    }

    /// The middle one.
    pub(crate) fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// One line: the quantiles that matter.
    pub(crate) fn print(&self, name: &str) {
        println!(
            "  {name:<34} p50 {:>8}  p99 {:>8}  max {:>8}  ({} samples)",
            millis(self.median()),
            millis(self.quantile(0.99)),
            millis(self.quantile(1.0)),
            self.0.len()
        );
    }
}

/// Milliseconds with three digits.
pub(crate) fn millis(took: Duration) -> String {
    format!("{:.3} ms", took.as_secs_f64() * 1e3)
}

/// Prints how samples stand to those of their floor, which were taken in turn with them: the middle one
/// of the ratios of each pair, so that what the machine does meanwhile counts in both.
pub(crate) fn print_ratio(name: &str, figure: &Samples, floor: &Samples, aim: f64) {
    let ratio = ratio(figure, floor);
    print_aim(name, &format!("{ratio:.3} x the floor"), &format!("<= {aim} x"), ratio <= aim);
}

/// The same where nothing is aimed at.
pub(crate) fn print_comparison(name: &str, figure: &Samples, floor: &Samples) {
    println!("  {name:<34} {:.3} x the floor", ratio(figure, floor));
}

fn ratio(figure: &Samples, floor: &Samples) -> f64 {
    let ratio = |(one, floor): (&Duration, &Duration)| one.div_duration_f64(*floor);
    let mut ratios: Vec<f64> = figure.0.iter().zip(&floor.0).map(ratio).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or_default()
}

/// Prints a figure with its aim.
pub(crate) fn print_aim(name: &str, figure: &str, aim: &str, met: bool) {
    let verdict = if met { "met" } else { "NOT MET" };
    println!("  {name:<34} {figure}  (aim {aim}: {verdict})");
}
