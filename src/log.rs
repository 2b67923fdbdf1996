//! The log's way out: a bounded queue, and a thread of its own that writes.
//!
//! Whoever takes the log may hang: a journal whose socket is full, a pipe that nobody reads. Then the lines wait, and
//! beyond the bound they are lost and counted; what logs never waits.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};

/// Target of the events of the audit log, which is written whatever level is set.
pub const AUDIT: &str = "vhost_agent::audit";
/// Bytes of lines that may wait; about a minute of the busiest node's.
const MOST_BYTES: usize = 4 << 20;
/// What a line takes beside its bytes.
const OVERHEAD: usize = 64;
/// It formats a line of its own at the most.
const STACK: usize = 256 << 10;
/// Between two lines about lost ones.
const TOLD_AGAIN: Duration = Duration::from_secs(1);

static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines that were lost since the process runs.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

enum Item {
    Line(Vec<u8>),
    Flush(Sender<()>),
}

/// The queue; clones are one. As a writer it takes one line with each write.
#[derive(Debug, Clone)]
pub struct LogQueue {
    items: Sender<Item>,
    bytes: Arc<AtomicUsize>,
}

impl LogQueue {
    /// Starts the thread, which gives each line to `sink`; that tells whether it was taken.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn start(sink: impl FnMut(&[u8]) -> bool + Send + 'static) -> io::Result<LogQueue> {
        let (items, queue) = channel();
        let bytes = Arc::new(AtomicUsize::new(0));
        let waiting = bytes.clone();
        // Signals are for the threads that wait for them: a process that is PID 1 ignores those that nobody does.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let thread = thread::Builder::new().name("log".to_string()).stack_size(STACK);
        let started = thread.spawn(move || write_all(&queue, &waiting, sink));
        mask.thread_set_mask()?;
        started.map(|_| LogQueue { items, bytes })
    }

    /// Queues a line, unless too many wait.
    pub fn put(&self, line: Vec<u8>) {
        let size = line.len() + OVERHEAD;
        let fits = self.bytes.fetch_add(size, Ordering::Relaxed) + size <= MOST_BYTES;
        if !fits || self.items.send(Item::Line(line)).is_err() {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines of before are written, but not for longer than that.
    pub fn flush(&self, within: Duration) {
        let (done, written) = channel();
        if self.items.send(Item::Flush(done)).is_ok() {
            // Who takes the log may hang.
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
    let (mut known, mut told_at) = (lost(), None::<Instant>);
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
        if now > known && told_at.is_none_or(|at| at.elapsed() >= TOLD_AGAIN) {
            tracing::warn!(
                lost = now - known,
                "lines of the log were lost: nobody took them in time"
            );
            (known, told_at) = (now, Some(Instant::now()));
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
