//! Options of the engine's daemon (dockerd(8)), set on its command line or in its configuration file. One that is set in
//! both keeps the daemon from starting.

use serde_json::{Map, Value};

use super::daemon_json::keys;
use super::engine::DaemonJson;

/// Address at which the daemon listens without `--host`.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// Options of one start of the daemon.
#[derive(Debug)]
pub struct EngineOptions<'a> {
    args: &'a [String],
    file: Map<String, Value>,
}

impl<'a> EngineOptions<'a> {
    /// Options on the command line `args` and in the configuration `file`.
    pub fn new(args: &'a [String], file: &DaemonJson) -> EngineOptions<'a> {
        let file = match file {
            DaemonJson::Object { text, .. } => keys(text),
            DaemonJson::Absent | DaemonJson::Unusable(_) => Map::new(),
        };
        EngineOptions { args, file }
    }

    /// Value of the boolean option `name` on the command line.
    pub fn flag(&self, name: &str) -> Option<bool> {
        flag(self.args, name)
    }

    /// Value of `name` in the file, of any type.
    pub fn key(&self, name: &str) -> Option<&Value> {
        self.file.get(name)
    }

    /// Value of the boolean option `name`, wherever it is set.
    pub fn boolean(&self, name: &str) -> Option<bool> {
        self.flag(name).or_else(|| self.key(name)?.as_bool())
    }

    /// Value of the option `name` that has a text, wherever it is set.
    pub fn text(&self, name: &str) -> Option<&str> {
        values(self.args, name, short(name)).pop().or_else(|| self.key(name)?.as_str())
    }

    /// `true` if `name` is set anywhere.
    pub fn has(&self, name: &str) -> bool {
        self.key(name).is_some()
            || self.flag(name).is_some()
            || !values(self.args, name, short(name)).is_empty()
    }

    /// Value of `option` in `exec-opts`, such as `systemd` for `native.cgroupdriver`.
    pub fn exec_option(&self, option: &str) -> Option<&str> {
        let in_file = self.key("exec-opts").and_then(Value::as_array).into_iter().flatten();
        let all = values(self.args, "exec-opt", None)
            .into_iter()
            .chain(in_file.filter_map(Value::as_str));
        all.filter_map(|text| text.split_once('='))
            .filter(|(name, _)| *name == option)
            .map(|(_, it)| it)
            .next_back()
    }

    /// Addresses at which the daemon listens, at least one.
    pub fn hosts(&self) -> Vec<&str> {
        let in_file = self.key("hosts").and_then(Value::as_array).into_iter().flatten();
        let given = values(self.args, "host", short("host")).into_iter();
        let all = given.chain(in_file.filter_map(Value::as_str));
        // An empty one stands for the default, as an unset variable leaves it.
        let mut hosts: Vec<&str> =
            all.map(|host| if host.is_empty() { DEFAULT_HOST } else { host }).collect();
        if hosts.is_empty() {
            hosts.push(DEFAULT_HOST);
        }
        hosts
    }
}

/// Short form of the option `name`.
fn short(name: &str) -> Option<char> {
    match name {
        "bridge" => Some('b'),
        "graph" => Some('g'),
        "host" => Some('H'),
        "pidfile" => Some('p'),
        _ => None,
    }
}

/// Value of the boolean option `name` on a command line, read like any flag of Go: the last counts.
pub fn flag(args: &[String], name: &str) -> Option<bool> {
    args.iter().rev().find_map(|arg| {
        let rest = arg.trim_start_matches('-').strip_prefix(name)?;
        match rest.strip_prefix('=') {
            _ if !arg.starts_with('-') => None,
            None => rest.is_empty().then_some(true),
            Some(value) => Some(!matches!(value, "0" | "f" | "F" | "false" | "False" | "FALSE")),
        }
    })
}

/// Values of the option `name`, or `short`, on a command line, in the forms `--name value`, `--name=value`, `-n value` and
/// `-nvalue`.
pub fn values<'a>(args: &'a [String], name: &str, short: Option<char>) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let long = arg.strip_prefix("--").and_then(|arg| arg.strip_prefix(name));
        let value = match (long, short) {
            (Some(value), _) => value,
            (None, Some(short)) => {
                match arg.strip_prefix('-').and_then(|arg| arg.strip_prefix(short)) {
                    Some("") => "",
                    Some(value) => {
                        found.push(value.trim_start_matches('='));
                        continue;
                    }
                    None => continue,
                }
            }
            (None, None) => continue,
        };
        match value.strip_prefix('=') {
            Some(value) => found.push(value),
            None if value.is_empty() => found.extend(rest.next().map(String::as_str)),
            // Another option, with a name that begins with `name`.
            None => {}
        }
    }
    found
}

/// Path of the configuration file that a daemon with this command line reads; `default` if it names none.
pub fn config_file(args: &[String], default: &str) -> String {
    values(args, "config-file", None).pop().unwrap_or(default).to_string()
}

/// Path with `/run` instead of `/var/run`, which is usually a link to it.
pub fn plain_run(path: &str) -> &str {
    path.strip_prefix("/var").filter(|rest| rest.starts_with("/run/")).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &str) -> Vec<String> {
        words.split(' ').map(String::from).collect()
    }

    #[test]
    fn values_are_read_in_each_spelling_and_the_last_counts() {
        for (words, path) in [
            ("dockerd", "/etc/docker/daemon.json"),
            ("dockerd --config-file /a.json", "/a.json"),
            ("dockerd --config-file=/a.json --debug", "/a.json"),
            ("dockerd --config-file=/a.json --config-file /b.json", "/b.json"),
            ("dockerd --config-files=/a.json", "/etc/docker/daemon.json"),
            ("dockerd --config-file", "/etc/docker/daemon.json"),
        ] {
            assert_eq!(config_file(&args(words), "/etc/docker/daemon.json"), path, "{words}");
        }
    }

    #[test]
    fn hosts_come_from_the_command_line_and_the_file() {
        let file = DaemonJson::Object {
            text: r#"{"hosts": ["tcp://[::1]:1", 7]}"#.into(),
            modified_at: 0,
        };
        for (words, hosts) in [
            ("dockerd", vec!["tcp://[::1]:1"]),
            ("dockerd -H fd:// --host=unix:///a", vec!["fd://", "unix:///a", "tcp://[::1]:1"]),
            ("dockerd -Hunix:///a -H=unix:///b", vec!["unix:///a", "unix:///b", "tcp://[::1]:1"]),
        ] {
            assert_eq!(EngineOptions::new(&args(words), &file).hosts(), hosts, "{words}");
        }
        assert_eq!(EngineOptions::new(&[], &DaemonJson::Absent).hosts(), [DEFAULT_HOST]);
    }

    #[test]
    fn option_of_either_place_is_in_force() {
        let text = r#"{"exec-opts": ["native.cgroupdriver=systemd"], "cgroup-parent": "/a", "icc": false}"#;
        let file = DaemonJson::Object { text: text.into(), modified_at: 0 };
        let none = args("dockerd");
        let options = EngineOptions::new(&none, &file);
        assert_eq!(options.exec_option("native.cgroupdriver"), Some("systemd"));
        assert_eq!(
            (options.text("cgroup-parent"), options.boolean("icc")),
            (Some("/a"), Some(false))
        );
        assert!(!options.has("bip") && options.has("icc"));
        let words =
            "dockerd --exec-opt native.cgroupdriver=cgroupfs --bip 10.0.0.1/24 --icc -g /data";
        let flags = args(words);
        let options = EngineOptions::new(&flags, &DaemonJson::Absent);
        assert_eq!(options.exec_option("native.cgroupdriver"), Some("cgroupfs"));
        assert!(options.has("bip") && options.boolean("icc") == Some(true));
        assert_eq!(options.text("graph"), Some("/data"), "the name of data-root before 17.05");
    }
}
