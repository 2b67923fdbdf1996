//! Owner of the other end of a TCP connection within this machine: the socket's user, by the kernel's socket
//! diagnostics (sock_diag(7)), and whether its process is in a container, by procfs.

use std::collections::HashSet;
use std::fs::{self, read_link};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::cpu_users::is_machine;
use super::files::{entries, read_text};

/// Buffer size for a reply in bytes: a header and the kernel's record of one socket, without attributes.
const REPLY: usize = 1024;
/// Age after which the machine's addresses are read again.
const YOUNG: Duration = Duration::from_secs(10);

/// Cached addresses of this machine: it may have hundreds of interfaces, and a connection must not wait until all are
/// listed.
#[derive(Debug, Clone, Default)]
pub struct OwnAddresses(Arc<Mutex<Looked>>);

#[derive(Debug, Default)]
struct Looked {
    addresses: HashSet<IpAddr>,
    at: Option<Instant>,
}

impl OwnAddresses {
    /// Cache filled with the current addresses.
    pub fn look() -> OwnAddresses {
        let own = OwnAddresses::default();
        own.refresh();
        own
    }

    /// `true` if `address` is this machine's. A list older than 10 s still answers this call, and is refreshed in
    /// the background for later ones.
    pub fn have(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if address.is_loopback() {
            return true;
        }
        let mut looked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.at.is_none_or(|at| at.elapsed() > YOUNG) {
            looked.at = Some(Instant::now());
            let own = self.clone();
            let _ = std::thread::Builder::new().spawn(move || own.refresh());
        }
        looked.addresses.contains(&address)
    }

    fn refresh(&self) {
        let Ok(all) = getifaddrs() else { return };
        let address = |it: InterfaceAddress| {
            let address = it.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        };
        let addresses = all.filter_map(address).collect();
        let at = Some(Instant::now());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Looked { addresses, at };
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOwner {
    /// User of the process that created the socket.
    pub uid: u32,
    /// Inode number of the socket, which `/proc/PID/fd` shows for each process that has it.
    pub inode: u32,
}

/// Owner of the socket with the address `peer`, connected to `own` of this machine; `None` if no process has the socket
/// any more. The kernel answers without waiting.
///
/// The answer must be about exactly that connection, and a process must have the socket. Otherwise the kernel reports a
/// listener at the same port, which may be another user's, or reports a socket that its process has closed as root's.
///
/// # Errors
/// When the connection does not exist any more, or the kernel lacks these diagnostics.
pub fn owner(peer: SocketAddr, own: SocketAddr) -> io::Result<Option<SocketOwner>> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkSockDiag,
    )?;
    sendto(kernel.as_raw_fd(), &request(peer, own), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut reply = [0; REPLY];
    let length = recv(kernel.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    read(reply.get(..length).unwrap_or_default(), peer, own)
}

/// Sockets among `inodes` that a process of root in the agent's PID namespace has (pid_namespaces(7)), and no process
/// in a container: root of a container is not root of the node. The agent and virtual machines do not count as owners:
/// a descriptor can be passed on, and both take messages from targets.
///
/// Reads the descriptors of these processes and of those in containers, in some 10 ms on a node with many. Always reads
/// the real `/proc`, because the sockets are this machine's own.
pub fn held_here(inodes: &HashSet<u32>) -> HashSet<u32> {
    let Ok(own) = read_link("/proc/self/ns/pid") else { return HashSet::new() };
    let (mut here, mut contained) = (HashSet::new(), HashSet::new());
    for (pid, process) in entries(Path::new("/proc")).unwrap_or_default() {
        let Ok(pid) = pid.parse::<u32>() else { continue };
        let is_contained = read_link(process.join("ns/pid")).is_ok_and(|it| it != own);
        let is_root = || fs::metadata(&process).is_ok_and(|it| it.uid() == 0);
        let passes_on = || {
            let name = read_text(&process.join("comm"));
            pid == std::process::id() || name.is_ok_and(|name| is_machine(&name))
        };
        if is_contained {
            contained.extend(sockets_of(&process));
        } else if is_root() && !passes_on() {
            here.extend(sockets_of(&process).filter(|inode| inodes.contains(inode)));
        }
    }
    here.retain(|inode| !contained.contains(inode));
    here
}

/// Inodes of the sockets of the process with the folder `process`.
fn sockets_of(process: &Path) -> impl Iterator<Item = u32> {
    let files = entries(&process.join("fd")).unwrap_or_default();
    files.into_iter().filter_map(|(_, file)| {
        let to = read_link(file).ok()?;
        to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// IP and port of `address`: a mapped IPv4 address becomes IPv4, and the IPv6 flow and scope are dropped.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn request(peer: SocketAddr, own: SocketAddr) -> Vec<u8> {
    let (from, to) = (plain(peer).ip(), plain(own).ip());
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
            // Value for "any cookie": there is only one socket with these two addresses.
            cookie: [0xff; 8],
        },
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(inet).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn read(reply: &[u8], peer: SocketAddr, own: SocketAddr) -> io::Result<Option<SocketOwner>> {
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(reply);
    match message.map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
            let InetResponseHeader { socket_id: id, inode, uid, .. } = response.header;
            let from = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
            let to = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
            if from != plain(peer) || to != plain(own) {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "the kernel has no such socket",
                ));
            }
            Ok((inode != 0).then_some(SocketOwner { uid, inode }))
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
    fn the_kernel_names_the_owner_of_a_connections_peer() {
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
            let owner = owner(peer, own).unwrap().unwrap();
            assert_eq!(owner.uid, uid, "{listen}");
            let held = held_here(&[owner.inode].into());
            assert!(
                held.is_empty(),
                "{listen}: what this process has, others may have passed to it"
            );
            drop(client);
        }
    }

    #[test]
    fn connection_that_is_not_there_has_no_owner() {
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(owner(nobody, nobody).unwrap_err().kind(), io::ErrorKind::NotFound);
        // A listener at the same port is not the socket that was asked for.
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], port));
        let own = SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(owner(elsewhere, own).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn socket_that_its_process_has_closed_is_nobodys() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(client);
        let (served, peer) = listener.accept().unwrap();
        assert_eq!(owner(peer, served.local_addr().unwrap()).unwrap(), None);
    }

    #[test]
    fn addresses_of_this_machine_are_known() {
        let own = OwnAddresses::look();
        for address in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert!(own.have(address.parse().unwrap()), "{address}");
        }
        for address in ["192.0.2.1", "2001:db8::1"] {
            assert!(!own.have(address.parse().unwrap()), "{address}");
        }
    }
}
