//! Looking at the machine: facts in the model's types, no opinions.

pub mod engine;
pub mod hypervisor;
pub mod memory;
pub mod node;
pub mod target;
pub mod volumes;

use crate::model::fault::Fault;

/// Runs blocking work off the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        Fault::new("internal", format!("work on the host broke off: {e}; this is a bug, report it"))
    })
}
