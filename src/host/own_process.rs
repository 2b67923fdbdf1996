//! The agent's own process: freed memory, the limit of open files, and a ban on core dumps.

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Returns the freed memory that the allocator keeps to the kernel (malloc_trim(3)). Otherwise the memory of a burst of
/// calls would stay resident for good.
#[allow(unsafe_code)]
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks the state it reads.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Raises the soft limit of open files to the hard limit, and returns the limit in force.
pub fn raise_open_files() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
            if raised { hard } else { soft }
        }
        Ok((soft, _)) => soft,
        // Usual soft limit of a process.
        Err(_) => 1024,
    }
}

/// Forbids core dumps of this process and access to its memory without privileges, because calls can carry secrets
/// (prctl(2), PR_SET_DUMPABLE). Programs that the agent starts are not affected.
pub fn forbid_dumps() {
    if let Err(e) = set_dumpable(false) {
        tracing::warn!(
            error = %e,
            "core dumps of this process could not be forbidden, so a crash may leave secrets in one: {e}"
        );
    }
}
