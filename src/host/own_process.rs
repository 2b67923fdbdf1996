//! The agent's own process: its limit of open files, and the secrecy of its memory.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Returns freed memory, which the allocator keeps, to the kernel: otherwise a burst of calls would stay in the
/// resident memory for good (malloc_trim(3)).
#[allow(unsafe_code)]
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks the state it reads.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Raises the limit of open files to the hard limit, and returns it.
pub fn raise_open_files() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
            if raised { hard } else { soft }
        }
        Ok((soft, _)) => soft,
        // Default limit of every process.
        Err(_) => 1024,
    }
}

/// Forbids core dumps of this process and access to it without privileges: calls can carry secrets (prctl(2),
/// PR_SET_DUMPABLE). Programs that it starts are not affected.
pub fn forbid_dumps() {
    if let Err(e) = set_dumpable(false) {
        tracing::warn!(error = %e, "a crash of the agent could leave secrets in a core dump");
    }
}
