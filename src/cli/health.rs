//! `vhost-agent health`.

use anyhow::Result;
use clap::Args;
use hyper::Method;

use super::reach::{ANSWER, Owner, Place};
use super::render::{print_health, print_proven};
use super::{Output, exit};
use crate::config::Settings;
use crate::daemon::Core;
use crate::model::deep::ProvenHealth;
use crate::model::path::CleanPath;
use crate::model::target::{TargetHealth, TargetName, TargetState};

/// Which target.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Its name, which is its container's
    #[arg(default_value = "zbs-vhost")]
    name: TargetName,
    /// Its control socket
    #[arg(long, value_name = "FILE")]
    control_sock: Option<CleanPath>,
    /// Prove that it does I/O: write to a small disk of its own and read it back
    #[arg(long)]
    deep: bool,
}

pub(super) async fn run(place: Place, which: Which, output: Output) -> Result<u8> {
    let owner = place.looker().await?;
    let control = which.control_sock.as_ref();
    if which.deep {
        let health = proven(&owner, &place.settings, &which.name, control).await?;
        print_proven(&health, output)?;
        return Ok(if health.is_good() { exit::HOLDS } else { exit::FAILED });
    }
    let health: TargetHealth = match owner {
        Owner::Here(core, _lock) => {
            let control = usual(&core, &place.settings, &which.name, control)?;
            core.targets.health(&which.name, &control).await
        }
        Owner::There(remote) => {
            let path = route(&which.name, control, false);
            remote.call(Method::GET, &path, None::<&()>, ANSWER).await?
        }
    };
    print_health(&health, output)?;
    Ok(if health.state == TargetState::Serving { exit::HOLDS } else { exit::FAILED })
}

/// The control socket: as it was given, as the target is wanted, or as the settings have it.
fn usual(
    core: &Core,
    settings: &Settings,
    name: &TargetName,
    given: Option<&CleanPath>,
) -> Result<CleanPath> {
    let wanted = || core.desired.get(name).map(|spec| spec.control_sock);
    let defaults = settings.target.clone();
    match given.cloned().or_else(wanted) {
        Some(control) => Ok(control),
        None => Ok(defaults.control_in(&defaults.socket_dir)?),
    }
}

fn route(name: &TargetName, control: Option<&CleanPath>, deep: bool) -> String {
    let control = control.map_or(String::new(), |path| format!("&controlSock={}", path.as_str()));
    format!("/v1/targets/{name}/health?deep={deep}{control}")
}

/// How a target stands, with the I/O through it.
pub(super) async fn proven(
    owner: &Owner,
    settings: &Settings,
    name: &TargetName,
    control: Option<&CleanPath>,
) -> Result<ProvenHealth> {
    match owner {
        Owner::Here(core, _lock) => {
            let control = usual(core, settings, name, control)?;
            let health = core.targets.health(name, &control);
            let (health, deep) = tokio::join!(health, core.targets.deep_health(&control));
            Ok(ProvenHealth::of(health, deep))
        }
        Owner::There(remote) => {
            let path = route(name, control, true);
            let within = ANSWER + settings.health.deep_timeout;
            remote.call(Method::GET, &path, None::<&()>, within).await
        }
    }
}
