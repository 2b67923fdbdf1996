//! `vhost-agent health`.

use anyhow::Result;
use clap::Args;
use hyper::Method;

use super::reach::{ANSWER, Owner, Place};
use super::render::{print_health, print_proven};
use super::{Output, exit};
use crate::config::Settings;
use crate::model::deep::ProvenHealth;
use crate::model::target::{CleanPath, TargetHealth, TargetName, TargetState};

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
    let defaults = place.settings.target_defaults();
    let control = match which.control_sock {
        Some(path) => path,
        None => defaults.control_sock(&defaults.socket_dir)?,
    };
    let owner = place.looker().await?;
    if which.deep {
        let health = proven(&owner, &place.settings, &which.name, &control).await?;
        print_proven(&health, output)?;
        return Ok(if health.is_good() { exit::HOLDS } else { exit::FAILED });
    }
    let health: TargetHealth = match owner {
        Owner::Here(core, _lock) => core.health.health(&which.name, &control).await,
        Owner::There(remote) => {
            let path = route(&which.name, &control);
            remote.call(Method::GET, &path, None::<&()>, ANSWER).await?
        }
    };
    print_health(&health, output)?;
    Ok(if health.state == TargetState::Serving { exit::HOLDS } else { exit::FAILED })
}

fn route(name: &TargetName, control: &CleanPath) -> String {
    format!("/v1/targets/{name}/health?controlSock={}", control.as_str())
}

/// How a target stands, with the I/O through it.
pub(super) async fn proven(
    owner: &Owner,
    settings: &Settings,
    name: &TargetName,
    control: &CleanPath,
) -> Result<ProvenHealth> {
    match owner {
        Owner::Here(core, _lock) => {
            let health = core.health.health(name, control);
            let (health, deep) = tokio::join!(health, core.proof.prove(control));
            Ok(ProvenHealth::of(health, deep))
        }
        Owner::There(remote) => {
            let path = format!("{}&deep=true", route(name, control));
            let within = ANSWER + settings.health.deep_timeout.0;
            remote.call(Method::GET, &path, None::<&()>, within).await
        }
    }
}
