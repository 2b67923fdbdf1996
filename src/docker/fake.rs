//! An engine that is played: it has a state, and tests change it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Containers, Engine, EngineError, Tar};
use crate::model::engine::{ApiVersion, EngineVersion};
use crate::model::target::{ContainerSeen, ContainerSpec};

/// How the played engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mood {
    /// No socket.
    Absent,
    /// Accepts and never answers.
    Hangs,
    /// Answers.
    Answers,
}

/// The played engine; clones share one state.
#[derive(Debug, Clone)]
pub struct FakeEngine(Arc<Mutex<Mood>>);

impl FakeEngine {
    /// An engine in that mood.
    pub fn new(mood: Mood) -> FakeEngine {
        FakeEngine(Arc::new(Mutex::new(mood)))
    }

    /// Changes its mood.
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
            Mood::Answers => Ok(()),
        }
    }

    async fn version(&self, within: Duration) -> Result<EngineVersion, EngineError> {
        self.ping(within).await?;
        Ok(EngineVersion { version: "20.10.24".into(), api: ApiVersion(1, 41) })
    }
}

/// An engine that has one container, which runs, and no image.
#[derive(Debug)]
pub struct FakeContainers(ContainerSeen);

impl FakeContainers {
    /// With these labels.
    pub fn with_one(labels: &[(&str, &str)]) -> FakeContainers {
        let label = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        FakeContainers(ContainerSeen {
            id: "c0ffee".into(),
            running: true,
            pid: Some(1),
            exit_code: None,
            oom_killed: false,
            image_id: String::new(),
            labels: labels.iter().map(label).collect(),
            error: String::new(),
        })
    }

    fn changes_nothing<T>(call: &'static str) -> Result<T, EngineError> {
        Err(EngineError::Absent { socket: format!("{call}: this engine is only looked at") })
    }
}

impl Containers for FakeContainers {
    async fn container(&self, _: &str, _: Duration) -> Result<Option<ContainerSeen>, EngineError> {
        Ok(Some(self.0.clone()))
    }

    async fn create(&self, _: &ContainerSpec, _: Duration) -> Result<String, EngineError> {
        FakeContainers::changes_nothing("create")
    }

    async fn start(&self, _: &str, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("start")
    }

    async fn kill(&self, _: &str, _: &str, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("kill")
    }

    async fn remove(&self, _: &str, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("remove")
    }

    async fn last_lines(&self, _: &str, _: usize, _: Duration) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }

    async fn image(&self, _: &str, _: Duration) -> Result<Option<String>, EngineError> {
        Ok(None)
    }

    async fn pull(
        &self,
        _: &str,
        _: impl Fn(String) + Send + Sync,
        _: Duration,
    ) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("pull")
    }

    async fn load(&self, _: Tar, _: Duration) -> Result<(), EngineError> {
        FakeContainers::changes_nothing("load")
    }
}
