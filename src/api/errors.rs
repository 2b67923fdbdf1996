//! Errors as they leave the agent: RFC 9457 under `/v1`, a result object on the compatible routes.

use std::any::Any;

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::model::fault::Fault;
use crate::model::volume::{VolumeState, VolumeView};

/// An error with its HTTP status.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// Code and text.
    pub fault: Fault,
    /// A member that the problem carries besides, such as the report of what was done.
    pub extension: Option<(&'static str, Value)>,
}

impl Problem {
    /// A problem with a status and a stable code.
    pub fn new(status: StatusCode, code: &'static str, text: impl Into<String>) -> Problem {
        Problem { status, fault: Fault::new(code, text), extension: None }
    }

    /// A fault of the work itself, with the status that fits its code.
    pub fn of(fault: Fault) -> Problem {
        // What passes: the caller may call again later.
        const BUSY: [&str; 9] = [
            "engine-busy",
            "node-busy",
            "pools-busy",
            "prepare-busy",
            "outbox-full",
            "too-many-tasks",
            "target-busy",
            "too-many-targets",
            "stopping",
        ];
        // What this machine can never do: the caller has to ask for something else.
        const IMPOSSIBLE: [&str; 4] =
            ["too-many-pages", "no-such-node", "page-size-unsupported", "volume-not-resizable"];
        // What is not wanted, and so cannot be asked for anything.
        const UNKNOWN: [&str; 2] = ["target-unknown", "volume-unknown"];
        // What somebody else has: a virtual machine, or another volume.
        const CONFLICT: [&str; 4] =
            ["volume-in-use", "volume-conflict", "volume-not-as-wanted", "bdev-belongs-to-another"];
        let status = if BUSY.contains(&fault.code.as_ref()) {
            StatusCode::SERVICE_UNAVAILABLE
        } else if IMPOSSIBLE.contains(&fault.code.as_ref()) {
            StatusCode::UNPROCESSABLE_ENTITY
        } else if UNKNOWN.contains(&fault.code.as_ref()) {
            StatusCode::NOT_FOUND
        } else if CONFLICT.contains(&fault.code.as_ref()) {
            StatusCode::CONFLICT
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Problem { status, fault, extension: None }
    }

    /// The result object of a compatible route, as the controller expects it.
    pub fn into_result(self) -> Response {
        (self.status, Json(result_body(&self.fault))).into_response()
    }
}

/// Why a volume that was to be made was not; nothing where its socket is there, also when a virtual machine
/// that had it before hangs on it.
///
/// # Errors
/// `volume-not-serving`, with the reason and what becomes of the volume now.
pub fn made(view: &VolumeView, otherwise: &str) -> Result<(), Fault> {
    let VolumeView { target, spec, status } = view;
    match status.state {
        VolumeState::Serving | VolumeState::Stuck => Ok(()),
        VolumeState::Pending | VolumeState::Degraded => {
            let (name, reason) = (&spec.name, &status.reason);
            let text = format!("{name} in {target} is {}: {reason}; {otherwise}", status.state);
            Err(Fault::new("volume-not-serving", text))
        }
    }
}

/// A failed result in the controller's form.
pub fn result_body(fault: &Fault) -> Value {
    json!({"success": false, "error": fault.text, "code": fault.code})
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "code": self.fault.code,
            "detail": self.fault.text,
        });
        if let (Some((name, value)), Some(members)) = (self.extension, body.as_object_mut()) {
            members.insert(name.to_string(), value);
        }
        let mut response = (self.status, Json(body)).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        response
    }
}

/// What an unknown path is answered with.
pub async fn no_such_route(method: Method, uri: Uri) -> Problem {
    let text = format!("the agent has no route {method} {}: see the README's list", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "no-such-route", text)
}

/// What a known path with another method is answered with; the router adds `Allow`.
pub async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let text = format!("{} does not take {method}: see the header Allow", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", text)
}

/// A handler broke; the process goes on, and the log has the place.
pub fn panicked(_: Box<dyn Any + Send>) -> Response {
    let text = "the agent broke on this request; its log has the place: report it";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_asks_the_caller_to_call_again() {
        let status = |code| Problem::of(Fault::new(code, "")).status;
        for code in ["engine-busy", "node-busy", "pools-busy", "prepare-busy", "outbox-full"] {
            assert_eq!(status(code), StatusCode::SERVICE_UNAVAILABLE, "{code}");
        }
        assert_eq!(status("disk-full"), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(status("too-many-pages"), StatusCode::UNPROCESSABLE_ENTITY);
    }

    #[test]
    fn what_is_not_wanted_is_not_found_and_what_somebody_has_is_a_conflict() {
        let status = |code| Problem::of(Fault::new(code, "")).status;
        for code in ["target-unknown", "volume-unknown"] {
            assert_eq!(status(code), StatusCode::NOT_FOUND, "{code}");
        }
        for code in ["volume-in-use", "volume-not-as-wanted", "bdev-belongs-to-another"] {
            assert_eq!(status(code), StatusCode::CONFLICT, "{code}");
        }
        assert_eq!(status("volume-not-resizable"), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(status("target-busy"), StatusCode::SERVICE_UNAVAILABLE);
    }
}
