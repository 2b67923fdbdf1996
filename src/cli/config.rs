//! `vhost-agent config check|show`.

use anyhow::{Context, Result};
use clap::Subcommand;

use super::{Output, exit};
use crate::config::Loaded;

/// What to do with the settings.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the settings and say where they come from
    Check,
    /// Print the settings as they apply
    Show,
}

/// Settings that cannot be used have been refused before this is reached.
pub(super) fn run(command: &Command, loaded: &Loaded, output: Output) -> Result<u8> {
    match (command, output) {
        (Command::Check, Output::Json) => {
            println!("{}", serde_json::json!({"valid": true, "sources": loaded.sources}));
        }
        (Command::Check, Output::Table) => {
            println!("the settings are valid");
            list_sources(loaded, "");
        }
        (Command::Show, Output::Json) => {
            println!("{}", serde_json::to_string_pretty(&loaded.settings)?);
        }
        (Command::Show, Output::Table) => {
            list_sources(loaded, "# ");
            let text = toml::to_string(&loaded.settings).context("cannot print the settings")?;
            print!("{text}");
        }
    }
    Ok(exit::HOLDS)
}

fn list_sources(loaded: &Loaded, prefix: &str) {
    if loaded.sources.is_empty() {
        println!("{prefix}all of them are the defaults");
    }
    for source in &loaded.sources {
        println!("{prefix}from {source}");
    }
}
