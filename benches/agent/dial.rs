//! How callers of a listener under load reach it: plain or through TLS, one that waits or many in one
//! thread. No certificate is verified, for the callers' share of a handshake must not be what is measured.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{ClientConnection, Resumption};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};

use crate::http::Connection;

/// What a caller that waits talks through.
pub(crate) trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// A connection of a caller that waits.
pub(crate) type Line = Connection<Box<dyn Duplex>>;

/// What one of many callers in one thread talks through.
pub(crate) trait AsyncDuplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> AsyncDuplex for T {}

/// Somebody who listens.
#[derive(Clone)]
pub(crate) struct Door {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
}

impl Door {
    pub(crate) fn new(address: SocketAddr, tls: bool) -> Result<Door> {
        Ok(Door { address, tls: tls.then(trusting).transpose()? })
    }

    /// A connection of a caller that waits.
    pub(crate) fn connect(&self) -> Result<Line> {
        Ok(self.metered()?.0)
    }

    /// The same, with the bytes that go over it.
    pub(crate) fn metered(&self) -> Result<(Line, Arc<Meter>)> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        let meter = Arc::new(Meter::default());
        let stream = Metered { stream, meter: meter.clone() };
        let stream: Box<dyn Duplex> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::from(self.address.ip());
                Box::new(StreamOwned::new(ClientConnection::new(tls.clone(), name)?, stream))
            }
        };
        Ok((Connection::over(stream), meter))
    }

    /// A connection of one of many callers.
    pub(crate) async fn open(&self) -> io::Result<Box<dyn AsyncDuplex>> {
        let stream = tokio::net::TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::from(self.address.ip());
                Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?)
            }
        })
    }

    /// The same below TLS, whatever is spoken there.
    pub(crate) async fn open_bare(&self) -> io::Result<tokio::net::TcpStream> {
        tokio::net::TcpStream::connect(self.address).await
    }
}

/// Bytes of a TCP connection.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    sent: AtomicUsize,
    received: AtomicUsize,
}

impl Meter {
    /// (sent, received)
    pub(crate) fn read(&self) -> (usize, usize) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}

struct Metered {
    stream: TcpStream,
    meter: Arc<Meter>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.meter.received.fetch_add(count, Ordering::Relaxed);
        Ok(count)
    }
}

impl Write for Metered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.meter.sent.fetch_add(count, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A client that believes everybody and begins every connection with a whole handshake.
fn trusting() -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
