//! Looking at the machine: facts in the model's types, no opinions.

pub mod engine;
pub mod figures;
pub mod hypervisor;
pub mod memory;
pub mod node;
pub mod target;
pub mod volumes;

use crate::model::code::Code;
use crate::model::fault::Fault;

/// Runs blocking work off the runtime, from now on.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, Fault>> {
    let done = tokio::task::spawn_blocking(work);
    async {
        done.await.map_err(|e| {
            let text = format!("work on the host broke off: {e}; this is a bug, report it");
            Fault::new(Code::Internal, text)
        })
    }
}
