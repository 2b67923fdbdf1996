//! Pulls from a registry, with the credentials of the settings. A registry without a trusted certificate is added to
//! `insecure-registries` in the engine's configuration, but only if the settings allow that and a pull failed for this
//! reason.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::super::observe::blocking;
use super::super::observe::target::Containers;
use super::pull_refusal::PullFailure;
use crate::host::engine_process::{engine_process, reload};
use crate::host::{Root, daemon_json, files};
use crate::model::daemon_json::with_insecure_registry;
use crate::model::engine::DaemonJson;
use crate::model::engine_options::{config_file, values};
use crate::model::fault::chain;
use crate::model::policy::EnginePolicy;
use crate::model::registry::{Credentials, RegistryPolicy, Secret, registry_of};

/// Timeout of the engine's reload of its configuration.
const RELOAD: Duration = Duration::from_secs(10);
/// Timeout of a connection to port 80 of a registry.
const HTTP_WITHIN: Duration = Duration::from_secs(3);
/// Interval of checking whether the engine has reloaded.
const PAUSE: Duration = Duration::from_millis(50);

/// Puller for one machine's engine.
#[derive(Debug)]
pub(super) struct RegistryPuller<C> {
    root: Root,
    containers: Arc<C>,
    policy: RegistryPolicy,
    call_timeout: Duration,
    /// Serializes changes of the engine's configuration.
    changing: Mutex<()>,
}

impl<C: Containers> RegistryPuller<C> {
    pub(super) fn new(
        root: &Root,
        containers: Arc<C>,
        policy: &RegistryPolicy,
        call_timeout: Duration,
    ) -> RegistryPuller<C> {
        let (root, policy) = (root.clone(), policy.clone());
        RegistryPuller { root, containers, policy, call_timeout, changing: Mutex::default() }
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// Engine's message, and a remedy.
    pub(super) async fn pull(
        &self,
        image: &str,
        line: &(impl Fn(String) + Send + Sync),
        within: Duration,
    ) -> Result<(), String> {
        let registry = registry_of(image).unwrap_or_default();
        let deadline = Instant::now() + within;
        let login = self.login(registry).await?;
        let first = self.containers.pull(image, login.as_ref(), line, within).await;
        let Err(error) = first else { return Ok(()) };
        let why = chain(&error);
        let failure = PullFailure::of(&why, registry);
        let advice = |failure: Option<PullFailure>| {
            failure
                .map_or(String::new(), |it| format!(": {}", it.advice(registry, login.is_some())))
        };
        let unproven = failure.is_some_and(PullFailure::is_unproven) && !registry.is_empty();
        // A registry that is down for a moment is not one that speaks plain HTTP.
        let is_down =
            failure == Some(PullFailure::HttpsClosed) && !listens_for_http(registry).await;
        if !unproven || is_down {
            return Err(why + &advice(failure));
        }
        if !self.policy.engine.insecure_registries {
            return Err(format!(
                "{why}{}; or allow registries that cannot prove who they are (engine.insecure_registries = true)",
                advice(failure)
            ));
        }
        line(format!(
            "{registry} cannot prove who it is, and the engine is told to trust it: {why}{}",
            advice(failure)
        ));
        let file = self.trust(registry).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let second = self.containers.pull(image, login.as_ref(), line, left).await;
        second.map_err(|error| {
            let why = chain(&error);
            let advice = advice(PullFailure::of(&why, registry));
            format!("{why}{advice} (the engine trusts {registry} now{file})")
        })
    }

    async fn login(&self, registry: &str) -> Result<Option<Credentials>, String> {
        let Some(login) = self.policy.logins.get(registry) else { return Ok(None) };
        let password = match login.password_file.as_str() {
            "" => login.password.clone(),
            path => {
                let at = self.root.path(path);
                let read = blocking(move || files::read_text(&at)).await.map_err(|e| e.text)?;
                let text =
                    read.map_err(|e| format!("no password for {registry}: {}", chain(&e)))?;
                if text.contains(char::REPLACEMENT_CHARACTER) {
                    return Err(format!(
                        "no password for {registry}: {path} is not UTF-8: write it again as UTF-8"
                    ));
                }
                Secret::new(text)
            }
        };
        Ok(Some(Credentials { username: login.username.clone(), password }))
    }

    /// Adds the registry to the engine's `insecure-registries`, reloads the engine, and reads back. Returns the file that
    /// names the registry, in words; nothing if the engine trusted it already.
    async fn trust(&self, registry: &str) -> Result<String, String> {
        let _one_at_a_time = self.changing.lock().await;
        if self.is_trusted(registry).await? {
            return Ok(String::new());
        }
        let (root, engine, name) =
            (self.root.clone(), self.policy.engine.clone(), registry.to_string());
        let added = blocking(move || add(&root, &engine, &name)).await;
        let file = added.map_err(|fault| fault.text)??;
        let deadline = Instant::now() + RELOAD;
        while !self.is_trusted(registry).await? {
            if Instant::now() >= deadline {
                return Err(format!(
                    "{file} names {registry} in insecure-registries now, and the engine was told to read it \
                     again, and has not within {RELOAD:?}: see its log"
                ));
            }
            sleep(PAUSE).await;
        }
        Ok(format!(", by {file}"))
    }

    async fn is_trusted(&self, registry: &str) -> Result<bool, String> {
        let trusted = self.containers.trusts_blindly(registry, self.call_timeout).await;
        trusted.map_err(|e| chain(&e))
    }
}

/// Writes the registry into the file that the engine reads, and reloads the engine. Returns the file's path.
fn add(root: &Root, policy: &EnginePolicy, registry: &str) -> Result<String, String> {
    let Some(engine) = engine_process(root, policy) else {
        return Err(format!(
            "the engine cannot be told to trust {registry}: no process {} was found, by {} or by its name \
             (engine.binary, engine.pid_file)",
            policy.binary, policy.pid_file
        ));
    };
    let path = config_file(&engine.args, &policy.daemon_json);
    // With the option both on its command line and in the file, the engine would not start any more.
    if !values(&engine.args, "insecure-registry", None).is_empty() {
        return Err(format!(
            "the engine is started with --insecure-registry, and what stands there must not stand in \
             {path} too: add {registry} there, and restart the engine"
        ));
    }
    let seen = daemon_json::read(root, &path);
    if let Some(text) = with_insecure_registry(&seen, registry)
        .map_err(|why| format!("{path} was not touched: {why}"))?
    {
        let after = daemon_json::replace(root, &path, &text, &seen).map_err(|e| chain(&e))?;
        if !matches!(&after, DaemonJson::Object { text: there, .. } if *there == text) {
            return Err(format!("something else writes {path} at the same time: call again"));
        }
        tracing::warn!(
            registry,
            path,
            "{registry} was added to insecure-registries in {path}: the engine does not verify its identity"
        );
    }
    reload(root, &engine, policy).map_err(|e| chain(&e))?;
    Ok(path)
}

/// `true` if something accepts connections at port 80 of the host `registry`.
async fn listens_for_http(registry: &str) -> bool {
    let connected = timeout(HTTP_WITHIN, TcpStream::connect(format!("{registry}:80"))).await;
    matches!(connected, Ok(Ok(_)))
}
