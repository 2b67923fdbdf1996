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
mod tests {
    use super::*;
    use crate::model::egress_policy::EgressPolicy;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn load_with(config: &Path, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let overrides = Overrides { config: Some(config.to_owned()), ..Overrides::default() };
        let variables: Vec<_> =
            variables.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
        load(&overrides, variables.into_iter())
    }

    #[test]
    fn later_sources_win_key_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let main = write(dir.path(), "config.toml", "[pools]\nfloor_mib = 1\nfloor_percent = 1\n");
        write(dir.path(), "config.d/20.toml", "[pools]\nfloor_mib = 3\n");
        write(dir.path(), "config.d/10.toml", "[pools]\nfloor_mib = 2\ndefault_pages = 7\n");
        write(dir.path(), "config.d/ignored.bak", "nonsense");
        let variables =
            [("VHOST_AGENT_POOLS__DEFAULT_PAGES", "9"), ("VHOST_AGENT_ENGINE__MIN_API", "1.43")];
        let pools = load_with(&main, &variables).unwrap().settings;
        for (value, expected) in [
            ("callers", EgressPolicy::Callers),
            ("[\"10.0.0.0/8\"]", EgressPolicy::To(["10.0.0.0/8".parse().unwrap()].into())),
        ] {
            let settings = load_with(&main, &[("VHOST_AGENT_OUTGOING__TO", value)]).unwrap();
            assert_eq!(settings.settings.outgoing.to, expected);
        }
        assert_eq!((pools.pools.floor_mib, pools.pools.floor_percent), (3, 1));
        assert_eq!(pools.pools.default_pages, 9);
        assert_eq!(pools.engine.min_api, crate::model::engine::ApiVersion(1, 43));
        assert_eq!(pools.pools.write_timeout, Settings::default().pools.write_timeout);
    }

    #[test]
    fn later_source_wins_whichever_name_of_a_setting_it_uses() {
        let dir = tempfile::tempdir().unwrap();
        let main =
            write(dir.path(), "config.toml", "[heal]\nfrozen_after = \"4s\"\nprove = \"1s\"\n");
        write(dir.path(), "config.d/10.toml", "[heal]\nunresponsive_after = \"5s\"\n");
        let variables = [("VHOST_AGENT_HEAL__MIN_READY", "2s")];
        let heal = load_with(&main, &variables).unwrap().settings.heal;
        assert_eq!((heal.unresponsive_after.as_secs(), heal.min_ready.as_secs()), (5, 2));
        let wrong = [("VHOST_AGENT_HEAL__FROZEN_AFTER", "0s")];
        let error = load_with(&main, &wrong).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("VHOST_AGENT_HEAL__FROZEN_AFTER"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            ("listen = \"[::]:1\"\n\n[pools]\nflor_mib = 1\n", ":4: unknown field `flor_mib`"),
            ("[pools]\nfloor_mib = -1\n", ":2: invalid value"),
            ("listen = 7070\n", ":1: "),
            ("[engine]\nready_timeout = \"soon\"\n", ":2: 'soon' is not a duration"),
            ("[mount]\nmode = \"0999\"\n", ":2: '0999' is not a mode"),
            ("[pools\n", ":1: "),
            ("fallback_url = \"kvmagent\"\n", "fallback_url: 'kvmagent' is no address"),
            ("fallback_url = \"http://[::1]:7070\"\n", "is where this agent listens itself"),
            ("[pools]\nfloor_percent = 101\n", "pools.floor_percent: 101 is more than 100"),
            ("[pools]\nmax_percent = 101\n", "pools.max_percent: 101 is more than 100"),
            ("[target]\nmax_targets = 65\n", "target.max_targets: 65 is not between 1 and 64"),
            ("[target]\nmax_volumes = 0\n", "target.max_volumes: 0 is not between"),
            (
                "[target]\nsocket_roots = [\"/etc/x\"]\n",
                "target.socket_roots: '/etc/x' cannot be opened",
            ),
            ("[target]\nsocket_roots = [\"../x\"]\n", ":2: '../x' is no path"),
            (
                "[target]\nclient_conf_roots = [\"/etc\"]\n",
                "target.client_conf_roots: '/etc' cannot be opened",
            ),
            ("[target]\nimage_tar_roots = [\"/\"]\n", "target.image_tar_roots: '/' cannot be"),
            ("[target]\naio_roots = [\"/dev/x\"]\n", "target.aio_roots: '/dev/x' cannot be opened"),
            (
                "[target]\naio_devices = [\"/srv/*\"]\n",
                "target.aio_devices: '/srv/*' is no pattern",
            ),
            ("[target]\nallowed_images = [\"a//b\"]\n", "target.allowed_images: 'a//b' is neither"),
            ("[target]\nimage_urls = [\"store\"]\n", "target.image_urls: 'store' is no address"),
            ("[target]\nraw_methods = [\"kill\"]\n", "target.raw_methods: 'kill' is not a method"),
            ("[http]\nmax_tasks = 0\n", "http.max_tasks: 0 is not between"),
            ("[log]\nlevel = \"loud\"\n", "log.level: 'loud' is no level or filter"),
            ("[log]\nlevel = \"info,a=loud\"\n", "log.level: 'info,a=loud' is no level or filter"),
            (
                "[target]\nimage_url = \"vhost.tar\"\n",
                "target.image_url: 'vhost.tar' is no address",
            ),
            (
                "[report]\nurl = \"controller:8080\"\n",
                "report.url: 'controller:8080' is no address",
            ),
            ("[report]\ncommand_path = \"a b\"\n", "report.command_path: 'a b' is no plain path"),
            ("[outgoing]\nto = \"all\"\n", ":2: 'all' is neither \"any\" nor \"callers\""),
            ("[outgoing]\nto = [\"10.0.0.1/8\"]\n", ":2: '10.0.0.1/8' is no network"),
            ("[report]\ninterval = \"0s\"\n", "report.interval: 0ns is not between"),
            ("[target]\nimage_sha256 = \"ab\"\n", "target.image_sha256: "),
            ("[target]\nimage_max_mib = 0\n", "target.image_max_mib: 0 is not between"),
            ("[target]\ntmpfs = [\"tmp\"]\n", "target.tmpfs: 'tmp' is not the plain absolute path"),
            ("[target]\ntmpfs = [\"/\"]\n", "target.tmpfs: '/' is not the plain absolute path"),
            ("[target]\ntmpfs_mib = 0\n", "target.tmpfs_mib: 0 is not between"),
            ("[target]\npids_limit = 0\n", "target.pids_limit: 0 is not between"),
            ("[mount]\npath = \"huge\"\n", "mount.path: 'huge' is not a plain absolute path"),
        ];
        for (text, expected) in cases {
            let path = write(dir.path(), "config.toml", text);
            let error = load_with(&path, &[]).unwrap_err().to_string();
            assert!(error.starts_with(&path.display().to_string()), "{error}");
            assert!(error.contains(expected), "{error} does not contain {expected}");
        }
    }

    #[test]
    fn a_wrong_variable_and_a_missing_file_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "config.toml", "");
        let error = load_with(&path, &[("VHOST_AGENT_POOL__X", "1")]).unwrap_err().to_string();
        assert!(
            error.contains("the variable VHOST_AGENT_POOL__X: unknown field `pool`"),
            "{error}"
        );
        let error = load_with(&dir.path().join("none.toml"), &[]).unwrap_err().to_string();
        assert!(error.contains("none.toml"), "{error}");
    }

    #[test]
    fn credentials_are_judged_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let registry = "[registry.\"10.0.0.1:5000\"]\n";
        for (lines, expected) in [
            ("password = \"x\"", "10.0.0.1:5000 has no username"),
            ("username = \"n\"", "needs either password or password_file"),
            ("username = \"n\"\npassword = \"x\"\npassword_file = \"/p\"", "needs either"),
            ("username = \"n\"\npassword_file = \"p\"", "is not a plain absolute path"),
            ("username = \"n\"\npassword = 4711", ":3: a password is a text in quotes"),
            ("user = \"n\"", "unknown field `user`"),
        ] {
            let path = write(dir.path(), "config.toml", &format!("{registry}{lines}\n"));
            let error = load_with(&path, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not contain {expected}");
            assert!(!error.contains("4711"), "{error}");
        }
        let text = format!("{registry}username = \"n\"\npassword = \"hunter2\"\n");
        let path = write(dir.path(), "config.toml", &text);
        let settings = load_with(&path, &[]).unwrap().settings;
        let login = &settings.registry["10.0.0.1:5000"];
        assert_eq!(login.password.expose(), "hunter2");
        for shown in [
            toml::to_string(&settings).unwrap(),
            serde_json::to_string(&settings).unwrap(),
            format!("{settings:?}"),
        ] {
            assert!(shown.contains("********") && !shown.contains("hunter2"), "{shown}");
        }
        let path = write(dir.path(), "config.toml", "[registry.\"http://a/\"]\nusername = \"n\"\n");
        let error = load_with(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("'http://a/' is no registry"), "{error}");
    }

    #[test]
    fn levels_and_filters_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        for level in
            ["off", "TRACE", "info,vhost_agent::agent=debug", "warn,a[b{c=\\\"d\\\"}]=trace"]
        {
            let path = write(dir.path(), "config.toml", &format!("[log]\nlevel = \"{level}\"\n"));
            load_with(&path, &[]).unwrap();
        }
    }

    #[test]
    fn shown_settings_can_be_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let shown = toml::to_string(&Settings::default()).unwrap();
        let path = write(dir.path(), "config.toml", &shown);
        assert_eq!(load_with(&path, &[]).unwrap().settings, Settings::default());
    }
}
