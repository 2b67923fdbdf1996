//! The built-in target beside `qemu-storage-daemon`, on the same file and through the same frontend.
//!
//! ```sh
//! cargo bench --bench device            # the file in the temporary folder
//! cargo bench --bench device -- /data   # in another one
//! ```
//!
//! Needs Debian's qemu-system-common. Each figure is the better of its rounds, which take turns, so
//! that what else the machine does hits both alike. The file is opened past the page cache by both.
#![allow(clippy::disallowed_methods)]
#![allow(unsafe_code)]
#![allow(dead_code)] // the tests use all of the guest

#[path = "../../tests/agent/device/guest.rs"]
mod guest;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest::{Ask, DATA, Guest, IN, OK, OUT};

const BYTES: u64 = 1 << 30;
const ROUND: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 3;
/// Size of a request, requests at a time.
const LOADS: [(u32, u16); 4] = [(4096, 1), (4096, 32), (131_072, 1), (131_072, 32)];

/// A daemon that serves the file; ends with its value.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ours(dir: &Path, file: &Path) -> Daemon {
    let rpc = dir.join("rpc.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-agent"));
    command.arg("target").arg("-r").arg(&rpc).arg("-S").arg(dir).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let daemon = Daemon { child, socket: dir.join("ours") };
    until("the target does not start", || UnixStream::connect(&rpc).is_ok());
    let mut stream = UnixStream::connect(&rpc).unwrap();
    let file = serde_json::json!({"name": "d", "filename": file, "block_size": 512});
    for (method, params) in [
        ("bdev_aio_create", file),
        ("vhost_create_blk_controller", serde_json::json!({"ctrlr": "ours", "dev_name": "d"})),
    ] {
        let call =
            serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        stream.write_all(call.to_string().as_bytes()).unwrap();
    }
    until("the controller is not there", || daemon.socket.exists());
    daemon
}

fn theirs(dir: &Path, file: &Path, aio: &str) -> Daemon {
    let socket = dir.join(format!("qsd-{aio}"));
    let file = format!(
        "driver=file,node-name=f,filename={},cache.direct=on,discard=unmap,aio={aio}",
        file.display()
    );
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=4,addr.type=unix,addr.path={}",
        socket.display()
    );
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--blockdev", &file, "--export", &export]);
    let child = command.spawn().expect("install qemu-system-common");
    let daemon = Daemon { child, socket };
    until("qemu-storage-daemon does not start", || daemon.socket.exists());
    daemon
}

/// Requests a second.
fn measure(guest: &mut Guest, write: bool, length: u32, depth: u16) -> f64 {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut ask = |slot: u16| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let place = random % (BYTES / u64::from(length));
        Ask {
            kind: if write { OUT } else { IN },
            sector: place * u64::from(length) / 512,
            data: DATA + u64::from(slot) * u64::from(length),
            length,
        }
    };
    let begun = Instant::now();
    let before = guest.offered(0);
    for slot in 0..depth {
        guest.offer(0, slot, ask(slot));
    }
    guest.kick(0, before);
    let mut done = 0u64;
    while begun.elapsed() < ROUND {
        let before = guest.offered(0);
        for (slot, status) in guest.wait(0) {
            assert_eq!(status, OK);
            done += 1;
            guest.offer(0, slot, ask(slot));
        }
        guest.kick(0, before);
    }
    let figure = done as f64 / begun.elapsed().as_secs_f64();
    guest.finish(0);
    figure
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(folder).unwrap();
    let file = dir.path().join("disk.img");
    let mut image = std::fs::File::create(&file).unwrap();
    let part = vec![0x5a; 1 << 20];
    (0..BYTES >> 20).for_each(|_| image.write_all(&part).unwrap());
    image.sync_all().unwrap();
    println!(
        "{:>6} {:>6} {:>5} {:>10} {:>12} {:>12} {:>7} {:>7}",
        "", "bytes", "depth", "ours", "qsd threads", "qsd native", "ratio", "ratio"
    );
    for write in [false, true] {
        for (length, depth) in LOADS {
            let mut best = [0f64; 3];
            for _ in 0..ROUNDS {
                for (nth, best) in best.iter_mut().enumerate() {
                    let daemon = match nth {
                        0 => ours(dir.path(), &file),
                        1 => theirs(dir.path(), &file, "threads"),
                        _ => theirs(dir.path(), &file, "native"),
                    };
                    let mut guest = Guest::new(1);
                    guest.connect(&daemon.socket);
                    *best = best.max(measure(&mut guest, write, length, depth));
                }
            }
            let [ours, threads, native] = best;
            println!(
                "{:>6} {length:>6} {depth:>5} {ours:>10.0} {threads:>12.0} {native:>12.0} {:>7.2} {:>7.2}",
                if write { "write" } else { "read" },
                ours / threads,
                ours / native,
            );
        }
    }
}
