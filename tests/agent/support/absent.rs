//! An address at which nobody listens until somebody does.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// It is taken; who connects is refused.
pub(crate) struct Absent(TcpSocket);

impl Absent {
    /// Takes an address.
    pub(crate) fn new() -> Absent {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Absent(socket)
    }

    /// That address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Listens from now on.
    pub(crate) fn listens(self) -> TcpListener {
        self.0.listen(64).unwrap()
    }
}
