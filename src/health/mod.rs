//! How targets stand: known from answers, never from a connection alone.
//!
//! `probe` asks the engine and the control socket, bounded; `judge` makes a state of what they said;
//! `watch` keeps at it, so that the state is known before anybody asks.
//! `backoff` says when one that fell is brought up again.
//! `deep` proves by I/O what an answer cannot.

pub mod backoff;
pub mod deep;
pub mod judge;
pub mod probe;
pub mod watch;
