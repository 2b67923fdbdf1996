//! The command line: one file for each subcommand, rendering in one place.
//!
//! A command that changes the node, or looks at it, calls the native routes of the agent that runs on it,
//! for there is one owner; where none runs, it calls the same routes over owners in its own process.

mod config;
mod deploy;
mod health;
mod log;
mod pools;
mod prepare;
mod reach;
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

/// Exit codes, as `--help` tells them.
pub mod exit {
    /// It holds, or holds now.
    pub const HOLDS: u8 = 0;
    /// It failed.
    pub const FAILED: u8 = 1;
    /// The command or the settings are wrong.
    pub const USAGE: u8 = 2;
    /// A plan that would change something.
    pub const WOULD_CHANGE: u8 = 3;

    /// What a report exits with.
    pub(super) fn of(outcome: crate::model::prepare::Outcome) -> u8 {
        use crate::model::prepare::Outcome;
        match outcome {
            Outcome::Holds | Outcome::Changed => HOLDS,
            Outcome::WouldChange => WOULD_CHANGE,
            Outcome::Failed => FAILED,
        }
    }
}

/// The arguments.
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
    /// Folder of what the agent remembers
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Folder of the logs of what the agent runs
    #[arg(long, global = true, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Folder that stands for / (/sys, /proc, /etc/docker, …)
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// How to print
    #[arg(long, global = true, value_name = "FORM", default_value = "table")]
    output: Output,
}

/// Forms of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[value(alias = "text")]
    Table,
    /// For machines.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Serve,
    /// Show what prepare would do; changes nothing
    Plan(prepare::Wishes),
    /// Make this node fit: hugepages, hugetlbfs, Docker
    Prepare(prepare::Wishes),
    /// All in one: make this node fit, make a target run, and prove that it does I/O
    Up(deploy::Wishes),
    /// Make a target run: a vhost-user process in its container
    Deploy(deploy::Wishes),
    /// Take a target away
    Destroy(deploy::Wishes),
    /// Show how a target stands: exits with 0 when it serves, with --deep when I/O through it is proven
    Health(health::Which),
    /// Volumes: what is made in a target for one disk. Wants an agent that runs
    #[command(subcommand)]
    Volume(volume::Command),
    /// Show the node
    Status,
    /// Give back hugepages that the agent grew and nobody uses
    Reclaim(reclaim::Which),
    /// Hugepage pools
    #[command(subcommand)]
    Pools(pools::Command),
    /// What the agent keeps of the node: show it, carry it elsewhere
    #[command(subcommand)]
    State(state::Command),
    /// Name who may call this agent from elsewhere: writes the settings for it, and checks them
    Setup(setup::Wishes),
    /// Settings
    #[command(subcommand)]
    Config(config::Command),
    /// Run the built-in target: vhost-user disks, controlled like an SPDK vhost application
    Target(target::Flags),
}

/// A command that asks for what cannot be asked for.
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
    if let Command::Setup(wishes) = command {
        return exit_code(setup::run(overrides, &wishes, global.output));
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
    // Handlers only pass work on, and what takes long is on blocking threads: with one thread for
    // them all, no owner's handing over to the next has to wake another thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let node = reach::Place { settings: loaded.settings, root: global.root.clone() };
        match command {
            Command::Serve => serve::run(node).await,
            Command::Plan(wishes) => prepare::run(node, wishes, true, global.output).await,
            Command::Prepare(wishes) => prepare::run(node, wishes, false, global.output).await,
            Command::Up(wishes) => up::run(node, wishes, global.output).await,
            Command::Deploy(wishes) => {
                deploy::run(node, wishes, deploy::Verb::Deploy, global.output).await
            }
            Command::Destroy(wishes) => {
                deploy::run(node, wishes, deploy::Verb::Destroy, global.output).await
            }
            Command::Health(which) => health::run(node, which, global.output).await,
            Command::Volume(command) => volume::run(node, command, global.output).await,
            Command::Status => status::run(node, global.output).await,
            Command::Reclaim(which) => reclaim::run(node, which, global.output).await,
            Command::Pools(command) => pools::run(node, &command, global.output).await,
            Command::State(command) => state::run(node, command, global.output).await,
            Command::Setup(_) | Command::Config(_) | Command::Target(_) => Ok(exit::HOLDS),
        }
    });
    // A write to the kernel that hangs must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}
