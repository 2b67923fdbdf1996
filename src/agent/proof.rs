//! Who proves that a target does I/O, as those see it who ask.

use std::pin::Pin;

use crate::model::deep::DeepHealth;
use crate::model::path::CleanPath;

/// Proves that I/O goes through a target.
pub trait ProvesIo: Send + Sync {
    /// What I/O through the target with that control socket came to.
    fn prove<'a>(
        &'a self,
        control: &'a CleanPath,
    ) -> Pin<Box<dyn Future<Output = DeepHealth> + Send + 'a>>;
}
