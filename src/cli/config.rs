//! `vhost-agent config check|show`.

use anyhow::{Context, Result};
use clap::Subcommand;

use super::render::{print, print_json, warnings};
use super::{Output, exit};
use crate::config::Loaded;

/// Actions on the settings.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the settings and list their sources
    Check,
    /// Print the effective settings
    Show,
}

/// Runs the command. Invalid settings have been refused before.
pub(super) fn run(command: &ConfigCommand, loaded: &Loaded, output: Output) -> Result<u8> {
    match (command, output) {
        (ConfigCommand::Check, Output::Json) => {
            let access = loaded.settings.exposure(loaded.settings.listen);
            let valid =
                serde_json::json!({"valid": true, "sources": loaded.sources, "access": access});
            print_json(&valid)?;
        }
        (ConfigCommand::Check, Output::Table) => {
            let access = loaded.settings.exposure(loaded.settings.listen);
            let warnings = warnings(&access);
            let (sources, access) = (sources(loaded, ""), access.text());
            print(&format!("the settings are valid\n{sources}who may call: {access}\n{warnings}"))?;
        }
        (ConfigCommand::Show, Output::Json) => print_json(&loaded.settings)?,
        (ConfigCommand::Show, Output::Table) => {
            let text = toml::to_string(&loaded.settings).context("cannot print the settings")?;
            print(&format!("{}{text}", sources(loaded, "# ")))?;
        }
    }
    Ok(exit::HOLDS)
}

fn sources(loaded: &Loaded, prefix: &str) -> String {
    if loaded.sources.is_empty() {
        return format!("{prefix}all of them are the defaults\n");
    }
    loaded.sources.iter().map(|source| format!("{prefix}from {source}\n")).collect()
}
