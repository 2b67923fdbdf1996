//! `vhost-agent serve`.

use anyhow::Result;

use super::exit;
use super::reach::NodeRoot;
use crate::daemon;

pub(super) async fn run(place: NodeRoot) -> Result<u8> {
    daemon::serve(place.settings, place.root).await?;
    Ok(exit::HOLDS)
}
