//! A target process, and what its control socket answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than any answer takes.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// A target in a folder of its own.
pub(crate) struct Target {
    pub(crate) dir: TempDir,
    pub(crate) child: Option<Child>,
    flags: Vec<String>,
}

impl Target {
    /// Started, and serving its control socket.
    pub(crate) fn new(flags: &[&str]) -> Self {
        let mut target = Self::unstarted(flags);
        target.start();
        target
    }

    /// A folder for a target.
    pub(crate) fn unstarted(flags: &[&str]) -> Self {
        let flags = flags.iter().map(ToString::to_string).collect();
        Self { dir: tempfile::tempdir().unwrap(), child: None, flags }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-agent"));
        command.arg("target").arg("-r").arg(self.path("rpc.sock")).arg("-S").arg(self.dir.path());
        command.args(&self.flags).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Starts it, again too, and waits until it answers.
    pub(crate) fn start(&mut self) {
        let command = self.command();
        self.start_as(command);
    }

    /// Starts it with a command of the test's own.
    pub(crate) fn start_as(&mut self, mut command: Command) {
        // Not read: the pipe has room for what a test makes it say.
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + TIMEOUT;
        while UnixStream::connect(self.path("rpc.sock")).is_err() {
            assert!(Instant::now() < deadline, "the target does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal; tells how it ended, and what it said.
    pub(crate) fn end(&mut self, signal: nix::sys::signal::Signal) -> (ExitStatus, String) {
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
        ended(&mut child)
    }

    pub(crate) fn rpc(&self) -> Rpc {
        Rpc::connect(&self.path("rpc.sock"))
    }

    /// Calls a method that must succeed.
    pub(crate) fn call(&self, method: &str, params: Value) -> Value {
        let answer = self.rpc().call(method, params);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Calls a method that must fail: its code and message.
    pub(crate) fn fault(&self, method: &str, params: Value) -> (i64, String) {
        let answer = self.rpc().call(method, params);
        let error = &answer["error"];
        let code = error["code"].as_i64().unwrap_or_else(|| panic!("{method} worked: {answer}"));
        (code, error["message"].as_str().unwrap().to_string())
    }

    /// A file of so many bytes in the folder.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for a process's end.
pub(crate) fn ended(child: &mut Child) -> (ExitStatus, String) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            return (status, said);
        }
        assert!(Instant::now() < deadline, "the process does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A connection to a control socket.
pub(crate) struct Rpc {
    pub(crate) stream: BufReader<UnixStream>,
}

impl Rpc {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The next answer; `None` when the connection was closed.
    pub(crate) fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(e) => panic!("no answer: {e}"),
        }
    }

    /// Calls a method; null stands for no parameters.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let mut request = json!({ "jsonrpc": "2.0", "id": 1, "method": method });
        if !params.is_null() {
            request["params"] = params;
        }
        self.send(&request.to_string());
        self.answer().unwrap()
    }
}
