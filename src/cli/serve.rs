//! `vhost-agent serve`.

use anyhow::Result;

use super::agent_client::NodeRoot;
use super::exit;
use crate::daemon;

pub(super) async fn run(place: NodeRoot) -> Result<u8> {
    daemon::serve(place.settings, place.root).await?;
    Ok(exit::HOLDS)
}
