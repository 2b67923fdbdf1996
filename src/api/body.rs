//! Reading a request's body within its limits.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use axum::body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use tokio::time::timeout;

use super::errors::Problem;
use crate::model::code::Code;
use crate::model::policy::HttpPolicy;

/// Limit of what is read of a refused body, in bytes.
const MOST_DRAINED: usize = 16 << 20;
/// Limit of the time for draining a refused body.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Limit of the time for which the caller may send nothing while its body is drained.
const DRAIN_PAUSE: Duration = Duration::from_secs(1);

/// Reads the whole body, within the limits of its length and of the time from the end of the head to the end of the
/// body.
///
/// # Errors
/// 413 if the body is too long, 408 if it takes too long, 400 if it breaks off.
pub async fn read(mut body: Body, limits: HttpPolicy) -> Result<Bytes, Problem> {
    let (most, within) = (limits.body_limit_kib * 1024, limits.body_timeout);
    let too_long = || {
        let text =
            format!("the body is longer than {} KiB (http.body_limit_kib)", limits.body_limit_kib);
        Problem::new(Code::BodyTooLarge, text)
    };
    // A body that announces too great a length is refused at once, without waiting for its bytes.
    let announced = hyper::body::Body::size_hint(&body).lower();
    if announced > most as u64 {
        tokio::spawn(drain(body));
        return Err(too_long());
    }
    match timeout(within, Limited::new(&mut body, most).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            tokio::spawn(drain(body));
            Err(too_long())
        }
        Ok(Err(e)) => {
            let text = format!("the body broke off: {e}");
            Err(Problem::new(Code::BodyBroken, text))
        }
        Err(_) => {
            let text = format!("the body took longer than {within:?} (http.body_timeout)");
            Err(Problem::new(Code::BodyTimeout, text))
        }
    }
}

/// Reads the rest of a refused body and discards it, within limits. Otherwise a caller that is still sending would get
/// a reset of its connection instead of the reply (RFC 9112, section 9.6).
async fn drain(mut body: Body) {
    let mut left = MOST_DRAINED;
    let rest = async {
        while let Ok(Some(Ok(frame))) = timeout(DRAIN_PAUSE, body.frame()).await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(DRAIN_TIME, rest).await;
}

/// Parses a JSON object; an empty body means `{}`.
///
/// # Errors
/// 400 with the place in the body and the reason.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json)
        .map_err(|e| (field(e.path()), e.into_inner()))
        .and_then(|Object(value): Object<T>| {
            json.end().map(|()| value).map_err(|e| (String::new(), e))
        });
    parsed.map_err(|(field, e)| {
        // A body that is no object is refused at its first byte, before the rest is parsed. Hence a check of its own
        // whether the body is JSON at all.
        let broken = || serde_json::from_slice::<IgnoredAny>(bytes).err();
        let (code, what, why) = match (e.classify(), broken()) {
            (Category::Data, None) => (Code::InvalidBody, "the body does not fit", e),
            (_, why) => (Code::InvalidJson, "the body is not JSON", why.unwrap_or(e)),
        };
        Problem::new(code, format!("{what}: {field}{why}"))
    })
}

/// Path of the field whose value was refused; empty if the whole body was refused.
fn field(path: &serde_path_to_error::Path) -> String {
    path.iter().next().map_or(String::new(), |_| format!("{path}: "))
}

/// Value that must be a JSON object: serde would also fill a struct from an array, field by field.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// Reads a list of JSON objects, if there is one.
///
/// # Errors
/// Those of serde, and when an element is no object.
pub fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    d: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let entries = Option::<Vec<Object<T>>>::deserialize(d)?;
    Ok(entries.map(|entries| entries.into_iter().map(|entry| entry.0).collect()))
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}
