//! Files of the agent that could not be used, and what the operator is told of them.

use std::io;
use std::path::PathBuf;

use crate::model::code::Code;
use crate::model::fault::{Fault, chain, closed_or};

/// A file of the agent that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder could not be made.
    #[error(
        "cannot make the state folder {path}{}",
        closed_or(source, ": check its parent and the disk, or set state_dir or run_dir")
    )]
    MakeFolder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error(
        "cannot write {path}{}",
        closed_or(source, ": free space or make the disk writable, then call again")
    )]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent works on the same state.
    #[error("{path} is held by another vhost-agent ({holder}): only one may own a node")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote into it.
        holder: String,
    },
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        let code = match &error {
            StoreError::MakeFolder { .. } | StoreError::Write { .. } => Code::StateUnwritable,
            StoreError::Read { .. } => Code::StateUnreadable,
            StoreError::Locked { .. } => Code::AnotherAgent,
        };
        Fault::new(code, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do_where_the_unit_closes_the_folder() {
        let write = |kind: io::ErrorKind| {
            StoreError::Write { path: "/data/lock".into(), source: kind.into() }.to_string()
        };
        assert!(write(io::ErrorKind::ReadOnlyFilesystem).contains("ReadWritePaths="));
        assert!(write(io::ErrorKind::StorageFull).contains("free space"));
    }
}
