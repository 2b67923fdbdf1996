//! Errors in wire form: RFC 9457 under `/v1`, a result object on the compatible routes.

use std::any::Any;

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::volume::{VolumeState, VolumeView};

/// Error answer, with the HTTP status of its code.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub fault: Fault,
    /// Name and value of an additional member of the problem, such as the report of what was done.
    pub extension: Option<(&'static str, Value)>,
}

impl Problem {
    pub fn new(code: Code, text: impl Into<String>) -> Problem {
        Problem::of(Fault::new(code, text))
    }

    pub fn of(fault: Fault) -> Problem {
        Problem { fault, extension: None }
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.fault.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Result object of a compatible route, as the controller expects it.
    pub fn into_result(self) -> Response {
        let response = (self.status(), Json(result_body(&self.fault))).into_response();
        refused_with(response, self.fault.code)
    }
}

/// Checks that a volume was made, which means that its socket is there. That includes a stuck volume, whose virtual
/// machine has to be restarted.
///
/// # Errors
/// `volume-not-serving`, with the reason and with `otherwise`, the text on what becomes of the volume.
pub fn made(view: &VolumeView, otherwise: &str) -> Result<(), Fault> {
    let VolumeView { target, spec, status } = view;
    match status.state {
        VolumeState::Serving | VolumeState::Stuck => Ok(()),
        VolumeState::Pending | VolumeState::Degraded => {
            let (name, reason) = (&spec.name, &status.reason);
            let text = format!("{name} in {target} is {}: {reason}; {otherwise}", status.state);
            Err(Fault::new(Code::VolumeNotServing, text))
        }
    }
}

/// Failed result in the controller's form.
pub fn result_body(fault: &Fault) -> Value {
    json!({"success": false, "error": fault.text, "code": fault.code})
}

/// Code by which a response refuses its caller, or something that the caller named. Kept in the extensions of the
/// response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RefusedWith(pub(super) Code);

/// Adds [`RefusedWith`] to a response if `code` refuses the caller, or something that the caller named.
pub(super) fn refused_with(mut response: Response, code: Code) -> Response {
    if code.is_refusal() {
        response.extensions_mut().insert(RefusedWith(code));
    }
    response
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code) = (self.status(), self.fault.code);
        let mut body = json!({
            "type": "about:blank",
            "title": status.canonical_reason().unwrap_or("Error"),
            "status": status.as_u16(),
            "code": self.fault.code,
            "detail": self.fault.text,
        });
        if let (Some((name, value)), Some(members)) = (self.extension, body.as_object_mut()) {
            members.insert(name.to_string(), value);
        }
        let mut response = (status, Json(body)).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        refused_with(response, code)
    }
}

/// Answer for an unknown path.
pub async fn no_such_route(method: Method, uri: Uri) -> Problem {
    let list = "/usr/share/doc/vhost-agent/http-api.md has them all";
    let text = format!("the agent has no route {method} {}: {list}", uri.path());
    Problem::new(Code::NoSuchRoute, text)
}

/// Answer for a known path that does not take the request's method; the router adds `Allow`.
pub async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let text = format!("{} does not take {method}: see the header Allow", uri.path());
    Problem::new(Code::MethodNotAllowed, text)
}

/// Answer to a request whose handler panicked. The process goes on, and the log names the place in the code.
pub fn panicked(_: Box<dyn Any + Send>) -> Response {
    let text = "the agent broke on this request; its log has the place: report it";
    Problem::new(Code::Internal, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_of_every_code_has_its_status() {
        for code in Code::ALL {
            assert_eq!(Problem::new(*code, "").status().as_u16(), code.status(), "{code}");
        }
    }
}
