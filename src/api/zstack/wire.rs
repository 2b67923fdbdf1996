//! Pieces of the controller's JSON: a field can be absent, null or an empty string, and all three mean
//! "not given".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A text that may be missing.
///
/// # Errors
/// When it is there and no text.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => Ok(Some(text)),
        other => Err(serde::de::Error::custom(format!("{} is not a text", shorten(&other)))),
    }
}

/// A count that may be missing; 0 means missing too, and a text of digits is a number.
///
/// # Errors
/// When it is there and no whole number of at least 0.
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

/// Some JSON writers put whole numbers as `1024.0`.
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

/// How long the controller waits for the result, from `taskContext`: the time that it gives, or what
/// is left until its deadline, whichever is less.
///
/// A deadline that lies behind `now` is not looked at: the controller does wait, or it would not have
/// called, so its clock and this one differ.
pub fn patience(body: &[u8], now: SystemTime) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "taskContext")]
        task_context: Option<Context>,
    }
    #[derive(Deserialize)]
    struct Context {
        #[serde(rename = "__messagetimeout__")]
        timeout: Option<Value>,
        /// Since 1970.
        #[serde(rename = "__messagedeadline__")]
        deadline: Option<Value>,
    }
    let context = serde_json::from_slice::<Envelope>(body).ok()?.task_context?;
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = milliseconds(context.deadline).and_then(|at| at.checked_sub(since_1970));
    let given = [milliseconds(context.timeout), until];
    given.into_iter().flatten().filter(|patience| !patience.is_zero()).min()
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

    #[test]
    fn the_controllers_patience_is_read_and_never_trips() {
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
            let read = patience(body.as_bytes(), now).map(|patience| patience.as_secs_f64());
            assert_eq!(read, seconds, "{context}");
        }
        for body in ["", "[]", r#"{"taskContext":7}"#] {
            assert_eq!(patience(body.as_bytes(), now), None);
        }
    }
}
