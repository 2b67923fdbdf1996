//! Errors of the agent's state files, with what the operator can do.

use std::io;
use std::path::PathBuf;

use crate::model::code::Code;
use crate::model::fault::{Fault, chain, closed_or};

/// Failure to use one of the agent's files.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "cannot make the state folder {path}{}",
        closed_or(source, ": check its parent and the disk, or set state_dir or run_dir")
    )]
    MakeFolder { path: PathBuf, source: io::Error },
    #[error(
        "cannot write {path}{}",
        closed_or(source, ": free space or make the disk writable, then call again")
    )]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// Lock held by another agent on the same state.
    #[error("{path} is held by another vhost-agent ({holder}): only one may own a node")]
    Locked {
        /// Lock file.
        path: PathBuf,
        /// Line that the holder wrote into the lock file.
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
