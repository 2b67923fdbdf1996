//! Log output: a bounded queue of lines, and a thread that writes them to the sink.
//!
//! A log sink may hang: a journal whose socket is full, a pipe that nobody reads. Lines then wait in the queue, and
//! beyond the bound they are dropped and counted; code that logs never waits.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};

/// Tracing target of the audit log, which is written at any log level.
pub const AUDIT: &str = "vhost_agent::audit";
/// Most bytes that the queue holds: about one minute of lines on the busiest node.
const MOST_BYTES: usize = 4 << 20;
/// Bytes that count for a queued line in addition to its text.
const OVERHEAD: usize = 64;
/// Stack of the writer thread, in bytes. Formatting its own warning about lost lines takes the most of it.
const STACK: usize = 256 << 10;
/// Shortest interval between two warnings about lost lines.
const REPEAT_INTERVAL: Duration = Duration::from_secs(1);

static LOST: AtomicU64 = AtomicU64::new(0);

/// Number of lines lost since the process started.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

enum Item {
    Line(Vec<u8>),
    Flush(Sender<()>),
}

/// Queue of log lines; clones share it. As [`Write`], it takes the bytes of each `write` as one line.
#[derive(Debug, Clone)]
pub struct LogQueue {
    items: Sender<Item>,
    bytes: Arc<AtomicUsize>,
}

impl LogQueue {
    /// Starts the writer thread, which passes each line to `sink`; `sink` returns whether it took the line.
    ///
    /// # Errors
    /// When the kernel grants no thread.
    pub fn start(sink: impl FnMut(&[u8]) -> bool + Send + 'static) -> io::Result<LogQueue> {
        let (items, queue) = channel();
        let bytes = Arc::new(AtomicUsize::new(0));
        let waiting = bytes.clone();
        // Signals are left to the threads that wait for them: as PID 1, a process ignores those that nobody waits for.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let thread = thread::Builder::new().name("log".to_string()).stack_size(STACK);
        let started = thread.spawn(move || write_all(&queue, &waiting, sink));
        mask.thread_set_mask()?;
        started.map(|_| LogQueue { items, bytes })
    }

    /// Queues a line, or drops it when the queue is full.
    pub fn put(&self, line: Vec<u8>) {
        let size = line.len() + OVERHEAD;
        let fits = self.bytes.fetch_add(size, Ordering::Relaxed) + size <= MOST_BYTES;
        if !fits || self.items.send(Item::Line(line)).is_err() {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all earlier lines are written, for at most `within`.
    pub fn flush(&self, within: Duration) {
        let (done, written) = channel();
        if self.items.send(Item::Flush(done)).is_ok() {
            // A timeout is no error here: the log sink may hang.
            let _ = written.recv_timeout(within);
        }
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(queue: &Receiver<Item>, waiting: &AtomicUsize, mut sink: impl FnMut(&[u8]) -> bool) {
    let (mut known, mut warned_at) = (lost(), None::<Instant>);
    while let Ok(item) = queue.recv() {
        match item {
            Item::Line(line) => {
                if !sink(&line) {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
                waiting.fetch_sub(line.len() + OVERHEAD, Ordering::Relaxed);
            }
            Item::Flush(done) => drop(done.send(())),
        }
        let now = lost();
        if now > known && warned_at.is_none_or(|at| at.elapsed() >= REPEAT_INTERVAL) {
            tracing::warn!(
                lost = now - known,
                "{} log lines were dropped: the journal, file or terminal did not accept them in time",
                now - known
            );
            (known, warned_at) = (now, Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn who_logs_does_not_wait_for_who_takes_the_log() {
        let (go_on, hangs) = channel::<()>();
        let written = Arc::new(Mutex::new(Vec::new()));
        let seen = written.clone();
        let queue = LogQueue::start(move |line| {
            // Until the test lets it go.
            let _ = hangs.recv();
            seen.lock().unwrap().push(line.to_vec());
            true
        })
        .unwrap();
        let before = lost();
        let line = vec![b'x'; 1024];
        let many = 2 * MOST_BYTES / line.len();
        for _ in 0..many {
            queue.put(line.clone());
        }
        queue.flush(Duration::from_millis(10));
        let kept = many - usize::try_from(lost() - before).unwrap();
        assert!((MOST_BYTES / 2048..MOST_BYTES / 1024).contains(&kept), "{kept}");
        drop(go_on);
        queue.flush(Duration::from_secs(30));
        assert_eq!(written.lock().unwrap().len(), kept);
        queue.clone().write_all(b"again").unwrap();
        queue.flush(Duration::from_secs(30));
        assert_eq!(written.lock().unwrap().last().unwrap(), b"again");
    }
}
