//! Replies of the engine, reduced to the values that the agent needs.
//!
//! Each value is taken by itself: one that a newer engine, or a plugin of it, writes in another form than expected is
//! missing, and the rest of the reply is as good as before. Only a value on which a decision rests makes the reply
//! unusable when it is missing.

use std::collections::BTreeMap;
use std::io;

use bollard::errors::Error;
use http_body_util::{BodyExt, Limited};
use hyper::Response;
use hyper::body::Incoming;
use serde_json::Value;

use super::transport::NotDocker;
use crate::model::container::{ContainerSeen, Restarts};
use crate::model::engine::{ApiVersion, EngineVersion};

/// Maximum bytes of a reply, or of one of the values that a reply consists of; the largest replies have some 100 KiB.
const MOST_BYTES: usize = 16 << 20;

/// Reads a reply that is one value.
pub(super) async fn whole(response: Response<Incoming>) -> Result<Value, Error> {
    let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
    let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(broken) => Error::from(*broken),
        Err(other) => Error::from(io::Error::other(other)),
    })?;
    Ok(serde_json::from_slice(&body.to_bytes())?)
}

/// Reads a reply that is a stream of values and passes each to `take`. The engine divides neither lines nor pieces of
/// the body by values.
pub(super) async fn each(
    response: Response<Incoming>,
    mut take: impl FnMut(&Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut body, mut unread) = (response.into_body(), Vec::<u8>::new());
    let (mut scanner, mut parsed) = (Scanner::default(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        unread.extend_from_slice(&data);
        // Without an end too when there is twice as much: what is no JSON need not have one.
        if scanner.has_end(&data) || unread.len() > 2 * parsed {
            let read = pass(&unread, &mut take)?;
            unread.drain(..read);
            parsed = unread.len();
        }
        if unread.len() > MOST_BYTES {
            let text = format!("more than {MOST_BYTES} bytes without an end of the value");
            return Err(io::Error::other(text).into());
        }
    }
    match unread.trim_ascii() {
        [] => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

/// State of a stream of values after the bytes so far. A value is parsed once it is complete: to parse the beginning of a
/// large one again with each piece would take time that grows with the square of its length.
#[derive(Debug, Default)]
struct Scanner {
    /// Number of objects and arrays that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    /// `true` if a value may end within `piece`, which follows the bytes so far.
    fn has_end(&mut self, piece: &[u8]) -> bool {
        let mut has_end = false;
        for byte in piece {
            has_end |= self.may_end(*byte);
        }
        has_end
    }

    fn may_end(&mut self, byte: u8) -> bool {
        match (self.in_string, byte) {
            (true, _) if self.escaped => self.escaped = false,
            (true, b'\\') => self.escaped = true,
            (_, b'"') => self.in_string = !self.in_string,
            (false, b'{' | b'[') => self.depth += 1,
            (false, b'}' | b']') => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0 && !self.in_string
    }
}

/// Passes the values that are complete in `bytes` to `take`, and returns their length.
fn pass(bytes: &[u8], take: &mut impl FnMut(&Value) -> Result<(), Error>) -> Result<usize, Error> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    loop {
        match values.next() {
            Some(Ok(value)) => take(&value)?,
            Some(Err(error)) if !error.is_eof() => return Err(error.into()),
            Some(Err(_)) | None => return Ok(values.byte_offset()),
        }
    }
}

/// Checks that a value of a pull or a load is not the engine's report of a failure.
pub(super) fn unless_failed(message: &Value) -> Result<(), Error> {
    let error = message["errorDetail"]["message"].as_str().or(message["error"].as_str());
    match error {
        Some(error) => Err(Error::DockerStreamError { error: error.to_string() }),
        None => Ok(()),
    }
}

/// Progress of a layer: its id, its state, and the bytes done with the total.
type LayerProgress = (Option<String>, String, Option<(u64, u64)>);

/// Reads the progress that a value of a pull reports.
pub(super) fn progress(message: &Value) -> Option<LayerProgress> {
    let state = message["status"].as_str()?.to_string();
    let detail = &message["progressDetail"];
    let bytes =
        detail["current"].as_u64().map(|done| (done, detail["total"].as_u64().unwrap_or(0)));
    Some((message["id"].as_str().map(str::to_string), state, bytes))
}

/// Reads the version of an engine.
///
/// # Errors
/// When the engine is podman, which names itself among its components, or when its API has no version.
pub(super) fn version(reply: &Value) -> Result<EngineVersion, Error> {
    let components = reply["Components"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = |component: &Value| component["Name"].as_str().unwrap_or_default().to_lowercase();
    let version = text(&reply["Version"]);
    if components.iter().any(|component| names(component).starts_with("podman")) {
        return Err(io::Error::other(NotDocker(format!("podman {version}"))).into());
    }
    let api = needed(reply["ApiVersion"].as_str(), "ApiVersion")?;
    let api = api.parse::<ApiVersion>().map_err(io::Error::other)?;
    Ok(EngineVersion { version, api })
}

/// Reads a container.
///
/// # Errors
/// When the reply does not say which container it is, or whether it runs.
pub(super) fn container(reply: &Value) -> Result<ContainerSeen, Error> {
    let state = &reply["State"];
    let running = needed(state["Running"].as_bool(), "State.Running")?;
    let pid = state["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    Ok(ContainerSeen {
        id: id(reply)?,
        running,
        pid: pid.filter(|pid| *pid > 0),
        exit_code: state["ExitCode"].as_i64().filter(|_| !running),
        oom_killed: state["OOMKilled"].as_bool().unwrap_or(false),
        image_id: text(&reply["Image"]),
        labels: texts(&reply["Config"]["Labels"]),
        error: text(&state["Error"]),
        restarts: restarts(&reply["HostConfig"]["RestartPolicy"]),
    })
}

/// Reads the id of a container or an image.
pub(super) fn id(reply: &Value) -> Result<String, Error> {
    needed(reply["Id"].as_str().filter(|id| !id.is_empty()), "Id").map(str::to_string)
}

/// `true` if `name` is the name or full id of the container in `reply`. The engine also accepts the beginning of an id,
/// and would then show another container.
pub(super) fn is_named(name: &str, reply: &Value) -> bool {
    let own = reply["Name"].as_str().map(|own| own.trim_start_matches('/'));
    own == Some(name) || reply["Id"].as_str() == Some(name)
}

/// Names of the container of `event`, with the former one if it was renamed; none for events of a program executed in a
/// container.
pub(super) fn names(event: &Value) -> Vec<String> {
    if event["Action"].as_str().is_some_and(|action| action.starts_with("exec_")) {
        return Vec::new();
    }
    let attributes = &event["Actor"]["Attributes"];
    let old = attributes["oldName"].as_str().map(|name| name.trim_start_matches('/'));
    attributes["name"].as_str().into_iter().chain(old).map(str::to_string).collect()
}

/// Log driver of containers that name none, on the engine that gave `info`.
pub(super) fn log_driver(info: &Value) -> Option<String> {
    info["LoggingDriver"].as_str().filter(|name| !name.is_empty()).map(str::to_string)
}

/// `true` if the engine that gave `info` accepts `registry` without verifying its certificate.
pub(super) fn trusts_blindly(info: &Value, registry: &str) -> bool {
    info["RegistryConfig"]["IndexConfigs"][registry]["Secure"] == Value::Bool(false)
}

fn restarts(policy: &Value) -> Option<Restarts> {
    let name = policy["Name"].as_str().filter(|name| !["", "no"].contains(name))?;
    let most = policy["MaximumRetryCount"].as_i64().filter(|most| *most > 0);
    Some(Restarts { policy: name.to_string(), most })
}

fn needed<T>(value: Option<T>, name: &str) -> Result<T, Error> {
    value
        .ok_or_else(|| io::Error::other(format!("the reply has no {name} that can be read")).into())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn texts(values: &Value) -> BTreeMap<String, String> {
    let values = values.as_object().into_iter().flatten();
    values.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_value_in_many_pieces_is_parsed_once() {
        let inner = r#"{"a": ["}", "\\", "\"}]{[", {"b": {}}, []]},"#.repeat(1000);
        let value = format!("{{\"all\": [{inner} null]}}");
        let mut scanner = Scanner::default();
        for _ in 0..2 {
            let ends = value.bytes().enumerate().filter(|(_, byte)| scanner.may_end(*byte));
            let ends: Vec<usize> = ends.map(|(at, _)| at).collect();
            assert_eq!(ends, [value.len() - 1]);
            assert!(scanner.has_end(b"\r\n"), "between two values");
        }
        let mut passed = Vec::new();
        let mut take = |value: &Value| {
            passed.push(value.clone());
            Ok(())
        };
        assert_eq!(pass(value.as_bytes(), &mut take).unwrap(), value.len());
        assert_eq!(passed[0]["all"][999]["a"][1], "\\");
    }

    #[test]
    fn piece_with_several_values_or_none_is_told_by_its_bytes() {
        let mut scanner = Scanner::default();
        for (piece, has_end) in [
            (b"{\"a\": \"".as_slice(), false),
            (b"\\", false),
            (b"\"}", false),
            (b"\"} {\"b", true),
            (b"\": 1}\n", true),
            (b"  ", true),
            (b"]", true),
            (b"{", false),
        ] {
            assert_eq!(scanner.has_end(piece), has_end, "{}", piece.escape_ascii());
        }
    }
}
