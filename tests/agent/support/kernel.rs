//! A kernel for a captured tree: what is written to a pool's knob changes its counters, within what
//! each NUMA node has to give.
//!
//! It stands at the door by fanotify(7): before anybody may open a counter, what was written since
//! is carried out. Knobs are kept with blanks before the number, so that a number written over them
//! can be told from the old one.

use std::fs::{File, read_to_string};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};

use super::Place;

/// What one node has of 2 MiB pages.
struct Pool {
    nr: File,
    free: File,
    surplus: File,
    compact: File,
    pages: u64,
    free_pages: u64,
    surplus_pages: u64,
    /// Pages that it can still make; more after each compaction.
    spare: u64,
    after_compaction: u64,
}

/// The running kernel.
pub(crate) struct Kernel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    counter: PathBuf,
    writes: Arc<Mutex<Vec<String>>>,
}

impl Kernel {
    /// Serves the 2 MiB pools of the tree. `spare` says for each node how many pages it can make, and
    /// how many more after it was compacted.
    pub(crate) fn serve(place: &Place, spare: &[(u64, u64)]) -> Kernel {
        let guard = Fanotify::init(
            InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC,
            EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC,
        )
        .unwrap();
        let mut pools = Vec::new();
        let mut counter = PathBuf::new();
        for (node, (spare, after_compaction)) in spare.iter().enumerate() {
            let folder = place.path(&format!("sys/devices/system/node/node{node}"));
            let of_pool = |name: &str| folder.join("hugepages/hugepages-2048kB").join(name);
            let open = |path: PathBuf| File::options().read(true).write(true).open(path).unwrap();
            let number = |name| read_to_string(of_pool(name)).unwrap().trim().parse().unwrap();
            pools.push(Pool {
                pages: number("nr_hugepages"),
                free_pages: number("free_hugepages"),
                surplus_pages: number("surplus_hugepages"),
                nr: open(of_pool("nr_hugepages")),
                free: open(of_pool("free_hugepages")),
                surplus: open(of_pool("surplus_hugepages")),
                compact: open(folder.join("compact")),
                spare: *spare,
                after_compaction: *after_compaction,
            });
            counter = of_pool("nr_hugepages");
            for name in ["nr_hugepages", "free_hugepages", "surplus_hugepages"] {
                let path = of_pool(name);
                let here = File::open("/").unwrap();
                guard
                    .mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN_PERM, here, Some(&path))
                    .unwrap();
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::<Mutex<Vec<String>>>::default();
        for pool in &mut pools {
            pool.show();
        }
        let (stopped, notes) = (stop.clone(), writes.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for event in guard.read_events().unwrap() {
                    for (node, pool) in pools.iter_mut().enumerate() {
                        pool.carry_out(node, &notes);
                    }
                    let Some(fd) = event.fd() else { continue };
                    guard.write_response(FanotifyResponse::new(fd, Response::FAN_ALLOW)).unwrap();
                }
            }
        });
        Kernel { stop, thread: Some(thread), counter, writes }
    }

    /// What was written so far, such as `node0 nr 600` and `node1 compact`.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.look();
        self.writes.lock().unwrap().clone()
    }

    /// Anybody's look has what was written carried out.
    fn look(&self) {
        drop(File::open(&self.counter));
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.look();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Pool {
    fn carry_out(&mut self, node: usize, notes: &Mutex<Vec<String>>) {
        if !text(&mut self.compact).is_empty() {
            self.compact.set_len(0).unwrap();
            self.spare += std::mem::take(&mut self.after_compaction);
            notes.lock().unwrap().push(format!("node{node} compact"));
        }
        let knob = text(&mut self.nr);
        if knob.starts_with(' ') {
            return;
        }
        let wanted: u64 = knob.split_whitespace().next().unwrap().parse().unwrap();
        notes.lock().unwrap().push(format!("node{node} nr {wanted}"));
        self.resize(wanted);
        self.show();
    }

    /// What mm/hugetlb.c does with a new count of persistent pages.
    fn resize(&mut self, wanted: u64) {
        let persistent = self.pages - self.surplus_pages;
        if wanted > persistent {
            let kept = self.surplus_pages.min(wanted - persistent);
            self.surplus_pages -= kept;
            let made = (wanted - persistent - kept).min(self.spare);
            self.spare -= made;
            self.pages += made;
            self.free_pages += made;
        } else {
            let given = (persistent - wanted).min(self.free_pages);
            self.spare += given;
            self.pages -= given;
            self.free_pages -= given;
            self.surplus_pages += persistent - wanted - given;
        }
    }

    fn show(&mut self) {
        replace(&mut self.nr, &format!("{:>16}\n", self.pages));
        replace(&mut self.free, &format!("{}\n", self.free_pages));
        replace(&mut self.surplus, &format!("{}\n", self.surplus_pages));
    }
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn replace(file: &mut File, text: &str) {
    file.rewind().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_len(text.len() as u64).unwrap();
}
