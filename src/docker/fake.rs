//! An engine that is played: it has a state, and tests change it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Engine, EngineError};
use crate::model::engine::{ApiVersion, EngineVersion};

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
