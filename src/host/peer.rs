//! User of the process at the other end of a TCP connection within this machine, by the kernel's socket diagnostics
//! (sock_diag(7)).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Bytes of a reply: a header, what the kernel says of one socket, and no attribute.
const REPLY: usize = 1024;

/// User that owns the socket at `peer`, which is connected to `own` of this machine. The kernel answers within the call.
///
/// # Errors
/// When there is no such socket any more, or the kernel has no such diagnostics.
pub fn owner(peer: SocketAddr, own: SocketAddr) -> io::Result<u32> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkSockDiag,
    )?;
    sendto(kernel.as_raw_fd(), &request(peer, own), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut reply = [0; REPLY];
    let length = recv(kernel.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    read(reply.get(..length).unwrap_or_default())
}

fn request(peer: SocketAddr, own: SocketAddr) -> Vec<u8> {
    let (from, to) = (peer.ip().to_canonical(), own.ip().to_canonical());
    let family = if matches!(from, IpAddr::V4(_)) { AF_INET } else { AF_INET6 };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let inet = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: peer.port(),
            destination_port: own.port(),
            source_address: from,
            destination_address: to,
            interface_id: 0,
            // Any socket with these addresses: there is one.
            cookie: [0xff; 8],
        },
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(inet).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn read(reply: &[u8]) -> io::Result<u32> {
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(reply);
    match message.map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
            Ok(response.header.uid)
        }
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("the kernel answered something else")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn kernel_tells_who_owns_the_other_end_of_a_connection() {
        for listen in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let port = listener.local_addr().unwrap().port();
            let to: IpAddr = if listen.starts_with("[::1]") {
                [0, 0, 0, 0, 0, 0, 0, 1].into()
            } else {
                [127, 0, 0, 1].into()
            };
            let client = TcpStream::connect((to, port)).unwrap();
            let (served, peer) = listener.accept().unwrap();
            let own = served.local_addr().unwrap();
            let uid = nix::unistd::getuid().as_raw();
            assert_eq!(owner(peer, own).unwrap(), uid, "{listen}");
            drop(client);
        }
    }

    #[test]
    fn connection_that_is_not_there_has_no_owner() {
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(owner(nobody, nobody).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
