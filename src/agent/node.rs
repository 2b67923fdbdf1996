//! Current status of the node; concurrent callers share one observation.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::observe::engine::{EngineObserver, QueryEngine};
use super::observe::node::NodeObserver;
use super::owner_gone;
use super::pools::Pools;
use crate::model::code::Code;
use crate::model::engine::{EngineApi, EngineSeen};
use crate::model::fault::Fault;
use crate::model::node::{EngineStatus, NodeStatus};
use crate::plan::mounts;

/// Maximum of callers that wait for an observation.
const QUEUE: usize = 1024;
/// Timeout of the engine's answer: a hung engine must not hold up the status of the rest.
const ENGINE: Duration = Duration::from_secs(6);

type NodeAnswer = Result<Arc<NodeStatus>, Fault>;

/// Handle of the node's observer.
#[derive(Debug, Clone)]
pub struct Node {
    asks: mpsc::Sender<oneshot::Sender<NodeAnswer>>,
}

impl Node {
    pub fn start<E: QueryEngine>(
        observer: NodeObserver,
        pools: Pools,
        engine: Arc<EngineObserver<E>>,
        socket: String,
    ) -> Node {
        let (asks, mut queue) = mpsc::channel::<oneshot::Sender<NodeAnswer>>(QUEUE);
        tokio::spawn(async move {
            while let Some(first) = queue.recv().await {
                let mut waiting = vec![first];
                while let Ok(more) = queue.try_recv() {
                    waiting.push(more);
                }
                let seen = timeout(ENGINE, engine.look()).await;
                let seen = seen.unwrap_or_else(|_| {
                    Err(Fault::new(
                        Code::EngineNotAnswering,
                        format!("no answer within {ENGINE:?}"),
                    ))
                });
                let engine = engine_status(seen, socket.clone());
                let answer = observer.look(pools.records(), engine).await.map(judged);
                for caller in waiting {
                    let _ = caller.send(answer.clone());
                }
            }
        });
        Node { asks }
    }

    /// Returns the node's status, observed after this call was made.
    ///
    /// # Errors
    /// When too many callers wait or the agent itself fails; the status lists what could not be read.
    pub async fn status(&self) -> NodeAnswer {
        let (caller, answer) = oneshot::channel();
        self.asks.try_send(caller).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Fault::new(
                Code::NodeBusy,
                format!("{QUEUE} callers wait for the node's status already"),
            ),
            mpsc::error::TrySendError::Closed(_) => owner_gone(),
        })?;
        answer.await.unwrap_or_else(|_| Err(owner_gone()))
    }
}

/// Adds findings on what was observed.
fn judged(mut status: NodeStatus) -> Arc<NodeStatus> {
    status.findings.extend(mounts::finding(status.default_page_size, &status.mounts));
    Arc::new(status)
}

fn engine_status(seen: Result<EngineSeen, Fault>, socket: String) -> EngineStatus {
    let mut status = EngineStatus {
        state: "unreachable".to_string(),
        version: None,
        api_version: None,
        pid: None,
        socket,
        reason: None,
    };
    let seen = match seen {
        Ok(seen) => seen,
        Err(fault) => {
            status.reason = Some(fault.text);
            return status;
        }
    };
    status.pid = seen.process.as_ref().map(|process| process.pid);
    match seen.api {
        EngineApi::Answers(version) => {
            status.state = "running".to_string();
            status.version = Some(version.version);
            status.api_version = Some(version.api.to_string());
        }
        EngineApi::Broken(reason) | EngineApi::NotDocker(reason) => status.reason = Some(reason),
        EngineApi::Absent if seen.installed.is_none() => status.state = "notInstalled".to_string(),
        EngineApi::Absent => status.state = "stopped".to_string(),
    }
    status
}
