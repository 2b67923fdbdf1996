//! Connection to the legacy agent for one forwarded request. Streams the body, and keeps the spelling of header names.
//!
//! Connections are not reused, so that nothing has to be sent twice. If the legacy agent closed a reused connection
//! just as a request was sent, it would be unknown whether the request was received. Besides, a server with few
//! threads, such as CherryPy's, loses one of them to each idle connection.

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

/// Connection to the legacy agent for one request.
#[derive(Debug)]
pub(super) struct LegacyConnection<B> {
    sender: SendRequest<B>,
    held: Held,
}

/// Guard of a connection. Closes it on drop, even if data is still in transit.
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
    /// Connects to one of the addresses of `to`. `own` is the address at which this process listens.
    ///
    /// # Errors
    /// [`OpenError`] if the connection fails, takes longer than `within`, or leads back to this process.
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
            // An error also reaches the sender of the request and the reader of the answer.
            let _ = connection.await;
        });
        Ok(LegacyConnection { sender, held: Held(running) })
    }

    /// Sends the request and waits for the head of the answer, without a limit of time. The body of the answer arrives
    /// for as long as the returned [`Held`] is kept.
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

/// `true` if a connection from `local` to `peer` ends at `own`, where this process listens. Such a request would
/// circulate until no slot is left.
///
/// The connection stays on this machine if both ends have the same IP address, or if both are loopback addresses: the
/// kernel connects to 127.0.1.1 from 127.0.0.1.
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
        // Debian's /etc/hosts has 127.0.1.1 for the machine's own name.
        assert!(back("127.0.0.1:40000", "127.0.1.1:7070", "[::]:7070"));
        assert!(!back("10.0.0.5:40000", "10.0.0.5:7071", "[::]:7070"), "another port");
        assert!(!back("10.0.0.5:40000", "10.0.0.6:7070", "[::]:7070"), "another machine");
        assert!(!back("127.0.0.1:40000", "127.0.0.1:7070", "10.0.0.5:7070"), "somebody else there");
    }
}
