//! Progress of a pull as lines of text: each change of a layer's state, and at most once a second the bytes of all
//! layers.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Minimum interval between two lines with bytes.
const PAUSE: Duration = Duration::from_secs(1);
/// Upper bound on the layers tracked, far more than an image has.
const MOST_LAYERS: usize = 1024;

/// Progress reported so far.
#[derive(Debug, Default)]
pub(super) struct PullProgress {
    layers: BTreeMap<String, Layer>,
    bytes_reported: Option<Instant>,
}

#[derive(Debug, Default)]
struct Layer {
    state: String,
    current: u64,
    total: u64,
}

impl PullProgress {
    /// Processes one message of the engine: the id of the layer, its state, and in `bytes` the bytes done and the
    /// total. Returns the lines to publish, if any, at the time `now`.
    pub(super) fn take(
        &mut self,
        layer: Option<String>,
        state: String,
        bytes: Option<(u64, u64)>,
        now: Instant,
    ) -> Vec<String> {
        let Some(id) = layer else { return vec![state] };
        if self.layers.len() >= MOST_LAYERS && !self.layers.contains_key(&id) {
            return Vec::new();
        }
        let mut lines = Vec::new();
        let layer = self.layers.entry(id.clone()).or_default();
        if layer.state != state {
            lines.push(format!("{id}: {state}"));
            layer.state.clone_from(&state);
        }
        // Only downloaded bytes count: the engine counts the same bytes again while it unpacks a layer.
        match bytes {
            Some((current, total)) if state == "Downloading" => {
                (layer.current, layer.total) = (current, total.max(current));
            }
            _ if state == "Download complete" => layer.current = layer.total,
            _ => return lines,
        }
        if self.bytes_reported.is_none_or(|at| now.duration_since(at) >= PAUSE) {
            self.bytes_reported = Some(now);
            let sum = |of: fn(&Layer) -> u64| self.layers.values().map(of).sum::<u64>();
            let (current, total) = (sum(|layer| layer.current), sum(|layer| layer.total));
            lines.push(format!("{} of {} MiB downloaded", mib(current), mib(total)));
        }
        lines
    }
}

/// Formats `bytes` as MiB with one decimal.
fn mib(bytes: u64) -> String {
    format!("{}.{}", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_reported_on_change_and_bytes_once_a_second() {
        let began = Instant::now();
        let mut progress = PullProgress::default();
        let mut take = |layer: &str, state: &str, bytes, ms| {
            let now = began + Duration::from_millis(ms);
            progress.take(Some(layer.to_string()), state.to_string(), bytes, now)
        };
        const MIB: u64 = 1 << 20;
        assert_eq!(take("a", "Pulling fs layer", None, 0), ["a: Pulling fs layer"]);
        assert_eq!(
            take("a", "Downloading", Some((MIB, 4 * MIB)), 0),
            ["a: Downloading", "1.0 of 4.0 MiB downloaded"]
        );
        assert_eq!(take("a", "Downloading", Some((2 * MIB, 4 * MIB)), 900), [""; 0]);
        assert_eq!(take("b", "Downloading", Some((MIB / 2, 8 * MIB)), 999), ["b: Downloading"]);
        assert_eq!(
            take("a", "Downloading", Some((3 * MIB, 4 * MIB)), 1000),
            ["3.5 of 12.0 MiB downloaded"]
        );
        assert_eq!(take("a", "Download complete", None, 1500), ["a: Download complete"]);
        assert_eq!(take("a", "Extracting", Some((MIB, 4 * MIB)), 3000), ["a: Extracting"]);
        assert_eq!(
            take("b", "Downloading", Some((8 * MIB, 8 * MIB)), 4000),
            ["12.0 of 12.0 MiB downloaded"]
        );
        let word = progress.take(None, "Digest: sha256:1".into(), None, began);
        assert_eq!(word, ["Digest: sha256:1"]);
    }
}
