//! Reaching the owner of this node: the agent that runs, or owners of our own.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::agent::pulse::Pulse;
use crate::config::Settings;
use crate::daemon::Core;
use crate::model::fault::Fault;
use crate::store::{Lock, Store, StoreError};

/// This node, with its settings.
pub(super) struct Place {
    pub(super) settings: Settings,
    pub(super) root: PathBuf,
}

/// Who owns the node.
pub(super) enum Owner {
    /// We do, for as long as the lock lives.
    Here(Box<Core>, Lock),
    /// An agent runs, at this address.
    There(Remote),
}

impl Place {
    /// Finds the owner.
    pub(super) fn owner(&self) -> Result<Owner> {
        let store = Store::open(&self.settings.state_dir)?;
        match store.lock() {
            Ok(mut lock) => {
                lock.sign(None);
                let core = Core::start(&self.settings, &self.root, store, &Pulse::default())?;
                Ok(Owner::Here(Box::new(core), lock))
            }
            Err(StoreError::Locked { holder, path }) => match holder.split_once("http://") {
                Some((_, address)) => Ok(Owner::There(Remote { address: address.to_string() })),
                None => bail!(
                    "{} is held by another vhost-agent ({holder}): wait until it is done",
                    path.display()
                ),
            },
            Err(other) => Err(other.into()),
        }
    }
}

/// An agent that runs.
pub(super) struct Remote {
    address: String,
}

/// What a problem document says.
#[derive(serde::Deserialize)]
struct ProblemBody {
    code: String,
    detail: String,
    report: Option<serde_json::Value>,
}

impl Remote {
    /// Calls a route and reads its answer; a problem that carries a report is that report.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let response = self.send(method, path, body, None).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        self.understand(status, &bytes)
    }

    /// Calls a route and passes each line of its answer to `line`; the last answer is returned.
    pub(super) async fn lines(
        &self,
        path: &str,
        body: &impl Serialize,
        accept: &str,
        mut line: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let response = self.send(Method::POST, path, Some(body), Some(accept)).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                rest.extend_from_slice(&data);
            }
            if !status.is_success() {
                continue;
            }
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let whole: Vec<u8> = rest.drain(..=end).collect();
                line(&whole)?;
            }
        }
        if status.is_success() { Ok(()) } else { self.understand::<()>(status, &rest) }
    }

    fn understand<T: DeserializeOwned>(&self, status: StatusCode, bytes: &[u8]) -> Result<T> {
        if status.is_success() {
            return serde_json::from_slice(bytes)
                .with_context(|| format!("the agent at {} answered something else", self.address));
        }
        let problem: ProblemBody = serde_json::from_slice(bytes)
            .with_context(|| format!("the agent at {} answered {status}", self.address))?;
        match problem.report {
            Some(report) => Ok(serde_json::from_value(report)?),
            None => Err(Fault { code: problem.code.into(), text: problem.detail }.into()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        accept: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let lost = || format!("the agent that runs cannot be reached at {}", self.address);
        let stream = TcpStream::connect(&self.address).await.with_context(lost)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(lost)?;
        tokio::spawn(connection);
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header("content-type", "application/json");
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let request = request.body(Full::new(Bytes::from(bytes)))?;
        sender.send_request(request).await.with_context(lost)
    }
}
