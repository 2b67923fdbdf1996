//! The agent's own process: what it may open, and what must not be left of its memory.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Gives the kernel back what has been freed, which the allocator keeps: a burst of calls would stay in the resident
/// memory for good (malloc_trim(3)).
#[allow(unsafe_code)]
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks what it looks at.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Raises the limit of open files to what the process may raise it to, and tells it.
pub fn raise_open_files() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
            if raised { hard } else { soft }
        }
        Ok((soft, _)) => soft,
        // What every process has.
        Err(_) => 1024,
    }
}

/// Lets the kernel write no core dump of this process, and nobody without privileges look into it: what
/// calls bring can be secret (prctl(2), PR_SET_DUMPABLE). Programs that it starts are not bound by that.
pub fn forbid_dumps() {
    if let Err(e) = set_dumpable(false) {
        tracing::warn!(error = %e, "a crash of the agent could leave secrets in a core dump");
    }
}
