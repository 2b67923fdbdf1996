//! Set of processor cores that a target may use: parsing, checking, pinning.

use std::fmt;
use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Set of cores that is invalid, or not available to this process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// Input that is neither a mask nor a list.
    #[error("'{0}' is neither a core mask such as 0x3 nor a list such as [0,1] or 0-1")]
    Syntax(String),
    /// Unavailable core, reported in SPDK's words, so that a parser of SPDK's log reads this message as well.
    #[error("lcore {0} unavailable: this process may not run on such a core")]
    Unavailable(usize),
}

/// Processor cores, ascending, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// Core numbers, ascending.
    pub fn numbers(&self) -> &[usize] {
        &self.0
    }

    /// Core 0 only, which is SPDK's default.
    pub(super) fn first() -> Self {
        Self(vec![0])
    }

    /// `true` if `others` has each of these cores.
    pub(super) fn within(&self, others: &Self) -> bool {
        self.0.iter().all(|core| others.0.contains(core))
    }

    /// Hexadecimal mask of the cores, as SPDK prints it.
    pub(super) fn mask(&self) -> String {
        let bits = self.0.iter().filter(|core| **core < 128).fold(0u128, |m, c| m | 1 << c);
        format!("0x{bits:x}")
    }

    /// Checks that this process may run on each of the cores.
    ///
    /// # Errors
    /// The first core that this process may not run on.
    pub(super) fn check(&self) -> Result<(), CoreError> {
        let Ok(here) = sched_getaffinity(Pid::from_raw(0)) else { return Ok(()) };
        match self.0.iter().find(|core| !here.is_set(**core).unwrap_or(false)) {
            Some(core) => Err(CoreError::Unavailable(*core)),
            None => Ok(()),
        }
    }

    /// Pins the calling thread to the core with the index `nth`, modulo the number of cores. If that fails, the thread
    /// runs unpinned.
    pub(super) fn pin(&self, nth: usize) {
        let core = self.0[nth % self.0.len()];
        let mut set = CpuSet::new();
        let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(errno) = pinned {
            tracing::warn!(
                core, %errno,
                "an I/O thread could not be pinned to core {core} and runs unpinned: {errno}"
            );
        }
    }
}

fn number(text: &str) -> Option<usize> {
    text.trim().parse().ok().filter(|core| *core < 1024)
}

fn list(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) => cores.extend(number(first)?..=number(last)?),
            None => cores.push(number(part)?),
        }
    }
    Some(cores)
}

fn mask(digits: &str) -> Option<Vec<usize>> {
    let bits = u128::from_str_radix(digits, 16).ok()?;
    Some((0..128).filter(|core| bits >> core & 1 == 1).collect())
}

impl FromStr for Cores {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        let text = text.trim();
        let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let cores = match (hexadecimal, bracketed) {
            (Some(digits), _) => mask(digits),
            (None, Some(inner)) => list(inner),
            (None, None) if text.contains([',', '-']) => list(text),
            // A bare number is a mask, as SPDK reads it.
            (None, None) => mask(text),
        };
        let mut cores = cores.ok_or_else(|| CoreError::Syntax(text.to_string()))?;
        cores.sort_unstable();
        cores.dedup();
        if cores.is_empty() {
            return Err(CoreError::Syntax(text.to_string()));
        }
        Ok(Self(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.mask())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(text: &str) -> Vec<usize> {
        text.parse::<Cores>().unwrap().0
    }

    #[test]
    fn masks_and_lists_are_read_as_spdk_reads_them() {
        assert_eq!(cores("0x3"), [0, 1]);
        assert_eq!(cores("[0,1]"), [0, 1]);
        assert_eq!(cores("[2-4,0]"), [0, 2, 3, 4]);
        assert_eq!(cores("0-1"), [0, 1]);
        assert_eq!(cores("5"), [0, 2]);
    }

    #[test]
    fn what_is_no_set_of_cores_is_refused() {
        for text in ["", "0x0", "x", "[1", "[a]", "3-1", "0-99999999999"] {
            assert!(text.parse::<Cores>().is_err(), "{text} was taken");
        }
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let error = "[0,1000]".parse::<Cores>().unwrap().check().unwrap_err();
        assert!(error.to_string().contains("lcore 1000 unavailable"), "{error}");
    }
}
