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
/// Its control socket.
pub(crate) const CONTROL: &str = "/var/tmp/agent-bench/vhost.sock";

/// A target of the agent under test.
pub(crate) struct Target {
    http: Connection<TcpStream>,
}

impl Target {
    /// Deploys it.
    pub(crate) fn deploy(agent: &Agent) -> Result<Target> {
        let mut target = Target { http: agent.connect()? };
        target.put()?;
        Ok(target)
    }

    /// Brings it up again, or for the first time.
    pub(crate) fn put(&mut self) -> Result<()> {
        let wish = json!({
            "kind": "built-in", "cores": "1", "memoryMib": 64, "socketDir": "/var/tmp/agent-bench",
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
}
