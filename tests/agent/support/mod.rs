//! What the whole-agent tests share: a node of its own for each test, the built agent on it, a
//! bare HTTP client, a controller that listens.
//!
//! Every agent runs on a copy of a captured tree (`tests/fixtures/nodes`), with its own settings,
//! state and log, and in a mount namespace of its own: what it mounts is gone with it.

pub(crate) mod absent;
pub(crate) mod calls;
mod capture;
pub(crate) mod certificates;
pub(crate) mod controller;
pub(crate) mod engine;
pub(crate) mod gate;
pub(crate) mod http;
pub(crate) mod kernel;
pub(crate) mod legacy;
pub(crate) mod network;
pub(crate) mod played;
pub(crate) mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use http::{Reply, call, request, try_receive};

/// How long anything may take that has no limit of its own.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Looks until `look` finds something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a future of a test, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// A task id as the controller makes them.
pub(crate) fn task(number: u32) -> String {
    format!("{number:032x}")
}

/// A node of one test: a captured tree, settings, state and log.
pub(crate) struct Place {
    dir: TempDir,
    /// Where 2 MiB pages are to be mounted before the command starts.
    mounted: Option<String>,
    /// Shell commands that are run first, in the namespaces of the command.
    prelude: String,
    env: Vec<(String, String)>,
}

impl Place {
    /// A copy of `tests/fixtures/nodes/<name>`, a folder or a capture.
    pub(crate) fn on(name: &str) -> Place {
        let dir = tempfile::Builder::new().prefix("vhost-agent-test-").tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nodes");
        let (from, root) = (fixtures.join(name), dir.path().join("root"));
        match from.is_dir() {
            true => copy(&from, &root),
            false => capture::unpack(&fixtures.join(format!("{name}.txt")), &root),
        }
        fs::create_dir(dir.path().join("config.d")).unwrap();
        let place = Place { dir, mounted: None, prelude: String::new(), env: Vec::new() };
        let base = "listen = \"127.0.0.1:0\"\n[engine]\nmanage = false\n[callbacks]\nfirst_delay = \"20ms\"\nmax_delay = \"100ms\"\n";
        fs::write(place.config(), base).unwrap();
        place
    }

    /// More settings, over those that every test has.
    pub(crate) fn settings(self, toml: &str) -> Place {
        fs::write(self.dir.path().join("config.d/50-test.toml"), toml).unwrap();
        self
    }

    /// Mounts 2 MiB pages where the tree's mount table says so, or names no size: one namespace with that mount
    /// for each command.
    pub(crate) fn mounted(mut self) -> Place {
        let table = fs::read(self.path("proc/self/mountinfo")).unwrap();
        let table = String::from_utf8_lossy(&table);
        let has_small_pages = |line: &&str| {
            let is_default = line.contains(" - hugetlbfs ") && !line.contains("pagesize=");
            line.contains("pagesize=2M") || is_default
        };
        let line = table.lines().find(has_small_pages).unwrap();
        let at = line.split(' ').nth(4).unwrap().replace("\\040", " ");
        fs::create_dir_all(self.path(&at)).unwrap();
        self.mounted = Some(at);
        self
    }

    /// A variable for every command.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Place {
        self.env.push((name.to_string(), value.to_string()));
        self
    }

    /// Shell commands that are run before each command, in its own mount namespace.
    pub(crate) fn prelude(mut self, commands: &str) -> Place {
        self.prelude = commands.to_string();
        self
    }

    /// Where `path` of the node lies.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// The text of a file of the node.
    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Writes a file of the node.
    pub(crate) fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    /// The folder that stands for `/`.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The settings file.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    /// The folder of what the agent remembers until the next boot.
    pub(crate) fn run_folder(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The agent's own socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// The state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A folder for whatever a test needs.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Every file and folder of the node and of the state as it is now, without pipes and without the
    /// lock, which every command signs.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut files = BTreeMap::new();
        for folder in ["root", "state", "run"] {
            list(&self.dir.path().join(folder), Path::new(folder), &mut files);
        }
        files.remove(Path::new("state/lock"));
        Snapshot(files)
    }

    /// The command with everything that makes it this node's.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        let mut script = self.prelude.clone();
        if let Some(at) = &self.mounted {
            let at = self.path(at);
            script += &format!(
                "mount -t hugetlbfs -o pagesize=2M hugetlbfs '{}' || exit 99; ",
                at.display()
            );
        }
        command.args(["sh", "-c", &format!("{script}exec \"$@\""), "sh"]);
        command.arg(env!("CARGO_BIN_EXE_vhost-agent"));
        command.args(arguments);
        command.arg("--root").arg(self.root());
        command.arg("--config").arg(self.config());
        command.arg("--state-dir").arg(self.state());
        command.arg("--log-dir").arg(self.dir.path().join("log"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("VHOST_AGENT_RUN_DIR", self.run_folder());
        command.env("VHOST_AGENT_ACCESS__SOCKET", self.socket());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments)).await
    }

    /// Starts the agent and waits until it says where it listens.
    pub(crate) async fn start(&self) -> Agent {
        let mut agent = self.spawn();
        let address = until("the agent says where it listens", async || {
            agent.must_live();
            let lock = fs::read_to_string(self.state().join("lock")).ok()?;
            let url = lock.strip_prefix(&format!("pid {}, ", agent.pid()))?;
            url.split_once("://")?.1.parse::<SocketAddr>().ok()
        });
        let address = address.await;
        agent.address = address;
        agent
    }

    /// Starts the agent and waits until it takes calls.
    pub(crate) async fn ready(&self) -> Agent {
        let agent = self.start().await;
        until("the agent is ready", async || {
            (self.at_socket("/readyz").await?.status == 200).then_some(())
        })
        .await;
        agent
    }

    /// `GET` at the agent's own socket; `None` when nobody answers there.
    pub(crate) async fn at_socket(&self, path: &str) -> Option<Reply> {
        let mut stream = UnixStream::connect(self.socket()).await.ok()?;
        let bytes = request("GET", path, &[("Connection", "close")], "");
        stream.write_all(bytes.as_bytes()).await.ok()?;
        try_receive(&mut stream).await
    }

    /// Starts the agent while a gate stands before its pools: its first look, for the pages of the last
    /// boot, is held.
    pub(crate) async fn start_behind(&self, gate: &mut gate::Gate) -> Agent {
        let mut agent = self.spawn();
        agent.logged("vhost-agent listens").await;
        gate.wait().await;
        let lock = fs::read_to_string(self.state().join("lock")).unwrap();
        agent.address = lock.split_once("http://").unwrap().1.parse().unwrap();
        agent
    }

    /// Starts the agent where its state cannot be seen from here; the log tells the address too.
    pub(crate) async fn start_unseen(&self) -> Agent {
        let mut agent = self.spawn();
        let address = until("the log tells where it listens", async || {
            agent.must_live();
            let log = agent.log();
            let (_, rest) = log.split_once("\"address\":\"")?;
            rest.split('"').next()?.parse().ok()
        });
        agent.address = address.await;
        agent
    }

    fn spawn(&self) -> Agent {
        let log = self.dir.path().join("agent.log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command(&["serve"]);
        let child = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Agent { child, log, address: SocketAddr::from(([127, 0, 0, 1], 0)) }
    }
}

/// A node's files at one time.
pub(crate) struct Snapshot(BTreeMap<PathBuf, String>);

impl Snapshot {
    /// Fails the test when a file has this text.
    #[track_caller]
    pub(crate) fn must_not_say(&self, text: &str) {
        for (name, content) in &self.0 {
            assert!(!content.contains(text), "{}: {content}", name.display());
        }
    }

    /// Fails the test when anything is different there now whose path the test does not expect to be.
    #[track_caller]
    pub(crate) fn must_only_differ_in(&self, place: &Place, expected: impl Fn(&str) -> bool) {
        let now = place.snapshot().0;
        let names: BTreeSet<&PathBuf> = self.0.keys().chain(now.keys()).collect();
        for name in names.into_iter().filter(|name| !expected(&name.to_string_lossy())) {
            assert_eq!(self.0.get(name), now.get(name), "{} was changed", name.display());
        }
    }

    /// Fails the test when anything is different there now.
    #[track_caller]
    pub(crate) fn must_be_what_is(&self, place: &Place) {
        self.must_only_differ_in(place, |_| false);
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Runs a command to its end.
    pub(crate) async fn of(command: Command) -> Ended {
        let mut command = tokio::process::Command::from(command);
        let output = soon("the command ends", command.kill_on_drop(true).output()).await.unwrap();
        Ended {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What it printed, as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The built agent, running.
pub(crate) struct Agent {
    child: Child,
    log: PathBuf,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Agent {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its whole log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for a text in its log.
    pub(crate) async fn logged(&self, text: &str) {
        until(&format!("the log has '{text}'"), async || self.log().contains(text).then_some(()))
            .await;
    }

    /// `GET`.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        call(self.address, "GET", path, &[], "").await
    }

    /// `POST` of a JSON body.
    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        call(self.address, "POST", path, &[("Content-Type", "application/json")], body).await
    }

    /// The same, to be called back.
    pub(crate) async fn post_task(&self, path: &str, task: &str, url: &str, body: &str) -> Reply {
        call(self.address, "POST", path, &[("taskuuid", task), ("callbackurl", url)], body).await
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the agent ends", async || self.child.try_wait().unwrap()).await
    }

    /// Asks it to stop and waits for its end.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Fails the test when the agent is gone.
    pub(crate) fn must_live(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the agent ended ({status}): {}", self.log());
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{log}");
        } else {
            // Whatever a test is about: a panic is a line of the log (`cli/log`), and no other.
            assert!(!log.contains("the agent panicked"), "a panic: {log}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn list(folder: &Path, name: &Path, files: &mut BTreeMap<PathBuf, String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.insert(name.clone(), "a folder".to_string());
            list(&path, &name, files);
        } else if kind.is_file() {
            files.insert(name, String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
        }
    }
}
