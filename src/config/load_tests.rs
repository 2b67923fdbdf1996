//! Settings from files, drop-ins, variables and flags, and what is wrong with them.

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
    let main = write(dir.path(), "config.toml", "[heal]\nfrozen_after = \"4s\"\nprove = \"1s\"\n");
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
        (
            "[pools]\narrival_reserve = 8589934593\n",
            "pools.arrival_reserve: 8589934593 pages are no machine's memory",
        ),
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
        ("[target]\naio_devices = [\"/srv/*\"]\n", "target.aio_devices: '/srv/*' is no pattern"),
        ("[target]\nallowed_images = [\"a//b\"]\n", "target.allowed_images: 'a//b' is neither"),
        ("[target]\nimage_urls = [\"store\"]\n", "target.image_urls: 'store' is no address"),
        ("[target]\nraw_methods = [\"kill\"]\n", "target.raw_methods: 'kill' is not a method"),
        ("[http]\nmax_tasks = 0\n", "http.max_tasks: 0 is not between"),
        ("[log]\nlevel = \"loud\"\n", "log.level: 'loud' is no level or filter"),
        ("[log]\nlevel = \"info,a=loud\"\n", "log.level: 'info,a=loud' is no level or filter"),
        ("[target]\nimage_url = \"vhost.tar\"\n", "target.image_url: 'vhost.tar' is no address"),
        ("[report]\nurl = \"controller:8080\"\n", "report.url: 'controller:8080' is no address"),
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
        ("[target]\ncgroup_parent = \"vhost\"\n", "target.cgroup_parent: 'vhost' is no cgroup"),
        ("[target]\ncgroup_parents = [\"/a/../b\"]\n", ":2: '/a/../b' is no cgroup"),
        ("[storage]\nheartbeat_timeout = \"0s\"\n", "storage.heartbeat_timeout: 0ns is not"),
        ("[storage]\npackages = [\"--force\"]\n", "storage.packages: '--force' is no name of"),
        ("[storage]\nrepositories = [\"*\"]\n", "storage.repositories: '*' is no name of"),
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
    assert!(error.contains("the variable VHOST_AGENT_POOL__X: unknown field `pool`"), "{error}");
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
    for level in ["off", "TRACE", "info,vhost_agent::agent=debug", "warn,a[b{c=\\\"d\\\"}]=trace"] {
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
