//! A kernel that takes its time: one file of the tree is a pipe, and who reads it waits until the
//! test lets it pass.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{Place, until};

/// The file that is a pipe.
pub(crate) struct Gate {
    path: PathBuf,
    pipe: PathBuf,
    content: Vec<u8>,
    /// Held open while a reader waits.
    held: Option<File>,
}

impl Gate {
    /// Puts a gate where a look at the pools of a tree with NUMA nodes comes by.
    pub(crate) fn before_pools(place: &Place) -> Gate {
        // The counters themselves are opened once and for all.
        let path = place.path("sys/devices/system/node/has_cpu");
        let content = fs::read(&path).unwrap();
        let pipe = place.folder().join("gate");
        mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
        // A link under the other name, so that the pipe can still be reached when the file is back.
        let link = place.folder().join("gate.link");
        fs::hard_link(&pipe, &link).unwrap();
        fs::rename(link, &path).unwrap();
        Gate { path, pipe, content, held: None }
    }

    /// Waits until somebody stands before the gate, and keeps it there.
    pub(crate) async fn wait(&mut self) {
        let open = async || {
            // Refused (ENXIO) as long as nobody reads.
            let flags = OFlag::O_NONBLOCK.bits();
            File::options().write(true).custom_flags(flags).open(&self.pipe).ok()
        };
        let held = until("somebody reads the counter", open).await;
        self.held = Some(held);
    }

    /// Lets the one that waits pass; the next one will wait again.
    pub(crate) async fn pass(&mut self) {
        if self.held.is_none() {
            self.wait().await;
        }
        if let Some(mut held) = self.held.take() {
            held.write_all(&self.content).unwrap();
        }
    }

    /// Takes the gate away and lets the one that waits pass.
    pub(crate) async fn open(mut self) {
        if self.held.is_none() {
            self.wait().await;
        }
        let file = self.pipe.with_extension("file");
        fs::write(&file, &self.content).unwrap();
        fs::rename(file, &self.path).unwrap();
        self.pass().await;
    }
}
