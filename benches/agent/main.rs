//! What the agent costs: each figure beside its floor, measured in the same run, and its aim.
//!
//! ```text
//! cargo bench                         all of it
//! cargo bench -- prepareenv growth    some of it
//! benches/run                         all of it on a bare machine with a real engine
//! ```
//!
//! Nothing is asserted: a machine that is busy makes every figure worse, and the reader has to judge.
//! The pages that are taken are given back. Needs root. Without an engine that is as the agent wants
//! it, only `growth` and `footprint` run, and without it, for a bench must not change the engine of the
//! machine it happens to run on; `load`, `flood` and `callbacks` play one.

// A bench is a client of the agent and of the kernel, not part of the agent.
#![allow(clippy::disallowed_methods)]

mod agent;
mod callbacks;
mod callers;
mod deploy;
mod dial;
mod figures;
mod flood;
mod floor;
mod footprint;
mod growth;
mod heal;
mod health;
mod http;
mod load;
mod machine;
mod pages;
mod played;
mod prepareenv;
mod report;
mod target;
mod volumes;

use anyhow::{Result, bail};

use crate::agent::EngineUse;

type Bench = fn(EngineUse) -> Result<()>;

const BENCHES: [(&str, Bench); 11] = [
    ("prepareenv", prepareenv::run),
    ("growth", growth::run),
    ("footprint", footprint::run),
    ("health", health::run),
    ("report", report::run),
    ("deploy", deploy::run),
    ("volumes", volumes::run),
    ("heal", heal::run),
    ("load", load::run),
    ("flood", flood::run),
    ("callbacks", callbacks::run),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((floor::ARGUMENT, rest)) = arguments.split_first().map(|(f, r)| (f.as_str(), r)) {
        return floor::serve(rest);
    }
    // cargo adds its own flags.
    let wanted: Vec<String> = arguments.into_iter().filter(|a| !a.starts_with("--")).collect();
    if let Some(unknown) = wanted.iter().find(|name| BENCHES.iter().all(|(n, _)| n != name)) {
        bail!(
            "no bench is called '{unknown}'; there are {}",
            BENCHES.map(|(name, _)| name).join(", ")
        );
    }
    let engine = match agent::engine_is_ready() {
        Ok(()) => EngineUse::Managed,
        Err(why) => {
            println!("WITHOUT AN ENGINE: {why:#}; benches/run has one\n");
            EngineUse::LeftAlone
        }
    };
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            bench(engine)?;
            println!();
        }
    }
    Ok(())
}
