//! Connection for one forwarded request: its body streamed, the spelling of its headers kept.
//!
//! No connection is kept for a next request. One that the other side closes at the wrong moment would leave open
//! whether a request was received, and so could not be sent again; and a server with a few threads, such as CherryPy's,
//! loses one of them to each idle connection. So nothing is ever sent twice.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::name::Name;

/// Limit of an answer's head, and of one read of its body, in bytes.
const BUFFER: usize = 64 * 1024;

/// Failure to connect. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// Connection refused, no such host, no route.
    #[error(transparent)]
    Refused(#[from] io::Error),
    #[error("no connection within {0:?}")]
    Late(Duration),
    #[error("it leads back to this agent itself")]
    Loop,
    #[error("the connection was closed at once")]
    Closed(#[source] hyper::Error),
}

/// Connection for one request.
#[derive(Debug)]
pub(super) struct LegacyConnection<B> {
    sender: SendRequest<B>,
    held: Held,
}

/// Keeps a connection open; closed on drop, whatever is still in transit.
#[derive(Debug)]
pub(super) struct Held(JoinHandle<()>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<B> LegacyConnection<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Connects. `own` is this process's own listening address.
    ///
    /// # Errors
    /// [`OpenError`], when there is no connection `within` that time.
    pub(super) async fn open(
        to: &Name,
        own: SocketAddr,
        within: Duration,
    ) -> Result<LegacyConnection<B>, OpenError> {
        let connect = async { TcpStream::connect(&*to.addresses().await?).await };
        let stream = timeout(within, connect).await.map_err(|_| OpenError::Late(within))??;
        if leads_back(stream.local_addr()?, stream.peer_addr()?, own) {
            return Err(OpenError::Loop);
        }
        let _ = stream.set_nodelay(true);
        let mut builder = Builder::new();
        builder.preserve_header_case(true).max_buf_size(BUFFER);
        let made = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(OpenError::Closed)?;
        let running = tokio::spawn(async move {
            // The sender and the reader get to know how it ends.
            let _ = connection.await;
        });
        Ok(LegacyConnection { sender, held: Held(running) })
    }

    /// Sends the request and waits for the head of the answer, however long that takes; its body comes as long as the
    /// connection is kept.
    ///
    /// # Errors
    /// When the connection broke before there was a head. The request may have been received.
    pub(super) async fn ask(
        mut self,
        request: Request<B>,
    ) -> Result<(Response<Incoming>, Held), hyper::Error> {
        let response = self.sender.send_request(request).await?;
        Ok((response, self.held))
    }
}

/// `true` if a connection ends where this process listens: it comes from the machine's own address that it goes to, or
/// from one loopback address to another, for to 127.0.1.1 the kernel goes from 127.0.0.1. Such a request would
/// circulate until no slot is left.
fn leads_back(local: SocketAddr, peer: SocketAddr, own: SocketAddr) -> bool {
    let loops = |end: SocketAddr| end.ip().to_canonical().is_loopback();
    let here = local.ip() == peer.ip() || loops(local) && loops(peer);
    let listens = own.ip().is_unspecified() || own.ip().to_canonical() == peer.ip().to_canonical();
    here && listens && peer.port() == own.port()
}

#[cfg(test)]
mod tests {
    use super::leads_back;

    #[test]
    fn a_connection_to_oneself_is_seen_by_its_two_ends() {
        let back = |local: &str, peer: &str, own: &str| {
            leads_back(local.parse().unwrap(), peer.parse().unwrap(), own.parse().unwrap())
        };
        assert!(back("10.0.0.5:40000", "10.0.0.5:7070", "[::]:7070"));
        assert!(back("10.0.0.5:40000", "10.0.0.5:7070", "10.0.0.5:7070"));
        // As a name does that leads to what Debian's /etc/hosts has for the machine's own.
        assert!(back("127.0.0.1:40000", "127.0.1.1:7070", "[::]:7070"));
        assert!(!back("10.0.0.5:40000", "10.0.0.5:7071", "[::]:7070"), "another port");
        assert!(!back("10.0.0.5:40000", "10.0.0.6:7070", "[::]:7070"), "another machine");
        assert!(!back("127.0.0.1:40000", "127.0.0.1:7070", "10.0.0.5:7070"), "somebody else there");
    }
}
