//! Notification of a connected guest that its disk has another size.
//!
//! The frontend hands over a second socket for messages from the device. The vhost crate receives that socket, but
//! cannot send on it the one message that a disk needs. So the descriptor is copied while the frontend's message is
//! still pending in the first socket, and the device's message is written here. No reply to it is requested: the
//! frontend's next request comes in on the first socket.

use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recv, recvmsg};
use vhost::vhost_user::message::{BackendReq, FrontendReq};

/// Size in bytes of a message's header: request, flags, size.
const HEADER: usize = 12;
const VERSION: u32 = 1;

/// Copy of the second socket, if the message pending in `socket` brings one; `None` otherwise.
pub(super) fn peek(socket: BorrowedFd<'_>) -> Option<UnixStream> {
    let mut header = [0; HEADER];
    let got = recv(socket.as_raw_fd(), &mut header, MsgFlags::MSG_PEEK).ok()?;
    let request = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
    if got < HEADER || request != u32::from(FrontendReq::SET_BACKEND_REQ_FD) {
        return None;
    }
    let mut space = cmsg_space!([std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut header)];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
    let mut sockets = Vec::new();
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made these descriptors for this call; nobody else has them.
            #[allow(unsafe_code)]
            let owned = descriptors.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
            sockets.extend(owned);
        }
    }
    sockets.pop().map(UnixStream::from)
}

/// Sends the message that the configuration space has changed, on the second socket `socket`.
///
/// # Errors
/// When the frontend has closed the socket, or does not read it.
pub(super) fn config_changed(socket: &UnixStream) -> std::io::Result<()> {
    let mut message = Vec::with_capacity(HEADER);
    for word in [u32::from(BackendReq::CONFIG_CHANGE_MSG), VERSION, 0] {
        message.extend(word.to_ne_bytes());
    }
    let mut socket = socket;
    socket.set_nonblocking(true)?;
    socket.write_all(&message)
}
