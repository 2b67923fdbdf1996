//! `vhost-agent target`: the built-in target, started as SPDK's vhost is.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::exit;
use crate::builtin::{self, Cores};

/// Flags of SPDK's vhost application, so that one command line fits both.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Control socket (JSON-RPC)
    #[arg(
        short = 'r',
        long = "rpc-socket",
        value_name = "SOCKET",
        default_value = "/var/tmp/spdk.sock"
    )]
    rpc_socket: PathBuf,
    /// Folder of the vhost sockets
    #[arg(short = 'S', value_name = "DIR", default_value = ".")]
    socket_dir: PathBuf,
    /// Cores for the threads: a mask (0x3) or a list ([0,1], 0-1); without it the kernel chooses
    #[arg(short = 'm', long = "cpumask", value_name = "CORES")]
    cores: Option<Cores>,
    /// Limit of the memory of malloc bdevs; taken as they are written, not at the start
    #[arg(short = 's', long = "mem-size", value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Only serve start-up methods until framework_start_init
    #[arg(long)]
    wait_for_rpc: bool,
    /// Serve bdev_zbs_*: names of ZBS volumes map to files in this folder; a missing one is created, 1 GiB and sparse
    #[arg(long, value_name = "DIR")]
    zbs_dir: Option<PathBuf>,
    /// Accepted and ignored: no hugepages are taken
    #[arg(long, value_name = "DIR")]
    huge_dir: Option<PathBuf>,
    /// Accepted and ignored: no device addresses memory
    #[arg(long, value_name = "MODE")]
    iova_mode: Option<String>,
    /// Accepted and ignored
    #[arg(short = 'z', value_name = "FILE")]
    zbs_config: Option<PathBuf>,
    /// Inject the faults in this file, for tests
    #[arg(long, value_name = "FILE", hide = true)]
    debug_faults: Option<PathBuf>,
}

pub(super) fn run(flags: Flags) -> Result<u8> {
    let ignored = [
        ("--huge-dir", flags.huge_dir.map(|dir| dir.display().to_string())),
        ("--iova-mode", flags.iova_mode),
        ("-z", flags.zbs_config.map(|file| file.display().to_string())),
    ];
    for (flag, value) in ignored {
        tracing::debug!(flag, value, "{flag} is ignored: the built-in target does not need it");
    }
    builtin::run(&builtin::StartOptions {
        rpc_socket: flags.rpc_socket,
        socket_dir: flags.socket_dir,
        cores: flags.cores,
        memory_mib: flags.memory_mib,
        wait_for_rpc: flags.wait_for_rpc,
        zbs_dir: flags.zbs_dir,
        debug_faults: flags.debug_faults,
    })?;
    Ok(exit::HOLDS)
}
