//! How targets stand: known from answers, never from a connection alone.
//!
//! `probe` asks the engine and the control socket, once for all who want to know at the same time;
//! `judge` makes a state of what they said.

pub mod judge;
pub mod probe;
