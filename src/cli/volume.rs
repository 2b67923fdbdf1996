//! `vhost-agent volume`: volumes of the running agent, as they need a permanent owner.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Map, Value};

use super::agent_client::{Agent, NodeRoot};
use super::render::{print, print_json, print_volume, print_volumes};
use super::{Output, Usage, exit};
use crate::api::v1::volumes::{ResizeBody, VolumeBody, VolumesView};
use crate::model::path::CleanPath;
use crate::model::target::TargetName;
use crate::model::volume::{Backing, VolumeName, VolumeState, VolumeView};

/// Time limit for a call on a volume: longer than a target may take, even with other volumes before it.
const LONG: Duration = Duration::from_secs(600);

/// Actions on volumes.
#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// List the desired volumes of a target, with their status
    List(Of),
    /// Show one volume: exits with 0 if it serves
    Show(VolumeArg),
    /// Activate a volume; it is persistent, and recreated whenever its target is back
    Activate(Box<VolumeSpecArgs>),
    /// Deactivate a volume
    Deactivate(Away),
    /// Resize a volume; a connected virtual machine sees the new size
    Resize(Size),
}

/// Target of a command.
#[derive(Debug, Args)]
pub(super) struct Of {
    /// The target's name
    #[arg(long, value_name = "NAME", default_value = "zbs-vhost")]
    target: TargetName,
}

/// Volume of a command.
#[derive(Debug, Args)]
pub(super) struct VolumeArg {
    /// Name of the volume and of its socket
    name: VolumeName,
    #[command(flatten)]
    of: Of,
}

impl VolumeArg {
    fn path(&self) -> String {
        format!("/v1/targets/{}/volumes/{}", self.of.target, self.name)
    }
}

/// Spec of a volume.
#[derive(Debug, Args)]
pub(super) struct VolumeSpecArgs {
    #[command(flatten)]
    which: VolumeArg,
    #[command(flatten)]
    backing: BackingFlags,
    /// Block size in bytes: for --aio on a file, and for --malloc-mib
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["zbs", "raw"])]
    block_size: Option<u32>,
    /// Parameters of the method, a JSON object
    #[arg(long, value_name = "JSON", conflicts_with_all = ["zbs", "aio", "malloc_mib"])]
    params: Option<String>,
    /// Method that deletes its bdev [default: --raw with _delete for _create]
    #[arg(long, value_name = "METHOD", conflicts_with_all = ["zbs", "aio", "malloc_mib"])]
    delete_method: Option<String>,
    /// Name of its bdev [default: the volume's name]
    #[arg(long, value_name = "NAME")]
    bdev: Option<VolumeName>,
    /// Forbid virtual machines to write
    #[arg(long)]
    read_only: bool,
    /// CPUs of its requests, such as 0x3 or [0,1] [default: its target's]
    #[arg(long, value_name = "CPUS")]
    cpumask: Option<String>,
}

/// Storage of a volume.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct BackingFlags {
    /// ZBS volume
    #[arg(long, value_name = "POOL/VOLUME")]
    zbs: Option<String>,
    /// File or block device, as the target's container sees it
    #[arg(long, value_name = "FILE")]
    aio: Option<CleanPath>,
    /// Disk in the target's memory, of this size in MiB
    #[arg(long, value_name = "MIB")]
    malloc_mib: Option<u64>,
    /// Bdev made by that method of the target, such as bdev_rbd_create
    #[arg(long, value_name = "METHOD")]
    raw: Option<String>,
}

/// Volume to deactivate.
#[derive(Debug, Args)]
pub(super) struct Away {
    #[command(flatten)]
    which: VolumeArg,
    /// Wait until a connected virtual machine has gone: its volume is never removed before
    #[arg(long, alias = "force")]
    wait: bool,
    /// Time limit of that, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// Volume with its new size.
#[derive(Debug, Args)]
pub(super) struct Size {
    #[command(flatten)]
    which: VolumeArg,
    /// New size in MiB
    #[arg(long, value_name = "MIB")]
    size_mib: u64,
}

impl VolumeSpecArgs {
    fn backing(&self) -> Result<Backing, Usage> {
        let BackingFlags { zbs, aio, malloc_mib, raw } = &self.backing;
        let block_size = self.block_size;
        let params = || match &self.params {
            Some(text) => serde_json::from_str(text)
                .map_err(|e| Usage(format!("--params is no JSON object: {e}"))),
            None => Ok(Map::new()),
        };
        Ok(match (zbs, aio, malloc_mib, raw) {
            (Some(path), ..) => Backing::Zbs { path: path.clone() },
            (_, Some(path), ..) => Backing::Aio { path: path.clone(), block_size },
            (_, _, Some(size_mib), _) => {
                Backing::Malloc { size_mib: *size_mib, block_size: block_size.unwrap_or(512) }
            }
            (.., Some(method)) => Backing::Raw {
                method: method.clone(),
                params: params()?,
                delete_method: self.delete_method.clone(),
            },
            (None, None, None, None) => {
                return Err(Usage("say one of --zbs, --aio, --malloc-mib, --raw".to_string()));
            }
        })
    }

    fn body(&self) -> Result<VolumeBody, Usage> {
        Ok(VolumeBody {
            name: None,
            bdev: self.bdev.clone(),
            backing: self.backing()?,
            read_only: self.read_only,
            cpumask: self.cpumask.clone(),
        })
    }
}

impl Away {
    fn path(&self) -> String {
        let wait = self.wait.then(|| "wait=true".to_string());
        let timeout = self.timeout.map(|it| format!("timeoutMs={}", it.as_millis()));
        let query: Vec<String> = wait.into_iter().chain(timeout).collect();
        format!("{}?{}", self.which.path(), query.join("&"))
    }
}

pub(super) async fn run(place: NodeRoot, command: VolumeCommand, output: Output) -> Result<u8> {
    match command {
        VolumeCommand::List(of) => list(&place.agent().await?, &of, output).await,
        VolumeCommand::Show(which) => {
            let call = (Method::GET, which.path(), None::<&()>);
            call_and_print(&place.agent().await?, call, output).await
        }
        VolumeCommand::Activate(args) => {
            let body = args.body()?;
            let call = (Method::PUT, args.which.path(), Some(&body));
            call_and_print(&place.agent().await?, call, output).await
        }
        VolumeCommand::Deactivate(away) => deactivate(&place.agent().await?, &away, output).await,
        VolumeCommand::Resize(Size { which, size_mib }) => {
            let body = ResizeBody { size_mib };
            let call = (Method::POST, format!("{}/resize", which.path()), Some(&body));
            call_and_print(&place.agent().await?, call, output).await
        }
    }
}

async fn list(agent: &Agent, of: &Of, output: Output) -> Result<u8> {
    let path = format!("/v1/targets/{}/volumes", of.target);
    let reply: VolumesView = agent.call(Method::GET, &path, None::<&()>, LONG).await?;
    print_volumes(&reply.volumes, output)?;
    Ok(exit::HOLDS)
}

/// Calls a route of a volume, and prints the volume.
async fn call_and_print(
    agent: &Agent,
    (method, path, body): (Method, String, Option<&impl serde::Serialize>),
    output: Output,
) -> Result<u8> {
    let volume: VolumeView = agent.call(method, &path, body, LONG).await?;
    print_volume(&volume, output)?;
    let serves = volume.status.state == VolumeState::Serving;
    Ok(if serves { exit::HOLDS } else { exit::FAILED })
}

async fn deactivate(agent: &Agent, away: &Away, output: Output) -> Result<u8> {
    let within = LONG + away.timeout.unwrap_or_default();
    let reply: Value = agent.call(Method::DELETE, &away.path(), None::<&()>, within).await?;
    match output {
        Output::Json => print_json(&reply)?,
        Output::Table => {
            let VolumeArg { name, of } = &away.which;
            print(&format!("{name} is not in {} any more", of.target))?;
        }
    }
    Ok(exit::HOLDS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: VolumeCommand,
    }

    fn read(line: &str) -> Result<VolumeCommand, clap::Error> {
        let words = ["volume"].into_iter().chain(line.split(' '));
        Line::try_parse_from(words).map(|line| line.command)
    }

    fn args(line: &str) -> VolumeBody {
        match read(line).unwrap() {
            VolumeCommand::Activate(args) => args.body().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_backing_has_its_flags() {
        let zbs = args("activate v --zbs p/v --bdev b --read-only --cpumask 0x3");
        assert_eq!(zbs.backing, Backing::Zbs { path: "p/v".into() });
        assert_eq!((zbs.bdev.as_ref().map(VolumeName::as_str), zbs.read_only), (Some("b"), true));
        let aio = Backing::Aio { path: "/dev/sdb".parse().unwrap(), block_size: Some(4096) };
        assert_eq!(args("activate v --aio /dev/sdb --block-size 4096").backing, aio);
        let malloc = Backing::Malloc { size_mib: 16, block_size: 512 };
        assert_eq!(args("activate v --malloc-mib 16").backing, malloc);
        let raw = args(r#"activate v --raw bdev_null_create --params {"num_blocks":8}"#).backing;
        let Backing::Raw { method, params, delete_method: None } = raw else { panic!("{raw:?}") };
        assert_eq!((method.as_str(), &params["num_blocks"]), ("bdev_null_create", &8.into()));
    }

    #[test]
    fn flags_that_do_not_go_together_are_refused() {
        for line in [
            "activate v",
            "activate v --zbs p/v --malloc-mib 1",
            "activate v --zbs p/v --block-size 512",
            "activate v --malloc-mib 1 --params {}",
            "activate ../v --malloc-mib 1",
            "activate v --aio relative",
            "deactivate v --timeout soon",
            "resize v",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
        let Ok(VolumeCommand::Activate(args)) =
            read("activate v --raw bdev_null_create --params [1]")
        else {
            panic!("an activation")
        };
        assert!(args.body().unwrap_err().0.contains("no JSON object"));
    }

    #[test]
    fn what_is_asked_for_is_in_the_address() {
        let VolumeCommand::Deactivate(away) =
            read("deactivate v --target t --wait --timeout 5m").unwrap()
        else {
            panic!("a deactivation")
        };
        assert_eq!(away.path(), "/v1/targets/t/volumes/v?wait=true&timeoutMs=300000");
        let VolumeCommand::Show(which) = read("show v").unwrap() else { panic!("a look") };
        assert_eq!(which.path(), "/v1/targets/zbs-vhost/volumes/v");
    }
}
