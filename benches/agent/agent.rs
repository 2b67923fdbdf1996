//! The real binary as a process of its own, with its own state, ended with the bench.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::Connection;
use crate::target::FOLDER;

/// Where the engine listens, by the agent's default settings.
pub(crate) const ENGINE_SOCKET: &str = "/var/run/docker.sock";
/// More than a start may take.
const START: Duration = Duration::from_secs(10);

/// Whether the agent under test looks after the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EngineUse {
    /// As by default: an answer of the engine is good for a second.
    Managed,
    /// Asked at each look: `engine.ping_max_age = "0s"`.
    AskedEachTime,
    /// `health.max_age = "0s"`.
    LiveHealth,
    /// Each fall of a target is its first: `heal.clear_after = "0s"`.
    FallsForgotten,
    /// `engine.manage = false`.
    LeftAlone,
}

impl EngineUse {
    fn settings(self) -> &'static str {
        match self {
            EngineUse::Managed => "",
            EngineUse::AskedEachTime => "engine.ping_max_age = \"0s\"\n",
            EngineUse::LiveHealth => "health.max_age = \"0s\"\n",
            EngineUse::FallsForgotten => "heal.clear_after = \"0s\"\n",
            EngineUse::LeftAlone => "engine.manage = false\n",
        }
    }
}

/// A running agent.
pub(crate) struct Agent {
    child: Child,
    address: SocketAddr,
    // Removed when the agent has ended.
    state: TempDir,
    /// As /run/vhost-agent is: in memory.
    _run: TempDir,
}

impl Agent {
    /// Starts an agent and waits for its first answer; tells how long that took.
    pub(crate) fn start(engine: EngineUse) -> Result<(Agent, Duration)> {
        Agent::start_with(engine.settings())
    }

    /// The same with any settings; behind TLS it is waited for until it listens.
    pub(crate) fn start_with(settings: &str) -> Result<(Agent, Duration)> {
        let (state, run) = (tempfile::tempdir()?, tempfile::tempdir_in("/run")?);
        let config = state.path().join("config.toml");
        fs::write(&config, settings)?;
        let log = File::create(state.path().join("log"))?;
        let mut command = Command::new(binary());
        // The settings of whoever runs this must not change what is measured.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("VHOST_AGENT_") {
                command.env_remove(name);
            }
        }
        command.env("VHOST_AGENT_RUN_DIR", run.path());
        for roots in ["SOCKET_ROOTS", "AIO_ROOTS"] {
            command.env(format!("VHOST_AGENT_TARGET__{roots}"), format!("[{FOLDER:?}]"));
        }
        command.arg("serve").arg("--config").arg(&config);
        command.arg("--listen").arg("127.0.0.1:0");
        command.arg("--state-dir").arg(state.path()).arg("--log-dir").arg(state.path());
        let began = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.with_context(|| format!("{} was not started", binary().display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut agent = Agent { child, address, state, _run: run };
        agent.await_answer(began)?;
        Ok((agent, began.elapsed()))
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> Result<Connection<TcpStream>> {
        Connection::tcp(self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn await_answer(&mut self, began: Instant) -> Result<()> {
        loop {
            if let Some((scheme, address)) = signed_address(self.state.path()) {
                self.address = address;
                if scheme == "https" {
                    return Ok(());
                }
                return self.connect()?.get_done("GET", "/healthz", "").map(drop);
            }
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.state.path().join("log")).unwrap_or_default();
                bail!("the agent ended with {status}: {log}");
            }
            if began.elapsed() > START {
                bail!("no answer from the agent within {START:?}");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap_or_default();
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// The agent's binary: the one that was built with this bench, unless `BENCH_AGENT` names another.
fn binary() -> PathBuf {
    std::env::var_os("BENCH_AGENT")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_vhost-agent")), PathBuf::from)
}

/// Where the agent listens: it writes that into its lock file as soon as it does.
fn signed_address(state: &Path) -> Option<(String, SocketAddr)> {
    let text = fs::read_to_string(state.join("lock")).ok()?;
    let (before, address) = text.split_once("://")?;
    let scheme = before.rsplit(' ').next()?;
    Some((scheme.to_string(), address.trim().parse().ok()?))
}

/// Whether an engine runs here and is as the agent wants it, so that a prepare leaves it alone.
pub(crate) fn engine_is_ready() -> Result<()> {
    let connected = Connection::unix(Path::new(ENGINE_SOCKET));
    let mut engine = connected.with_context(|| format!("no engine at {ENGINE_SOCKET}"))?;
    engine.get_done("GET", "/_ping", "")?;
    let (agent, _) = Agent::start(EngineUse::Managed)?;
    let mut agent = agent.connect()?;
    let plan = agent.get_done("POST", "/v1/prepare?dryRun=true", r#"{"hugepages":[]}"#)?;
    let plan: Value = serde_json::from_slice(&plan.body)?;
    match plan.get("outcome").and_then(Value::as_str) {
        Some("holds") => Ok(()),
        _ => bail!("the engine is not as the agent wants it, which would change it: {plan}"),
    }
}
