//! Pieces of the controller's JSON: a field can be absent, null or an empty string, and each means "not given".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::model::caller::Caller;
use crate::model::cpu::written;
use crate::model::egress_policy::Reach;
use crate::model::path::CleanPath;
use crate::model::progress::{ProgressRequest, Stage};
use crate::model::url::HttpUrl;

/// Limit of a context that is sent back with each post, in bytes: it is a few lines in practice.
const MOST_CONTEXT: usize = 64 * 1024;

/// Reads an optional text; null and a blank text count as missing.
///
/// # Errors
/// If the value is present and no text.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(serde::de::Error::custom(format!("{} is not a text", shorten(&other)))),
    }
}

/// Reads an optional list of cores; an empty one counts as missing.
///
/// # Errors
/// If the value is present and neither a text nor a list.
pub fn cores<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(written(deserializer)?.filter(|text| !text.trim().is_empty()))
}

/// Reads an optional count; 0 counts as missing, and a text of digits is a number.
///
/// # Errors
/// If the value is present and no whole number of at least 0.
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = match &value {
        Value::Null => return Ok(None),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => text.trim().parse().ok(),
        Value::Number(number) => number.as_u64().or_else(|| whole(number.as_f64()?)),
        _ => None,
    };
    match number {
        Some(0) => Ok(None),
        Some(number) => Ok(Some(number)),
        None => {
            let text = format!("{} is not a whole number of at least 0", shorten(&value));
            Err(serde::de::Error::custom(text))
        }
    }
}

/// Whole number in a float: some JSON writers put `1024.0`.
fn whole(number: f64) -> Option<u64> {
    // Above 2^53 a float does not name one whole number any more.
    let fits = number.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&number);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fits.then_some(number as u64)
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { short + "…" } else { short }
}

/// Time for which the controller waits for the result, from `taskContext`: its timeout, or the time until its deadline,
/// whichever is less.
///
/// A deadline before `now` is ignored: the controller called and still waits, so its clock differs from this machine's.
pub fn caller_timeout(body: &[u8], now: SystemTime) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "taskContext")]
        task_context: Option<CallContext>,
    }
    #[derive(Deserialize)]
    struct CallContext {
        #[serde(rename = "__messagetimeout__")]
        timeout: Option<Value>,
        /// Milliseconds since 1970.
        #[serde(rename = "__messagedeadline__")]
        deadline: Option<Value>,
    }
    let context = serde_json::from_slice::<Envelope>(body).ok()?.task_context?;
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = milliseconds(context.deadline).and_then(|at| at.checked_sub(since_1970));
    let given = [milliseconds(context.timeout), until];
    given.into_iter().flatten().filter(|timeout| !timeout.is_zero()).min()
}

/// Control socket that a body names, if it is a valid one.
pub(super) fn control_in(body: &[u8]) -> Option<CleanPath> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct NamedSocket {
        control_sock: String,
    }
    serde_json::from_slice::<NamedSocket>(body).ok()?.control_sock.parse().ok()
}

/// Progress reports that the controller requests, if `threadContext` names an API call. A malformed context is no such
/// request, and never an error of the call.
pub fn asked(body: &[u8], caller: Caller, reach: &Reach) -> Option<ProgressRequest> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "threadContext", default)]
        context: Value,
        #[serde(rename = "threadContextStack", default)]
        stack: Value,
        #[serde(rename = "sendCommandUrl", default)]
        url: Value,
    }
    let Envelope { context, stack, url } = serde_json::from_slice(body).ok()?;
    let api = context.as_object()?.get("api")?.as_str()?;
    if api.trim().is_empty() {
        return None;
    }
    if context.to_string().len() + stack.to_string().len() > MOST_CONTEXT {
        tracing::debug!(
            "a call's progress is not reported: its threadContext and threadContextStack exceed {MOST_CONTEXT} bytes"
        );
        return None;
    }
    let stage = stage(context.get("task-stage"));
    let timeout = caller_timeout(body, SystemTime::now());
    let url = address(&url, reach);
    Some(ProgressRequest { url, caller, stage, context, stack, timeout })
}

/// Stage of a call; the whole call, if `value` is missing or malformed.
fn stage(value: Option<&Value>) -> Stage {
    let stage = match value {
        None | Some(Value::Null) => return Stage::default(),
        Some(value) => value.as_str().and_then(Stage::parse),
    };
    if stage.is_none() {
        tracing::debug!(
            "the task-stage {:.80} is ignored: it is no percent range such as 20-80, so the progress counts as 0-100",
            value.map(ToString::to_string).unwrap_or_default()
        );
    }
    stage.unwrap_or_default()
}

/// URL to which the call wants its progress posted, if it is valid and the egress policy allows it. The log does not
/// show the URL, because it may give access to what is there.
fn address(value: &Value, reach: &Reach) -> Option<String> {
    let validated = match value {
        Value::Null => return None,
        Value::String(url) if url.trim().is_empty() => return None,
        Value::String(url) => HttpUrl::without_user(url.trim())
            .map_err(|why| why.to_string())
            .and_then(|_| {
                reach.authorize_literal(url.trim()).map_err(|refused| refused.to_string())
            })
            .map(|()| url.trim().to_string()),
        _ => Err("it is no text".to_string()),
    };
    let validated = validated.inspect_err(|why| {
        tracing::debug!(
            why,
            "a call's sendCommandUrl is ignored, its progress goes to the connected controller's address: {why}"
        );
    });
    validated.ok()
}

/// Milliseconds as a number or as a text, whole or not.
fn milliseconds(value: Option<Value>) -> Option<Duration> {
    let ms: f64 = match value? {
        Value::String(text) => text.trim().parse().ok()?,
        Value::Number(number) => number.as_f64()?,
        _ => return None,
    };
    Duration::try_from_secs_f64(ms / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    struct Body {
        #[serde(default, deserialize_with = "count")]
        n: Option<u64>,
        #[serde(default, deserialize_with = "text")]
        t: Option<String>,
    }

    #[test]
    fn absent_null_empty_and_zero_are_not_given() {
        for body in
            ["{}", r#"{"n":null,"t":null}"#, r#"{"n":"","t":""}"#, r#"{"n":0,"t":" ","other":[1]}"#]
        {
            assert_eq!(
                serde_json::from_str::<Body>(body).unwrap(),
                Body { n: None, t: None },
                "{body}"
            );
        }
    }

    #[test]
    fn numbers_may_be_texts_and_nonsense_is_refused() {
        for (body, n) in [(r#"{"n":7}"#, 7), (r#"{"n":"7"}"#, 7), (r#"{"n":7.0}"#, 7)] {
            assert_eq!(serde_json::from_str::<Body>(body).unwrap().n, Some(n));
        }
        for body in [
            r#"{"n":-1}"#,
            r#"{"n":1.5}"#,
            r#"{"n":"x"}"#,
            r#"{"n":[1]}"#,
            r#"{"n":1e300}"#,
            r#"{"t":5}"#,
        ] {
            assert!(serde_json::from_str::<Body>(body).is_err(), "{body}");
        }
    }

    /// Reads `body` as that of a caller on another machine.
    fn read(body: impl AsRef<[u8]>) -> Option<ProgressRequest> {
        let caller = Caller::At([10, 0, 0, 9].into());
        asked(body.as_ref(), caller, &Reach::Common { loopback: false })
    }

    #[test]
    fn progress_is_asked_for_by_a_context_that_names_an_api_call() {
        let context = r#""threadContext":{"api":"a1","task-stage":"20-80","x":[1]}"#;
        let body =
            format!(r#"{{{context},"threadContextStack":["s"],"sendCommandUrl":" http://c/x "}}"#);
        let asked = read(body).unwrap();
        assert_eq!(asked.context["x"], serde_json::json!([1]));
        assert_eq!((asked.stack, asked.url), (serde_json::json!(["s"]), Some("http://c/x".into())));
        assert_eq!(Some(asked.stage), Stage::parse("20-80"));
        let long = format!(r#"{{"threadContext":{{"api":"{}"}}}}"#, "x".repeat(MOST_CONTEXT));
        let nothing = [
            "",
            "[]",
            "{}",
            "{\"threadContext\":",
            r#"{"threadContext":null}"#,
            r#"{"threadContext":{}}"#,
            r#"{"threadContext":["api"]}"#,
            r#"{"threadContext":{"api":""}}"#,
            r#"{"threadContext":{"api":7}}"#,
            &long,
        ];
        for body in nothing {
            assert_eq!(read(body), None, "{body}");
        }
    }

    #[test]
    fn a_stage_or_an_address_that_makes_no_sense_is_as_if_it_were_not_there() {
        for stage in ["null", "\"\"", "\"80-20\"", "7", "[]"] {
            let body = format!(r#"{{"threadContext":{{"api":"a","task-stage":{stage}}}}}"#);
            assert_eq!(read(&body).unwrap().stage, Stage::default(), "{stage}");
        }
        for url in [
            "null",
            "\"\"",
            "\"ftp://h/\"",
            "\"/path\"",
            "\"http://\"",
            "\"http://127.0.0.1/\"",
            "7",
            "{}",
        ] {
            let body = format!(r#"{{"threadContext":{{"api":"a"}},"sendCommandUrl":{url}}}"#);
            assert_eq!(read(&body).unwrap().url, None, "{url}");
        }
    }

    #[test]
    fn the_controllers_timeout_is_read_and_never_panics() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let cases = [
            (r#""__messagetimeout__":"1800000""#, Some(1800.0)),
            (r#""__messagetimeout__":1500.5"#, Some(1.5005)),
            (r#""__messagetimeout__":"2500.0""#, Some(2.5)),
            (r#""__messagedeadline__":"1700000060000""#, Some(60.0)),
            (r#""__messagedeadline__":1.70000006e12"#, Some(60.0)),
            (r#""__messagetimeout__":"1800000","__messagedeadline__":"1700000060000""#, Some(60.0)),
            (r#""__messagetimeout__":"5000","__messagedeadline__":"1700000060000""#, Some(5.0)),
            (r#""__messagetimeout__":"5000","__messagedeadline__":"1699999999000""#, Some(5.0)),
            (r#""__messagedeadline__":"1699999999000""#, None),
            (r#""__messagetimeout__":0,"__messagedeadline__":"0""#, None),
            (r#""__messagetimeout__":"soon","__messagedeadline__":[1]"#, None),
            (r#""__messagetimeout__":-1,"__messagedeadline__":"1e400""#, None),
            (r#""__messagetimeout__":"NaN","__messagedeadline__":"inf""#, None),
        ];
        for (context, seconds) in cases {
            let body = format!(r#"{{"taskContext":{{{context}}}}}"#);
            let read = caller_timeout(body.as_bytes(), now).map(|timeout| timeout.as_secs_f64());
            assert_eq!(read, seconds, "{context}");
        }
        for body in ["", "[]", r#"{"taskContext":7}"#] {
            assert_eq!(caller_timeout(body.as_bytes(), now), None);
        }
    }
}
