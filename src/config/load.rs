//! Reading, merging and validating the sources of the settings.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::settings::Settings;

/// Settings file when neither flag nor environment names one.
const DEFAULT_FILE: &str = "/etc/vhost-agent/config.toml";
/// Prefix of the variables' names; `__` separates a table from its key.
const PREFIX: &str = "VHOST_AGENT_";
/// Variable with the path of the settings file. In spite of its prefix, it is not a setting.
const FILE_VARIABLE: &str = "VHOST_AGENT_CONFIG";

/// Settings that the command line gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`: the settings file, which then must exist.
    pub config: Option<PathBuf>,
    pub listen: Option<String>,
    pub state_dir: Option<PathBuf>,
    pub log_dir: Option<PathBuf>,
    /// Drop-in whose text is taken from here instead of its file: (path, text). The file need not exist.
    pub replaced: Option<(PathBuf, String)>,
}

impl Overrides {
    /// Returns the path of the settings file: from `--config`, else from the variable `VHOST_AGENT_CONFIG`, else the
    /// default.
    pub fn settings_file(&self) -> PathBuf {
        let named =
            self.config.clone().or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from));
        named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
    }
}

/// Reads a settings file, and returns its text and its settings; `None` if the file is missing.
///
/// # Errors
/// When the file cannot be read or is not valid.
pub fn previous(path: &Path) -> Result<Option<(String, Settings)>, ConfigError> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?,
    };
    let wrong = |e: toml::de::Error| ConfigError::Wrong {
        origin: path.display().to_string(),
        problem: e.message().to_string(),
    };
    let settings = toml::from_str(&text).map_err(wrong)?;
    Ok(Some((text, settings)))
}

/// Settings with their origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub settings: Settings,
    /// Sources that were found, in the order in which they were applied.
    pub sources: Vec<String>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the settings in {path}")]
    Read { path: PathBuf, source: io::Error },
    /// Invalid source. For a wrong key or type in a file that is merged, `origin` includes the line.
    #[error("{origin}: {problem}")]
    Wrong {
        /// File, variable or flag.
        origin: String,
        problem: String,
    },
}

/// Returns the variables of the process's environment. Variables that are not UTF-8 are left out, for no setting is.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// `true` if standard error goes to the journal, according to systemd's `JOURNAL_STREAM` (systemd.exec(5)).
pub fn stderr_is_the_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}

/// Loads the settings.
///
/// # Errors
/// [`ConfigError`] with the file and line, the variable or the flag at fault.
pub fn load(
    overrides: &Overrides,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let variables: Vec<(String, String)> =
        environment.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let mut sources = Vec::new();
    let named = overrides.config.clone().or_else(|| {
        let variable = variables.iter().find(|(name, _)| name == FILE_VARIABLE);
        variable.map(|(_, value)| PathBuf::from(value))
    });
    let file = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    if named.is_some() || file.exists() {
        sources.push(from_file(&file)?);
    }
    let mut drop_ins = drop_ins(&file)?;
    if let Some((path, _)) =
        overrides.replaced.as_ref().filter(|(path, _)| !drop_ins.contains(path))
    {
        drop_ins.push(path.clone());
        drop_ins.sort();
    }
    for path in drop_ins {
        sources.push(match &overrides.replaced {
            Some((replaced, text)) if *replaced == path => from_text(&path, text)?,
            _ => from_file(&path)?,
        });
    }
    for (name, value) in &variables {
        if name != FILE_VARIABLE {
            sources.push((format!("the variable {name}"), from_variable(name, value)?));
        }
    }
    sources.extend(from_flags(overrides)?);
    combine(sources)
}

/// Settings with a former name that is still read: table, former name, name.
const FORMER_NAMES: [(&str, &str, &str); 3] = [
    ("heal", "prove", "min_ready"),
    ("heal", "frozen_after", "unresponsive_after"),
    ("heal", "settle", "grace_period"),
];

/// Gives settings their current names, so that a later source replaces an earlier one whichever name each uses.
fn with_current_names(mut table: Table) -> Table {
    for (section, former, name) in FORMER_NAMES {
        if let Some(Value::Table(settings)) = table.get_mut(section)
            && let Some(value) = settings.remove(former)
        {
            settings.insert(name.to_string(), value);
        }
    }
    table
}

fn combine(sources: Vec<(String, Table)>) -> Result<Loaded, ConfigError> {
    let current = |(name, table)| (name, with_current_names(table));
    let sources: Vec<(String, Table)> = sources.into_iter().map(current).collect();
    let mut merged = Table::new();
    for (_, table) in &sources {
        merge(&mut merged, table);
    }
    let names: Vec<String> = sources.iter().map(|(name, _)| name.clone()).collect();
    let settings: Settings = typed(&merged).map_err(|problem| ConfigError::Wrong {
        origin: "the settings together".into(),
        problem,
    })?;
    if let Some((key, problem)) = settings.problem() {
        let set_by = sources.iter().rev().find(|(_, table)| has(table, key));
        let origin = set_by.map_or("the defaults".to_string(), |(name, _)| name.clone());
        return Err(ConfigError::Wrong { origin, problem: format!("{key}: {problem}") });
    }
    Ok(Loaded { settings, sources: names })
}

fn from_file(path: &Path) -> Result<(String, Table), ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    from_text(path, &text)
}

fn from_text(path: &Path, text: &str) -> Result<(String, Table), ConfigError> {
    let origin = path.display().to_string();
    let wrong = |e: toml::de::Error| {
        let line = e.span().map_or(1, |span| {
            let before = text.get(..span.start).unwrap_or(text);
            before.bytes().filter(|byte| *byte == b'\n').count() + 1
        });
        ConfigError::Wrong { origin: format!("{origin}:{line}"), problem: e.message().to_string() }
    };
    toml::from_str::<Settings>(text).map_err(wrong)?;
    let table = toml::from_str::<Table>(text).map_err(wrong)?;
    Ok((origin, table))
}

/// Lists `config.d/*.toml` beside the file, by name.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = file.with_file_name("config.d");
    let listing = match fs::read_dir(&folder) {
        Ok(listing) => listing,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(ConfigError::Read { path: folder, source }),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|source| ConfigError::Read { path: folder.clone(), source })?;
        if entry.path().extension().is_some_and(|extension| extension == "toml") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Parses a variable's value: as TOML where that fits the setting, else as bare text.
fn from_variable(name: &str, value: &str) -> Result<Table, ConfigError> {
    let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
    let as_toml = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"));
    let as_text = Value::String(value.to_string());
    let mut problem = String::new();
    for candidate in as_toml.into_iter().chain([as_text]) {
        let table = nested(&path, candidate);
        match typed::<Settings>(&table) {
            Ok(_) => return Ok(table),
            Err(e) => problem = e,
        }
    }
    Err(ConfigError::Wrong { origin: format!("the variable {name}"), problem })
}

fn nested(path: &[String], value: Value) -> Table {
    let mut table = Table::new();
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            table.insert(key.clone(), Value::Table(nested(rest, value)));
        }
    }
    table
}

fn from_flags(overrides: &Overrides) -> Result<Vec<(String, Table)>, ConfigError> {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let flags = [
        ("listen", overrides.listen.clone()),
        ("state_dir", path(&overrides.state_dir)),
        ("log_dir", path(&overrides.log_dir)),
    ];
    let mut sources = Vec::new();
    for (key, value) in flags {
        let Some(value) = value else { continue };
        let table = nested(&[key.to_string()], Value::String(value));
        let origin = format!("the flag --{}", key.replace('_', "-"));
        typed::<Settings>(&table)
            .map_err(|problem| ConfigError::Wrong { origin: origin.clone(), problem })?;
        sources.push((origin, table));
    }
    Ok(sources)
}

fn typed<T: DeserializeOwned>(table: &Table) -> Result<T, String> {
    T::deserialize(table.clone()).map_err(|e| e.message().to_string())
}

/// Merges `from` into `into`. Tables are merged key by key; any other value is replaced.
fn merge(into: &mut Table, from: &Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Table(inner)), Value::Table(more)) => merge(inner, more),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

fn has(table: &Table, key: &str) -> bool {
    match key.split_once('.') {
        None => table.contains_key(key),
        Some((first, rest)) => {
            table.get(first).and_then(Value::as_table).is_some_and(|inner| has(inner, rest))
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
