//! The floor of the listener under load: a bare hyper server with one constant answer, which it posts back where
//! a request has a callback's address, set up as the agent's
//! listener is (its socket, its TLS, its limits of a head, one thread), as a process of its own.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use vhost_agent::api::serve::{Material, listen, tls_guard};

use crate::played::Identity;

/// The argument with which this binary is a floor and no bench.
pub(crate) const ARGUMENT: &str = "floor-server";
/// As the agent's listener has them.
const HEAD_BYTES: usize = 64 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A running floor.
pub(crate) struct Floor {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Floor {
    /// Starts one that answers with this body.
    pub(crate) fn start(body: &[u8], identity: Option<&Identity>) -> Result<Floor> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ARGUMENT);
        if let Some(identity) = identity {
            command.arg(&identity.certificate).arg(&identity.key);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("no input of the floor")?.write_all(body)?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output of the floor")?)
            .read_line(&mut line)?;
        let address = line.trim().parse().context("the floor does not say where it listens");
        let mut floor = Floor { child, address: SocketAddr::from(([0, 0, 0, 0], 0)) };
        floor.address = address?;
        Ok(floor)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is the floor: reads the body of its answer, says where it listens, and serves until it is killed.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    crate::machine::many_files()?;
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body)?;
    let tls = match arguments {
        [certificate, key] => Some(tls(certificate.as_ref(), key.as_ref())?),
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        println!("{}", listener.local_addr()?);
        let floor = (Bytes::from(body), Client::builder(TokioExecutor::new()).build_http());
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let (tls, floor) = (tls.clone(), floor.clone());
            tokio::spawn(async move {
                match tls {
                    None => talk(stream, floor).await,
                    Some(tls) => {
                        if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                            talk(stream, floor).await;
                        }
                    }
                }
            });
        }
    })
}

fn tls(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let (chain, key) = (std::fs::read(certificate)?, std::fs::read(key)?);
    let material = Material { chain, key, client_ca: None, client_crl: None };
    Ok(tls_guard(&material, Vec::new())?.config)
}

type Poster = Client<HttpConnector, Full<Bytes>>;

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(stream: S, (body, client): (Bytes, Poster)) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let (body, client) = (body.clone(), client.clone());
        async move {
            let (head, asked) = request.into_parts();
            // A body has to be read before it is answered; what stands there is not looked at.
            let _ = asked.collect().await;
            if let Some(post) = post_back(&head.headers, &body) {
                tokio::spawn(async move {
                    if let Ok(taken) = client.request(post).await {
                        let _ = taken.into_body().collect().await;
                    }
                });
                return Ok(Response::default());
            }
            let mut answer = Response::new(Full::new(body));
            let json = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(CONTENT_TYPE, json);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(HEAD_BYTES);
    let _ = http.serve_connection(TokioIo::new(stream), answer).await;
}

/// The result for a request that has a callback's address.
fn post_back(headers: &HeaderMap, body: &Bytes) -> Option<Request<Full<Bytes>>> {
    let url: Uri = headers.get("callbackurl")?.to_str().ok()?.parse().ok()?;
    let post = Request::post(url).header("taskuuid", headers.get("taskuuid")?);
    post.header(CONTENT_TYPE, "application/json").body(Full::new(body.clone())).ok()
}
