//! Outbound reports to the controller.
//!
//! A call that is answered later gets an [`outbox::TaskSlot`] on admission; its result goes into the outbox, and
//! `deliver` offers it until the controller accepts it. `report` publishes the node's status, `progress_posts` the
//! progress of a call that asks for it.

pub mod client;
pub mod deliver;
pub mod identity;
pub mod outbox;
pub mod progress_posts;
pub mod reaches;
pub mod report;
