//! The dependency law of the house: which room may know which.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms and what they may name with `crate::`, the most specific path first.
const LAW: &[(&str, &[&str])] = &[
    ("model", &["model"]),
    ("plan", &["plan", "model"]),
    ("store", &["store", "model"]),
    ("config", &["config", "model"]),
    ("host", &["host", "model", "store"]),
    ("docker", &["docker", "model"]),
    ("spdk", &["spdk", "model"]),
    // It proves by I/O what the probe takes an answer's word for.
    ("health/deep", &["health", "model", "host", "spdk"]),
    ("health", &["health", "model"]),
    ("targets/observer", &["targets", "model", "host", "docker", "spdk", "wait"]),
    (
        "targets",
        &[
            "targets",
            "agent",
            "model",
            "plan",
            "store",
            "health::deep",
            "docker::Containers",
            "wait",
            "watchdog",
        ],
    ),
    ("agent/observe", &["agent", "model", "host", "docker", "spdk"]),
    ("agent/apply", &["agent", "model", "host", "docker", "spdk", "outgoing"]),
    ("agent", &["agent", "model", "plan", "store", "wait", "watchdog"]),
    ("controller", &["controller", "model", "store", "outgoing", "wait", "watchdog"]),
    ("wait", &[]),
    ("watchdog", &[]),
    ("outgoing", &["outgoing", "model"]),
    // What it does not serve it hands on.
    (
        "api",
        &[
            "api",
            "model",
            "agent",
            "targets",
            "controller",
            "outgoing::name",
            "outgoing::relay",
            "outgoing::stream",
            "wait",
        ],
    ),
    ("builtin", &["builtin", "model"]),
    (
        "cli",
        &[
            "cli", "builtin", "model", "agent", "targets", "api", "config", "daemon", "store",
            "watchdog",
        ],
    ),
    (
        "daemon",
        &[
            "agent",
            "targets",
            "api",
            "config",
            "controller",
            "docker",
            "health",
            "host",
            "spdk",
            "store",
            "model",
            "watchdog",
        ],
    ),
    ("main", &[]),
    ("lib", &[]),
];

/// Rooms that may touch files, processes and the environment.
const TOUCH_THE_MACHINE: &[&str] = &["host", "config", "store", "builtin"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Each source file as (its path below src, its lines without comments and without its test module).
fn files() -> Vec<(String, Vec<String>)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    assert!(found.len() > 40, "the sources are where they should be");
    found
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().display().to_string();
            let text = fs::read_to_string(path).unwrap();
            let tested = name.ends_with("_tests.rs");
            let lines = text
                .lines()
                .take_while(|line| !tested && !line.starts_with("mod tests {"))
                .filter(|line| !line.trim_start().starts_with("//"))
                .map(str::to_string);
            (name, lines.collect())
        })
        .collect()
}

fn allowed(file: &str) -> &'static [&'static str] {
    let inside = |room: &str| {
        file.strip_prefix(room).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    };
    let law = LAW.iter().find(|(room, _)| inside(room));
    law.unwrap_or_else(|| panic!("src/{file} is in no room that the law knows")).1
}

#[test]
fn rooms_only_know_the_rooms_that_the_law_lets_them_know() {
    let mut broken = Vec::new();
    for (file, lines) in files() {
        let allowed = allowed(&file);
        for line in lines {
            for path in line.split("crate::").skip(1) {
                let known = |room: &&str| {
                    let rest = path.strip_prefix(*room);
                    rest.is_some_and(|r| !r.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
                };
                if !allowed.iter().any(known) {
                    broken.push(format!("src/{file}: {}", line.trim()));
                }
            }
            if line.contains("super::super::super") {
                broken.push(format!("src/{file} climbs out of its room: {}", line.trim()));
            }
        }
    }
    assert!(broken.is_empty(), "the dependency law is broken:\n{}", broken.join("\n"));
}

#[test]
fn files_processes_and_the_environment_are_touched_in_their_rooms_only() {
    let words =
        ["std::fs", "tokio::fs", "process::Command", "std::env::", "env::var", "nix::mount"];
    let mut broken = Vec::new();
    for (file, lines) in files() {
        let room = file.split(['/', '.']).next().unwrap_or_default();
        if TOUCH_THE_MACHINE.contains(&room) {
            continue;
        }
        for line in lines {
            // env!() is the compiler's, not the machine's.
            if words.iter().any(|word| line.contains(word)) && !line.contains("env!(") {
                broken.push(format!("src/{file}: {}", line.trim()));
            }
        }
    }
    assert!(broken.is_empty(), "the machine is touched outside its rooms:\n{}", broken.join("\n"));
}

#[test]
fn no_decision_compares_the_text_of_a_code() {
    let words =
        ["code == \"", "code != \"", "code.as_str() ==", "code.as_str() !=", "code.as_ref()"];
    let mut broken = Vec::new();
    for (file, lines) in files() {
        for line in lines.iter().filter(|line| words.iter().any(|word| line.contains(word))) {
            broken.push(format!("src/{file}: {}", line.trim()));
        }
    }
    assert!(broken.is_empty(), "codes are compared as text:\n{}", broken.join("\n"));
}

#[test]
fn only_one_file_knows_bollard() {
    let knows =
        files().into_iter().filter(|(_, lines)| lines.iter().any(|l| l.contains("bollard::")));
    let knows: Vec<String> = knows.map(|(file, _)| file).collect();
    assert_eq!(knows, ["docker/client.rs"]);
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    for (file, lines) in files() {
        let opens = lines.iter().filter(|line| line.contains("unsafe {")).count();
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(&file));
        let reasons = text.unwrap().matches("// SAFETY:").count();
        assert!(opens <= reasons, "src/{file} has {opens} unsafe blocks and {reasons} reasons");
    }
}
