//! What one room asks of another, tied to the concrete types that answer it.

use std::pin::Pin;

use crate::agent::observe::hypervisor::Hypervisor;
use crate::api::fallback::Fallback;
use crate::api::zstack::host::AsksVersions;
use crate::config::Settings;
use crate::host::spawn::Processes;

/// The hypervisor's versions as the compatible routes ask for them.
pub(super) struct Versions(pub(super) Hypervisor<Processes>);

impl AsksVersions for Versions {
    fn versions(&self) -> Pin<Box<dyn Future<Output = (String, String)> + Send + '_>> {
        Box::pin(async {
            let versions = self.0.versions().await;
            (versions.libvirt, versions.qemu)
        })
    }
}

/// The way to the legacy agent, where the settings name one.
pub(super) fn fallback(settings: &Settings) -> Option<Fallback> {
    let address = settings.fallback()?;
    tracing::info!(%address, "what this agent does not serve goes to {address} (fallback_url)");
    Some(Fallback::new(address, settings.listen, &settings.http))
}
