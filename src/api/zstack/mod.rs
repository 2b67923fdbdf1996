//! Compatible routes, exactly as ZStack's management node calls them.
//!
//! A call with `taskuuid` and `callbackurl` is answered 200 at once and its result called back; the same call without
//! them is answered with the result itself. Unknown fields are ignored: the controller adds some with every version.
//! Fields are validated here.

#[cfg(fuzzing)]
pub mod fuzz_entry;
pub mod health;
pub mod host;
pub mod passthrough;
pub mod prepareenv;
pub mod storage;
pub mod target;
pub mod task;
pub mod volume;
pub mod wire;
