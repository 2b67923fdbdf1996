//! `vhost-agent deploy` and `destroy`.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use hyper::Method;

use super::prepare::watched;
use super::reach::{Owner, Place};
use super::render::{ProgressBars, print_prepare};
use super::{Output, Usage, exit};
use crate::agent::target::TargetWish;
use crate::api::v1::targets::TargetBody;
use crate::model::prepare::{Outcome, PrepareReport};
use crate::model::target::{CleanPath, EnsureWish, TargetKind, TargetName};

/// More than an image may take to load, and a target to come up.
const LONG: Duration = Duration::from_secs(1800);

/// What a target runs.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// ZBS's vhost
    Zbs,
    /// SPDK's vhost
    Spdk,
    /// The agent's own, in an image that it makes itself
    BuiltIn,
}

/// Which target, and how it is to be.
#[derive(Debug, Args)]
pub(super) struct Wishes {
    /// Its name, which is its container's
    #[arg(default_value = "zbs-vhost")]
    name: TargetName,
    /// What it runs [default: the setting target.kind]
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Its image
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// A tar that holds the image
    #[arg(long, value_name = "FILE")]
    image_tar: Option<CleanPath>,
    /// Its CPUs, such as [6,7], 6-7 or 0xc0
    #[arg(long, value_name = "LIST", conflicts_with = "core_count")]
    cores: Option<String>,
    /// So many CPUs, chosen by topology
    #[arg(long, value_name = "N")]
    core_count: Option<u32>,
    /// The folder of its sockets
    #[arg(long, value_name = "DIR")]
    socket_dir: Option<CleanPath>,
    /// Its control socket
    #[arg(long, value_name = "FILE")]
    control_sock: Option<CleanPath>,
    /// MiB of hugepages that it takes
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Replace one that differs
    #[arg(long)]
    recreate: bool,
    /// Also with virtual machines connected: their disks stop meanwhile
    #[arg(long)]
    force: bool,
    /// Show what would be done; changes nothing
    #[arg(long)]
    dry_run: bool,
}

impl Wishes {
    fn body(&self) -> TargetBody {
        let kind = self.kind.map(|kind| match kind {
            Kind::Zbs => TargetKind::Zbs,
            Kind::Spdk => TargetKind::Spdk,
            Kind::BuiltIn => TargetKind::BuiltIn,
        });
        TargetBody {
            kind,
            image: self.image.clone(),
            image_tar: self.image_tar.clone(),
            cores: self.cores.clone(),
            core_count: self.core_count,
            socket_dir: self.socket_dir.clone(),
            control_sock: self.control_sock.clone(),
            client_conf: None,
            memory_mib: self.memory_mib,
        }
    }
}

/// Whether it is to run or to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Deploy,
    Destroy,
}

pub(super) async fn run(place: Place, wishes: Wishes, verb: Verb, output: Output) -> Result<u8> {
    let defaults = place.settings.target_defaults();
    let spec = wishes.body().into_spec(wishes.name.clone(), &defaults);
    let spec = spec.map_err(|fault| Usage(fault.text))?;
    let bars = ProgressBars::new(output, wishes.dry_run);
    let owner = if wishes.dry_run { place.looker().await? } else { place.owner().await? };
    let report: PrepareReport = match owner {
        Owner::Here(core, _lock) => {
            let wish = match verb {
                Verb::Deploy => {
                    let Wishes { recreate, force, .. } = wishes;
                    TargetWish::Ensure(spec, EnsureWish { recreate, force })
                }
                Verb::Destroy => TargetWish::Destroy { spec, force: wishes.force },
            };
            watched(&core, core.targets.bring_about(wish, wishes.dry_run), &bars).await?
        }
        Owner::There(remote) => {
            let Wishes { name, dry_run, recreate, force, .. } = &wishes;
            let path =
                format!("/v1/targets/{name}?dryRun={dry_run}&recreate={recreate}&force={force}");
            let method = match verb {
                Verb::Deploy => Method::PUT,
                Verb::Destroy => Method::DELETE,
            };
            remote.call(method, &path, Some(&wishes.body()), LONG).await?
        }
    };
    bars.clear();
    print_prepare(&report, output)?;
    Ok(match report.outcome {
        Outcome::Holds | Outcome::Changed => exit::HOLDS,
        Outcome::WouldChange => exit::WOULD_CHANGE,
        Outcome::Failed => exit::FAILED,
    })
}
