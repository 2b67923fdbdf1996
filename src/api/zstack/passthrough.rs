//! `/host/connect`, `/host/ping`, `/host/echo` with a legacy agent behind this one. The legacy agent answers these
//! calls, because it manages the host. This agent learns the identity that the controller states in them.
//!
//! The calls are forwarded with any method, as kvmagent accepts them: a script that sends `GET` to `/host/echo` is
//! answered as before. A failure to learn is logged and does not change the answer.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::{MethodRouter, any, post};

use super::super::audit::{AuditedChange, principal};
use super::super::{Shared, body, fallback};
use super::host::{self, ConnectRequest, taught, validated, validated_in_part};
use super::task;
use crate::controller::identity::{HostIdentity, Identities};
use crate::model::caller::Caller;
use crate::model::fault::Fault;

/// Handlers of `/host/connect`, `/host/ping` and `/host/echo`.
pub fn routes(legacy_agent: bool) -> [MethodRouter<Shared>; 3] {
    match legacy_agent {
        true => [any(connect), any(ping), any(fallback::forward)],
        false => [post(host::connect), post(host::ping), post(host::echo)],
    }
}

/// Call in which a controller states an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Connect,
    Ping,
}

/// `/host/connect`: answered by the legacy agent; this host's identity and the controller's address are learned.
pub async fn connect(State(api): State<Shared>, request: Request) -> Response {
    listen(api, Said::Connect, request).await
}

/// `/host/ping`: answered by the legacy agent. Unknown fields of the identity are learned: a controller that connected
/// before this agent was installed sends no other call with them for a long time.
pub async fn ping(State(api): State<Shared>, request: Request) -> Response {
    listen(api, Said::Ping, request).await
}

async fn listen(api: Shared, said: Said, request: Request) -> Response {
    if request.method() != Method::POST {
        return said.hand_on(api, request).await;
    }
    let caller = task::caller(request.extensions());
    let (head, body) = request.into_parts();
    let bytes = match body::read(body, api.native.http).await {
        Ok(bytes) => bytes,
        Err(problem) => return problem.into_result(),
    };
    match heard(&api, said, caller, &bytes) {
        // Concurrently: the disk may be slow, and the answer does not wait for it.
        Ok(identity) => drop(tokio::spawn(learn(api.clone(), said, identity))),
        Err(fault) => said.taught_nothing(&fault),
    }
    let request = Request::from_parts(head, Body::from(bytes));
    said.hand_on(api, request).await
}

fn heard(api: &Shared, said: Said, caller: Caller, bytes: &[u8]) -> Result<HostIdentity, Fault> {
    let request = body::parse::<ConnectRequest>(bytes).map_err(|problem| problem.fault)?;
    let identity = match said {
        Said::Connect => validated(request)?,
        Said::Ping => validated_in_part(request)?,
    };
    taught(api, identity, caller)
}

async fn learn(api: Shared, said: Said, identity: HostIdentity) {
    let teach = move |identities: &Identities| match said {
        Said::Connect => identities.learn(identity),
        Said::Ping => identities.learn_missing(identity),
    };
    if let Err(fault) = api.identities.in_turn(teach).await {
        said.taught_nothing(&fault);
    }
}

impl Said {
    async fn hand_on(self, api: Shared, request: Request) -> Response {
        match self {
            Said::Ping => fallback::forward(State(api), request).await,
            Said::Connect => {
                let change = AuditedChange::of("connect", principal(request.extensions()));
                fallback::noted(api, request, change).await
            }
        }
    }

    fn taught_nothing(self, fault: &Fault) {
        let route = self.route();
        tracing::warn!(
            code = %fault.code,
            "{route} is forwarded to the legacy agent, but the host identity in it was not stored: {}", fault.text
        );
    }

    fn route(self) -> &'static str {
        match self {
            Said::Connect => "/host/connect",
            Said::Ping => "/host/ping",
        }
    }
}
