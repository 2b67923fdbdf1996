//! Stateful fake of an engine, whose state tests change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast};

use super::{Containers, Engine, EngineError, EngineEvent, Tar};
use crate::model::container::{ContainerSeen, ContainerSpec, Restarts};
use crate::model::engine::{ApiVersion, EngineVersion};
use crate::model::registry::Credentials;

/// Suffix in the name of a container that is to replace another one.
const NEXT: &str = ".next";

/// State of the fake engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mood {
    /// The socket is missing.
    Absent,
    /// The engine accepts connections and never answers.
    Hangs,
    /// Podman listens at the socket in Docker's place.
    Podman,
    Answers,
}

/// Fake engine; clones share one state.
#[derive(Debug, Clone)]
pub struct FakeEngine(Arc<Mutex<Mood>>);

impl FakeEngine {
    pub fn new(mood: Mood) -> FakeEngine {
        FakeEngine(Arc::new(Mutex::new(mood)))
    }

    pub fn set(&self, mood: Mood) {
        *self.0.lock().unwrap() = mood;
    }

    fn mood(&self) -> Mood {
        self.0.lock().unwrap().clone()
    }
}

impl Engine for FakeEngine {
    async fn ping(&self, within: Duration) -> Result<(), EngineError> {
        let socket = "/fake.sock".to_string();
        match self.mood() {
            Mood::Absent => Err(EngineError::Absent { socket }),
            Mood::Hangs => {
                tokio::time::sleep(within).await;
                Err(EngineError::Timeout { socket, call: "_ping", within })
            }
            Mood::Podman => Err(EngineError::NotDocker { socket, engine: "podman".to_string() }),
            Mood::Answers => Ok(()),
        }
    }

    async fn version(&self, within: Duration) -> Result<EngineVersion, EngineError> {
        self.ping(within).await?;
        Ok(EngineVersion { version: "20.10.24".into(), api: ApiVersion(1, 41) })
    }
}

/// Fake engine with at most one regular container, the replacements created beside it (`.next`), and no images but the
/// pulled ones.
#[derive(Debug)]
pub struct FakeContainers {
    one: Mutex<Option<ContainerSeen>>,
    made: Mutex<BTreeMap<String, ContainerSeen>>,
    registry: FakeRegistry,
    pulled: Mutex<Vec<String>>,
    hangs: AtomicBool,
    asked: AtomicUsize,
    events: broadcast::Sender<EngineEvent>,
}

/// Behaviour of the registries.
#[derive(Debug)]
pub enum FakeRegistry {
    Absent,
    /// A pull waits for a permit.
    Gives(Arc<Semaphore>),
    /// A pull fails with this message.
    Refuses(&'static str),
}

impl FakeContainers {
    /// Engine with one running container, which has these `labels`.
    pub fn with_one(labels: &[(&str, &str)]) -> FakeContainers {
        let label = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let seen = ContainerSeen {
            id: "c0ffee".into(),
            running: true,
            pid: Some(1),
            exit_code: None,
            oom_killed: false,
            image_id: String::new(),
            labels: labels.iter().map(label).collect(),
            error: String::new(),
            restarts: None,
        };
        FakeContainers {
            one: Mutex::new(Some(seen)),
            made: Mutex::default(),
            registry: FakeRegistry::Absent,
            pulled: Mutex::default(),
            hangs: AtomicBool::default(),
            asked: AtomicUsize::default(),
            events: broadcast::Sender::new(16),
        }
    }

    /// Engine whose registries behave as `registry` says.
    pub fn with_registry(registry: FakeRegistry) -> FakeContainers {
        FakeContainers { registry, ..FakeContainers::with_one(&[]) }
    }

    /// Requested pulls, each as the reference, followed by user name and password if there was a login.
    pub fn pulled(&self) -> Vec<String> {
        self.pulled.lock().unwrap().clone()
    }

    /// Engine with one running container, whose process is `pid`.
    pub fn running(pid: u32) -> FakeContainers {
        let fake = FakeContainers::with_one(&[]);
        fake.change(|one| one.pid = Some(pid));
        fake
    }

    /// Changes the regular container, and sends an event.
    pub fn change(&self, change: impl FnOnce(&mut ContainerSeen)) {
        self.one.lock().unwrap().as_mut().map(change);
        self.publish();
    }

    /// Removes the regular container, and sends an event.
    pub fn take_away(&self) {
        *self.one.lock().unwrap() = None;
        self.publish();
    }

    /// Names of the containers created beside the regular one.
    pub fn made(&self) -> Vec<String> {
        self.made.lock().unwrap().keys().cloned().collect()
    }

    /// Makes the engine stop answering for good.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// Number of times that a container was read.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn publish(&self) {
        let _ = self.events.send(EngineEvent::Container("zbs-vhost".into()));
    }

    fn changes_nothing<T>(call: &'static str) -> Result<T, EngineError> {
        Err(EngineError::Absent { socket: format!("{call}: this engine is only looked at") })
    }
}

impl Containers for FakeContainers {
    async fn container(
        &self,
        name: &str,
        within: Duration,
    ) -> Result<Option<ContainerSeen>, EngineError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.hangs.load(Ordering::Relaxed) {
            tokio::time::sleep(within).await;
            let socket = "/fake.sock".to_string();
            return Err(EngineError::Timeout { socket, call: "inspect", within });
        }
        match name.ends_with(NEXT) || name.ends_with(".previous") {
            true => Ok(self.made.lock().unwrap().get(name).cloned()),
            false => Ok(self.one.lock().unwrap().clone()),
        }
    }

    async fn create(&self, spec: &ContainerSpec, _: Duration) -> Result<String, EngineError> {
        let id = "new".to_string();
        let ContainerSpec { name, labels, .. } = spec.clone();
        let made =
            ContainerSeen { id: id.clone(), running: false, labels, ..ContainerSeen::default() };
        match name.ends_with(NEXT) {
            true => self.made.lock().unwrap().insert(name, made),
            false => return FakeContainers::changes_nothing("create"),
        };
        Ok(id)
    }

    async fn start(&self, _: &str, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("start")
    }

    async fn kill(&self, _: &str, _: &str, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("kill")
    }

    async fn unpause(&self, _: &str, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("unpause")
    }

    async fn set_restarts(
        &self,
        _: &str,
        _: Option<&Restarts>,
        _: Duration,
    ) -> Result<(), EngineError> {
        Ok(())
    }

    async fn rename(&self, _: &str, _: &str, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("rename")
    }

    async fn remove(&self, id: &str, _: Duration) -> Result<(), EngineError> {
        let mut made = self.made.lock().unwrap();
        let before = made.len();
        made.retain(|_, seen| seen.id != id);
        match made.len() < before {
            true => Ok(()),
            false => FakeContainers::changes_nothing("remove"),
        }
    }

    async fn events(
        &self,
        notify: impl Fn(EngineEvent) + Send + Sync,
        _: Duration,
    ) -> Result<(), EngineError> {
        let mut events = self.events.subscribe();
        notify(EngineEvent::Listening);
        while let Ok(event) = events.recv().await {
            notify(event);
        }
        Ok(())
    }

    async fn last_lines(&self, _: &str, _: usize, _: Duration) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }

    async fn image(&self, name: &str, _: Duration) -> Result<Option<String>, EngineError> {
        let pulled = self.pulled().iter().any(|pull| pull.split(' ').next() == Some(name));
        Ok(pulled.then(|| "sha256:1".to_string()))
    }

    async fn pull(
        &self,
        reference: &str,
        login: Option<&Credentials>,
        _: impl Fn(String) + Send + Sync,
        _: Duration,
    ) -> Result<(), EngineError> {
        let who = login.map_or(String::new(), |login| {
            format!(" {}:{}", login.username, login.password.expose())
        });
        self.pulled.lock().unwrap().push(format!("{reference}{who}"));
        match &self.registry {
            FakeRegistry::Absent => FakeContainers::changes_nothing("pull"),
            FakeRegistry::Gives(permits) => {
                permits.acquire().await.unwrap().forget();
                Ok(())
            }
            FakeRegistry::Refuses(words) => {
                let (socket, call) = ("/fake.sock".to_string(), "pull");
                let message = (*words).to_string();
                Err(EngineError::Refused { socket, call, status: 500, message })
            }
        }
    }

    async fn trusts_blindly(&self, _: &str, _: Duration) -> Result<bool, EngineError> {
        Ok(false)
    }

    async fn load(&self, _: Tar, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("load")
    }
}
