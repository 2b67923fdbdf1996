//! A node that is played for the benches of the listener: an engine with one container, whose process is the
//! bench's own, and a target in it that answers every call at once. So no answer of theirs is in the figures,
//! and neither an engine nor pages are needed.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::dial::Door;

/// The route of a health call.
pub(crate) const HEALTH: &str = "/zbs/primarystorage/vhost/target/health";
/// More than it may take until the target is known to serve.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent's certificate, in files.
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// The node.
pub(crate) struct Played {
    folder: TempDir,
    identity: Identity,
}

impl Played {
    pub(crate) fn new() -> Result<Played> {
        let folder = tempfile::tempdir()?;
        listen_at(folder.path().join("docker.sock"), engine)?;
        listen_at(folder.path().join("vhost.sock"), target)?;
        // ECDSA P-256.
        let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_string()])?;
        let identity = Identity {
            certificate: folder.path().join("certificate.pem"),
            key: folder.path().join("key.pem"),
        };
        std::fs::write(&identity.certificate, signed.cert.pem())?;
        std::fs::write(&identity.key, signed.signing_key.serialize_pem())?;
        // The agent takes no key that everybody may read.
        std::fs::set_permissions(&identity.key, Permissions::from_mode(0o600))?;
        Ok(Played { folder, identity })
    }

    /// The certificate, where TLS is spoken.
    pub(crate) fn identity(&self, tls: bool) -> Option<&Identity> {
        tls.then_some(&self.identity)
    }

    /// Starts an agent on this node and waits until it has seen that the target serves.
    pub(crate) fn agent(&self, guard: Guard) -> Result<(Agent, Door)> {
        let tls = guard == Guard::Tls;
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let mut settings = format!(
            "engine.manage = false\nengine.socket = {:?}\naccess.socket = \"\"\nreport.enabled = false\n\
             target.socket_dir = {:?}\n",
            at("docker.sock"),
            self.folder.path().display().to_string()
        );
        if let Some(Identity { certificate, key }) = self.identity(tls) {
            settings += &format!("tls.certificate = {certificate:?}\ntls.key = {key:?}\n");
        }
        if guard == Guard::Token {
            settings += &token_setting();
        }
        let (agent, _) = Agent::start_with(&settings)?;
        let door = Door::new(agent.address(), tls)?;
        let (began, mut call) = (Instant::now(), door.connect()?);
        loop {
            let answer =
                call.get_done_with("POST", HEALTH, guard.headers(), &self.health_call())?;
            match serves(&answer.body) {
                true => return Ok((agent, door)),
                false if began.elapsed() > PATIENCE => {
                    bail!("the target does not serve: {}", String::from_utf8_lossy(&answer.body))
                }
                false => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// The body of a health call, as the controller sends it.
    pub(crate) fn health_call(&self) -> String {
        let control = self.folder.path().join("vhost.sock");
        json!({"containerName": "zbs-vhost", "controlSock": control}).to_string()
    }
}

/// What callers of the played agent have to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Nothing: they are root on the node.
    None,
    /// Nothing, through TLS.
    Tls,
    /// A token, of a role that does not more than look.
    Token,
}

impl Guard {
    /// With TLS or with nothing.
    pub(crate) fn of(tls: bool) -> Guard {
        if tls { Guard::Tls } else { Guard::None }
    }

    /// Headers by which it is shown, each with its end of line.
    pub(crate) fn headers(self) -> &'static str {
        match self {
            Guard::None | Guard::Tls => "",
            Guard::Token => "Authorization: Bearer token-of-the-bench-0123456789\r\n",
        }
    }
}

/// That token among as many others as a site has.
fn token_setting() -> String {
    let digest = |token: &str| -> String {
        Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let one = |(name, token): (String, String)| {
        format!("{{ name = \"{name}\", role = \"read\", hash = \"{}\" }}", digest(&token))
    };
    let others = (0..9).map(|n| (format!("other-{n}"), format!("token-of-another-{n}")));
    let own = ("bench".to_string(), "token-of-the-bench-0123456789".to_string());
    let all: Vec<String> = others.chain([own]).map(one).collect();
    format!("access.token = [{}]\n", all.join(", "))
}

/// Whether a health call was answered that the target serves.
pub(crate) fn serves(body: &[u8]) -> bool {
    let wanted = br#""targetRunning":true"#;
    body.windows(wanted.len()).any(|part| part == wanted)
}

/// Serves each connection in a thread of its own, until the bench ends.
fn listen_at(path: PathBuf, serve: fn(UnixStream) -> Result<()>) -> Result<()> {
    let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(())
}

/// Tells of the container, whatever it is asked; asked for events, it has none.
fn engine(stream: UnixStream) -> Result<()> {
    let body = json!({
        "Id": "c0ffee", "Name": "/zbs-vhost", "State": {"Running": true, "Pid": std::process::id()},
        "Version": "27.0.0", "ApiVersion": "1.46", "MinAPIVersion": "1.24",
    })
    .to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let mut write = stream.try_clone()?;
    let (mut lines, mut events) = (BufReader::new(stream), false);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        events |= line.contains("/events");
        if line == "\r\n" && events {
            write.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes())?;
            lines.read_to_end(&mut Vec::new())?;
            return Ok(());
        }
        if line == "\r\n" {
            let length = body.len();
            write.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())?;
        }
        line.clear();
    }
    Ok(())
}

/// Answers every call with what fits all that the agent asks.
fn target(stream: UnixStream) -> Result<()> {
    let mut write = stream.try_clone()?;
    let calls = serde_json::Deserializer::from_reader(BufReader::new(stream));
    for request in calls.into_iter::<Value>() {
        let result = json!({"version": "SPDK v24.01", "reactors": [{}]});
        let reply = json!({"jsonrpc": "2.0", "id": request?["id"], "result": result});
        write.write_all(format!("{reply}\n").as_bytes())?;
    }
    Ok(())
}
