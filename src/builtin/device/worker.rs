//! Worker thread that serves some rings of one VM.
//!
//! In each round the worker drains the available rings, submits the requests to the kernel in one call, answers
//! completed ones and interrupts the guest at most once for each ring. Without work it goes on polling for a short
//! time, and then sleeps. That time grows while short sleeps follow, and shrinks while long ones do ([`PollTime`]).

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;
use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::super::cores::Cores;
use super::disk::ControllerDisk;
use super::guest::GuestMemory;
use super::log::RingLog;
use super::ring::{Ring, interrupt};
use super::service::DiskService;

const COMMAND: u64 = 0;
const COMPLETION: u64 = 1;
const FIRST_RING: u64 = 2;

/// Command of the session to a worker.
enum WorkerCommand {
    Start(Box<Ring>),
    /// Stop the ring with this index. Once all its requests are answered, the reply is the index of the next entry of
    /// its available ring.
    Stop(u16, SyncSender<u16>),
    /// Use this memory of the guest from now on; the reply confirms it.
    Memory(Arc<GuestMemory>, SyncSender<()>),
    /// Mark what the ring with this index writes in this log from now on; the reply confirms it.
    Log(u16, RingLog, SyncSender<()>),
    End,
}

/// Handle by which a session controls a worker thread.
pub(super) struct WorkerHandle {
    commands: Sender<WorkerCommand>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts the thread `name` for `disk`, on the core with the index in `pin` if that is set.
    ///
    /// # Errors
    /// When no descriptors or threads are left.
    pub(super) fn start(
        disk: Arc<ControllerDisk>,
        name: String,
        pin: Option<(Cores, usize)>,
    ) -> std::io::Result<Self> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let completion = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        for (event, token) in [(&wake, COMMAND), (&completion, COMPLETION)] {
            watch(&epoll, event.as_raw_fd(), token)?;
        }
        let (commands, receiver) = channel();
        let events = completion.try_clone()?;
        let wakes = wake.try_clone()?;
        let run = move || {
            if let Some((cores, nth)) = pin {
                cores.pin(nth);
            }
            let service = DiskService::new(disk, events);
            let poll_time = PollTime::default();
            let rings = Vec::new();
            let stops = Vec::new();
            Loop { service, epoll, receiver, wakes, completion, rings, stops, poll_time }.run();
        };
        let thread = std::thread::Builder::new().name(name).stack_size(512 << 10).spawn(run)?;
        Ok(Self { commands, wake, thread: Some(thread) })
    }

    fn send(&self, command: WorkerCommand) {
        // The send does not fail: a worker ends only on command.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }

    pub(super) fn start_ring(&self, ring: Ring) {
        self.send(WorkerCommand::Start(Box::new(ring)));
    }

    /// Stops the ring `index` and blocks until its requests are answered. Returns the index of the next entry of its
    /// available ring; `None` if the worker has no such ring or has ended.
    pub(super) fn stop_ring(&self, index: u16) -> Option<u16> {
        let (reply, answer) = sync_channel(1);
        self.send(WorkerCommand::Stop(index, reply));
        answer.recv().ok()
    }

    /// Replaces the guest memory that the rings use, and waits until that is done.
    pub(super) fn replace_memory(&self, guest: &Arc<GuestMemory>) {
        let (reply, answer) = sync_channel(1);
        self.send(WorkerCommand::Memory(Arc::clone(guest), reply));
        let _ = answer.recv();
    }

    /// Replaces the log of the ring `index`, and waits until that is done. Requests in flight are marked in `log`.
    pub(super) fn replace_log(&self, index: u16, log: RingLog) {
        let (reply, answer) = sync_channel(1);
        self.send(WorkerCommand::Log(index, log, reply));
        let _ = answer.recv();
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.send(WorkerCommand::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(epoll: &Epoll, fd: i32, token: u64) -> std::io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
}

/// Time for which an idle worker polls before it sleeps. Sleep and wake-up take tens of microseconds; polling occupies
/// a core.
#[derive(Debug, Default)]
struct PollTime(Duration);

impl PollTime {
    const LEAST: Duration = Duration::from_micros(4);
    const MOST: Duration = Duration::from_micros(50);

    /// Adapts to a sleep that lasted `time`: doubles the polling time after a short sleep, halves it after a long one.
    fn slept(&mut self, time: Duration) {
        self.0 = if time < Self::MOST {
            (self.0 * 2).clamp(Self::LEAST, Self::MOST)
        } else {
            self.0 / 2
        };
    }
}

struct Loop {
    service: DiskService,
    epoll: Epoll,
    receiver: Receiver<WorkerCommand>,
    wakes: EventFd,
    completion: EventFd,
    rings: Vec<Ring>,
    stops: Vec<(u16, SyncSender<u16>)>,
    poll_time: PollTime,
}

impl Loop {
    fn run(mut self) {
        let mut idle_since = None;
        while self.obey() {
            if self.service.turn(&mut self.rings) {
                idle_since = None;
                continue;
            }
            self.stop_what_is_done();
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() < self.poll_time.0 {
                std::hint::spin_loop();
                continue;
            }
            self.sleep();
            idle_since = None;
        }
    }

    /// Executes the session's commands; `false` if the worker is to end.
    fn obey(&mut self) -> bool {
        loop {
            match self.receiver.try_recv() {
                Ok(WorkerCommand::Start(ring)) => self.begin(*ring),
                Ok(WorkerCommand::Stop(index, reply)) => {
                    let ring = self.rings.iter_mut().find(|ring| ring.index == index);
                    if let Some(ring) = ring {
                        ring.state.stopping = true;
                        self.stops.push((index, reply));
                    }
                }
                Ok(WorkerCommand::Memory(guest, reply)) => {
                    self.rings.iter_mut().for_each(|ring| ring.guest = Arc::clone(&guest));
                    let _ = reply.send(());
                }
                Ok(WorkerCommand::Log(index, log, reply)) => {
                    let ring = self.rings.iter_mut().find(|ring| ring.index == index);
                    ring.into_iter().for_each(|ring| ring.log = log.clone());
                    let _ = reply.send(());
                }
                Ok(WorkerCommand::End) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn begin(&mut self, ring: Ring) {
        let token = FIRST_RING + u64::from(ring.index);
        if let Some(kick) = ring.kick_fd()
            && let Err(error) = watch(&self.epoll, kick, token)
        {
            tracing::error!(
                ring = ring.index, %error,
                "ring {}: the guest's notifications (kicks) cannot be watched, so its requests may wait: {error}",
                ring.index
            );
        }
        // The guest is interrupted at the start: answers of an earlier process may never have been announced.
        interrupt(&ring.call);
        self.rings.push(ring);
    }

    fn stop_what_is_done(&mut self) {
        let (rings, epoll) = (&mut self.rings, &self.epoll);
        self.stops.retain(|(index, reply)| {
            let done = |ring: &Ring| ring.index == *index && ring.state.outstanding == 0;
            let Some(place) = rings.iter().position(done) else { return true };
            let ring = rings.swap_remove(place);
            if let Some(kick) = ring.kick_fd() {
                let _ = epoll.ctl(ControlOperation::Delete, kick, EpollEvent::default());
            }
            let _ = reply.send(ring.queue.next_avail());
            false
        });
    }

    /// Sleeps until a kick, a completion or a command. Returns at once if a ring has new requests or requests have
    /// completed.
    fn sleep(&mut self) {
        let more = self.rings.iter_mut().any(Ring::sleep);
        if !more && !self.service.has_completions() {
            let mut events = [EpollEvent::default(); 20];
            let asleep = Instant::now();
            let count = self.epoll.wait(-1, &mut events).unwrap_or(0);
            self.poll_time.slept(asleep.elapsed());
            events[..count].iter().for_each(|event| self.quiet(event.data()));
        }
        self.rings.iter_mut().for_each(Ring::wake);
    }

    /// Consumes the event with the token `token`, which woke the thread.
    fn quiet(&self, token: u64) {
        match token {
            COMMAND => drop(self.wakes.read()),
            COMPLETION => drop(self.completion.read()),
            token => {
                let of_token = |ring: &&Ring| FIRST_RING + u64::from(ring.index) == token;
                if let Some(ring) = self.rings.iter().find(of_token) {
                    ring.take_kick();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_time_grows_while_it_pays_and_has_a_bound() {
        let mut poll_time = PollTime::default();
        (0..20).for_each(|_| poll_time.slept(Duration::from_micros(10)));
        assert_eq!(poll_time.0, PollTime::MOST);
        (0..20).for_each(|_| poll_time.slept(Duration::from_millis(1)));
        assert!(poll_time.0 < Duration::from_micros(1));
    }
}
