//! A built-in target that the agent under test has deployed, as the benches of health and deploying use
//! it; taken away with the bench.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::http::Connection;

/// Its name, which is its container's.
pub(crate) const NAME: &str = "agent-bench";
/// The folder of its sockets.
pub(crate) const FOLDER: &str = "/var/tmp/agent-bench";
/// Its control socket.
pub(crate) const CONTROL: &str = "/var/tmp/agent-bench/vhost.sock";

/// A target of the agent under test.
pub(crate) struct Target {
    http: Connection<TcpStream>,
    memory_mib: usize,
}

impl Target {
    /// Deploys it.
    pub(crate) fn deploy(agent: &Agent) -> Result<Target> {
        Target::deploy_with(agent, 64)
    }

    /// Deploys it with so much memory for volumes, or takes it over from an agent that is gone.
    pub(crate) fn deploy_with(agent: &Agent, memory_mib: usize) -> Result<Target> {
        let mut target = Target { http: agent.connect()?, memory_mib };
        target.put()?;
        Ok(target)
    }

    /// Brings it up again, or for the first time.
    pub(crate) fn put(&mut self) -> Result<()> {
        let wish = json!({
            "kind": "built-in", "cores": "1", "memoryMib": self.memory_mib, "socketDir": FOLDER,
            "controlSock": CONTROL,
        });
        self.call("PUT", &format!("/v1/targets/{NAME}"), &wish.to_string()).map(drop)
    }

    /// Takes it away.
    pub(crate) fn delete(&mut self) -> Result<()> {
        let where_it_is = json!({"controlSock": CONTROL}).to_string();
        self.call("DELETE", &format!("/v1/targets/{NAME}"), &where_it_is).map(drop)
    }

    /// Its process.
    pub(crate) fn pid(&mut self) -> Result<i32> {
        let health = self.call("GET", &format!("/v1/targets/{NAME}/health"), "")?;
        let pid = health.get("pid").and_then(Value::as_i64);
        Ok(i32::try_from(pid.with_context(|| format!("no process: {health}"))?)?)
    }

    /// Leaves it as it is, for another agent to take over.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }

    fn call(&mut self, method: &str, path: &str, body: &str) -> Result<Value> {
        let answer = self.http.get_done(method, path, body)?;
        let report: Value = serde_json::from_slice(&answer.body)?;
        match report.get("outcome").and_then(Value::as_str) {
            Some("failed") => bail!("{method} {path}: {report}"),
            _ => Ok(report),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.delete();
    }
}

/// The target's control socket, asked without the agent on a kept connection.
pub(crate) struct Raw {
    write: UnixStream,
    read: BufReader<UnixStream>,
}

impl Raw {
    pub(crate) fn connect() -> Result<Raw> {
        let write = UnixStream::connect(Path::new(CONTROL))?;
        write.set_read_timeout(Some(Duration::from_secs(5)))?;
        let read = BufReader::new(write.try_clone()?);
        Ok(Raw { write, read })
    }

    /// One call without parameters; its answer is a line.
    pub(crate) fn call(&mut self, method: &str) -> Result<()> {
        let request = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"}}"#);
        self.write.write_all(request.as_bytes())?;
        let mut line = String::new();
        self.read.read_line(&mut line)?;
        match line.contains("\"result\"") {
            true => Ok(()),
            false => bail!("{method}: {line}"),
        }
    }
    /// Calls, so many of them at a time, each of which has to succeed.
    pub(crate) fn pipelined(&mut self, requests: &[String], window: usize) -> Result<()> {
        let mut line = String::new();
        for window in requests.chunks(window) {
            self.write.write_all(window.concat().as_bytes())?;
            for request in window {
                line.clear();
                self.read.read_line(&mut line)?;
                if !line.contains("\"result\"") {
                    bail!("{request}: {line}");
                }
            }
        }
        Ok(())
    }
}
