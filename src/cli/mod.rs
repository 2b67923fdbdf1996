//! Command line: one file for each subcommand, rendering in one place.
//!
//! A command that changes or shows the node calls the native routes of the agent that runs on it, for there is one
//! owner; if none runs, it calls the same routes over owners in its own process.

mod agent_client;
mod config;
mod deploy;
mod doctor;
mod domains;
mod health;
mod libvirt_hook;
mod log;
mod pools;
mod prepare;
mod reclaim;
mod render;
mod serve;
mod setup;
pub mod state;
mod status;
mod target;
mod up;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{ConfigError, Loaded, Overrides, environment, load};
use crate::model::fault::chain;

/// Exit codes, as documented in `--help`.
pub mod exit {
    /// Success: the desired state held before, or was reached.
    pub const HOLDS: u8 = 0;
    /// Failure.
    pub const FAILED: u8 = 1;
    /// Error in the command or the settings.
    pub const USAGE: u8 = 2;
    /// Plan with pending changes.
    pub const WOULD_CHANGE: u8 = 3;

    /// Exit code of a report.
    pub(super) fn of(outcome: crate::model::prepare::Outcome) -> u8 {
        use crate::model::prepare::Outcome;
        match outcome {
            Outcome::Holds | Outcome::Changed => HOLDS,
            Outcome::WouldChange => WOULD_CHANGE,
            Outcome::Failed => FAILED,
        }
    }
}

/// Command-line arguments.
#[derive(Debug, Parser)]
#[command(
    name = "vhost-agent",
    version,
    about = "Prepares a compute node for vhost-user storage targets and keeps it fit",
    after_help = "Exit codes: 0 it holds (or holds now), 1 it failed, 2 wrong usage or settings, 3 a plan that would change something"
)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
struct Global {
    /// Address to listen on, such as [::]:7070
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Settings file; config.d/*.toml beside it is read too
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the agent's state
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Folder of the logs of programs that the agent runs
    #[arg(long, global = true, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Folder used as / (/sys, /proc, /etc/docker, …)
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Output format
    #[arg(long, global = true, value_name = "FORM", default_value = "table")]
    output: Output,
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables for people.
    #[value(alias = "text")]
    Table,
    /// JSON for programs.
    Json,
}

/// Subcommands of the agent.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Serve,
    /// Show what prepare would do; changes nothing
    Plan(prepare::PrepareArgs),
    /// Prepare this node: hugepages, hugetlbfs, Docker
    Prepare(prepare::PrepareArgs),
    /// Prepare this node, deploy a target, and verify its I/O
    Up(deploy::DeployArgs),
    /// Deploy a target: a vhost-user process in its container
    Deploy(deploy::DeployArgs),
    /// Remove a target
    Destroy(deploy::DeployArgs),
    /// Show a target's health: exits with 0 if it serves, with --deep if I/O through it is verified
    Health(health::TargetArg),
    /// Volumes: a bdev and a vhost controller in a target, for one disk. Requires a running agent
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Show the node
    Status,
    /// Check the node: exits with 0 unless a check fails
    Doctor,
    /// List the virtual machines of libvirt with vhost-user disks or hugepages, and what hinders their next start
    Domains,
    /// Give back unused hugepages that the agent has added
    Reclaim(reclaim::PagesArg),
    /// Hugepage pools
    #[command(subcommand)]
    Pools(pools::PoolsCommand),
    /// State of the agent: show, export and import it
    #[command(subcommand)]
    State(state::StateCommand),
    /// Configure remote callers of this agent: writes the settings for it, and checks them
    Setup(setup::SetupArgs),
    /// Settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Reserve the hugepages of a virtual machine: called by libvirt's hook, with the definition on standard input
    LibvirtHook(libvirt_hook::HookArgs),
    /// Run the built-in target: vhost-user disks, controlled like an SPDK vhost application
    Target(target::Flags),
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the command and returns the process's exit code.
pub fn run(arguments: Arguments) -> ExitCode {
    let Arguments { global, command } = arguments;
    let overrides = Overrides {
        config: global.config.clone(),
        listen: global.listen.clone(),
        state_dir: global.state_dir.clone(),
        log_dir: global.log_dir.clone(),
        replaced: None,
    };
    if let Command::Setup(args) = command {
        return exit_code(setup::run(overrides, &args, global.output));
    }
    if let Command::LibvirtHook(args) = command {
        return libvirt(&global, args, &overrides);
    }
    let loaded = match load(&overrides, environment()) {
        Ok(loaded) => loaded,
        Err(e) => {
            eprintln!("vhost-agent: {}", chain(&e));
            return ExitCode::from(exit::USAGE);
        }
    };
    exit_code(dispatch(&global, command, loaded))
}

/// Runs libvirt's hook. Whatever cannot be read, settings included, keeps no virtual machine from its start.
fn libvirt(global: &Global, args: libvirt_hook::HookArgs, overrides: &Overrides) -> ExitCode {
    let settings = load(overrides, environment()).map(|loaded| loaded.settings);
    let settings = settings.unwrap_or_else(|e| {
        eprintln!("vhost-agent: the defaults apply, as the settings cannot be used: {}", chain(&e));
        crate::config::Settings::default()
    });
    let call = args.read(&global.root, &settings.libvirt).unwrap_or_else(|e| {
        eprintln!("vhost-agent: no hugepages are reserved: {e:#}");
        None
    });
    let Some(call) = call else { return ExitCode::from(exit::HOLDS) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    exit_code(runtime.map_err(Into::into).map(|runtime| {
        let node = agent_client::NodeRoot { settings, root: global.root.clone() };
        runtime.block_on(call.run(&node))
    }))
}

fn exit_code(done: anyhow::Result<u8>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("vhost-agent: {e:#}");
            let usage = e.is::<Usage>() || e.is::<ConfigError>();
            ExitCode::from(if usage { exit::USAGE } else { exit::FAILED })
        }
    }
}

fn dispatch(global: &Global, command: Command, loaded: Loaded) -> anyhow::Result<u8> {
    let daemon = matches!(command, Command::Serve | Command::Target(_));
    if let Command::Config(command) = command {
        return config::run(&command, &loaded, global.output);
    }
    let settings = &loaded.settings;
    let _log = log::start(&settings.log, &settings.access.audit_file, daemon)?;
    if let Command::Target(flags) = command {
        return target::run(flags);
    }
    // Handlers only pass work on, and slow work is on blocking threads: with one thread for them all, no handover
    // between owners has to wake another thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let node = agent_client::NodeRoot { settings: loaded.settings, root: global.root.clone() };
        match command {
            Command::Serve => serve::run(node).await,
            Command::Plan(args) => prepare::run(node, args, true, global.output).await,
            Command::Prepare(args) => prepare::run(node, args, false, global.output).await,
            Command::Up(args) => up::run(node, args, global.output).await,
            Command::Deploy(args) => {
                deploy::run(node, args, deploy::Verb::Deploy, global.output).await
            }
            Command::Destroy(args) => {
                deploy::run(node, args, deploy::Verb::Destroy, global.output).await
            }
            Command::Health(which) => health::run(node, which, global.output).await,
            Command::Volume(command) => volume::run(node, command, global.output).await,
            Command::Status => status::run(node, global.output).await,
            Command::Doctor => doctor::run(node, global.output).await,
            Command::Domains => domains::run(node, global.output).await,
            Command::Reclaim(which) => reclaim::run(node, which, global.output).await,
            Command::Pools(command) => pools::run(node, &command, global.output).await,
            Command::State(command) => state::run(node, command, global.output).await,
            Command::Setup(_)
            | Command::Config(_)
            | Command::Target(_)
            | Command::LibvirtHook(_) => Ok(exit::HOLDS),
        }
    });
    // A write to the kernel that hangs must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}
