//! Outbound: what the agent tells the controller.
//!
//! A call that is answered later gets a [`outbox::Slot`] when it is taken in; its result goes into
//! the outbox, and `deliver` offers it until the controller takes it. How the node stands is told unasked
//! by `report`, how long work goes on, where a call asks for it, by `progress`.

pub mod client;
pub mod deliver;
pub mod identity;
pub mod outbox;
pub mod progress;
pub mod reach;
pub mod report;
