//! Adapters: ports of one module, implemented by concrete types of another.

use std::pin::Pin;

use crate::agent::observe::hypervisor::Hypervisor;
use crate::agent::storage::StorageClient;
use crate::api::fallback::Fallback;
use crate::api::zstack::host::AsksVersions;
use crate::api::zstack::storage::{ServesStorage, StorageFuture};
use crate::config::Settings;
use crate::host::spawn::{HostWide, Processes};
use crate::model::prepare::Outcome;
use crate::model::storage::{Dependencies, HeartbeatVolume};

/// Adapter from the hypervisor to the compatible routes' port for versions.
pub(super) struct VersionsAdapter(pub(super) Hypervisor<Processes>);

impl AsksVersions for VersionsAdapter {
    fn versions(&self) -> Pin<Box<dyn Future<Output = (String, String)> + Send + '_>> {
        Box::pin(async {
            let versions = self.0.versions().await;
            (versions.libvirt, versions.qemu)
        })
    }
}

/// Adapter from the storage's client to the compatible routes' port for it.
pub(super) struct StorageAdapter(pub(super) StorageClient<HostWide>);

impl ServesStorage for StorageAdapter {
    fn read_heartbeat(&self, volume: HeartbeatVolume) -> StorageFuture<'_, ()> {
        Box::pin(self.0.read_heartbeat(volume))
    }

    fn provide(&self, wanted: Dependencies) -> StorageFuture<'_, Outcome> {
        Box::pin(self.0.provide(wanted))
    }
}

/// Builds the forwarder to the legacy agent, if the settings name one.
pub(super) fn fallback(settings: &Settings) -> Option<Fallback> {
    let address = settings.fallback()?;
    tracing::info!(%address, "requests that this agent does not serve are forwarded to {address} (fallback_url)");
    Some(Fallback::new(address, settings.listen, &settings.http))
}
