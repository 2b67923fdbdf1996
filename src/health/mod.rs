//! How targets stand: known from answers, never from a connection alone.
//!
//! `probe` asks the engine and the control socket, bounded; `watch` keeps at it, so that what is seen is known
//! before anybody asks; `plan::health` makes a state of it, and `plan::lifecycle` decides what is done about it.
//! `deep` proves by I/O what an answer cannot.

pub mod deep;
pub mod probe;
pub mod watch;
