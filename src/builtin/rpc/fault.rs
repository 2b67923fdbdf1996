//! Errors of methods, as clients receive them. The same cause has different codes in different methods, as in SPDK.

use nix::errno::Errno;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(super) const INVALID_STATE: i32 = -1;
pub(super) const INVALID_REQUEST: i32 = -32600;
pub(super) const METHOD_NOT_FOUND: i32 = -32601;
pub(super) const INVALID_PARAMS: i32 = -32602;
pub(super) const INTERNAL: i32 = -32603;

/// JSON-RPC error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RpcError {
    pub(super) code: i32,
    pub(super) message: String,
}

/// Text of `errno` in the C library, which SPDK sends as the message.
fn text(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}

impl RpcError {
    pub(super) fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Error of a bdev method, with the negative `errno` as the code.
    pub(super) fn bdev(errno: Errno) -> Self {
        Self::new(-(errno as i32), text(errno))
    }

    /// Error of a vhost method, with `errno` only as text.
    pub(super) fn vhost(errno: Errno) -> Self {
        Self::new(INVALID_PARAMS, text(errno))
    }

    /// Error of `vhost_get_controllers` for a controller that does not exist.
    pub(super) fn no_controller() -> Self {
        Self::new(INTERNAL, text(Errno::ENODEV))
    }

    pub(super) fn value(&self) -> Value {
        json!({ "code": self.code, "message": self.message })
    }
}

/// Decodes the parameters of a bdev method, where an invalid parameter is an internal error.
///
/// # Errors
/// When a member is missing, unknown or of another type.
pub(super) fn decode<T: DeserializeOwned>(params: Option<Value>) -> Result<T, RpcError> {
    let params = params.unwrap_or_else(|| json!({}));
    serde_json::from_value(params)
        .map_err(|_| RpcError::new(INTERNAL, "spdk_json_decode_object failed"))
}

/// Decodes the parameters of a vhost method.
///
/// # Errors
/// When a member is missing or of another type.
pub(super) fn decode_vhost<T: DeserializeOwned>(params: Option<Value>) -> Result<T, RpcError> {
    let params = params.unwrap_or_else(|| json!({}));
    serde_json::from_value(params).map_err(|_| RpcError::vhost(Errno::EINVAL))
}

/// Checks that `method` was called without parameters.
///
/// # Errors
/// When there are parameters, even an empty object.
pub(super) fn no_params(method: &str, params: Option<&Value>) -> Result<(), RpcError> {
    match params {
        None => Ok(()),
        Some(_) => Err(RpcError::new(INVALID_PARAMS, format!("{method} requires no parameters"))),
    }
}
