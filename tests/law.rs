//! The dependency law of the house: which room may know which.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
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
            "overdue",
            "wait",
            "watchdog",
        ],
    ),
    ("agent/observe", &["agent", "model", "host", "docker", "spdk"]),
    ("agent/apply", &["agent", "model", "host", "docker", "spdk", "outgoing"]),
    ("agent", &["agent", "model", "overdue", "plan", "store", "wait", "watchdog"]),
    ("controller", &["controller", "model", "store", "outgoing", "overdue", "wait", "watchdog"]),
    ("log", &[]),
    ("overdue", &[]),
    ("wait", &[]),
    ("watchdog", &[]),
    ("outgoing", &["outgoing", "model"]),
    ("api", &["api", "model", "agent", "targets", "controller", "log", "overdue", "wait"]),
    ("builtin", &["builtin", "model"]),
    (
        "cli",
        &[
            "cli", "builtin", "model", "agent", "targets", "api", "config", "daemon", "log",
            "store", "watchdog",
        ],
    ),
    (
        "daemon",
        &[
            "daemon",
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

/// Source file as the law reads it.
struct Source {
    /// Its path below src.
    name: String,
    /// All of it but comments, what stands in literals, and items that only tests have.
    code: String,
}

/// The sources, but for those that only tests have.
fn files() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    assert!(found.len() > 40, "the sources are where they should be");
    let source = |path: &PathBuf| Source {
        name: path.strip_prefix(&src).unwrap().display().to_string(),
        code: without_tests(&without_text(&fs::read_to_string(path).unwrap())),
    };
    found.iter().map(source).filter(|source| !source.name.ends_with("_tests.rs")).collect()
}

/// Bytes of the comment or literal with which the code goes on; `before` is what stands before it.
fn text_at(code: &str, before: Option<char>) -> Option<usize> {
    let until = |from: usize, end: &str| {
        code[from..].find(end).map_or(code.len(), |at| from + at + end.len())
    };
    let mut chars = code.chars();
    let first = chars.next().filter(|c| ['/', 'r', '"', '\''].contains(c))?;
    match (first, chars.next()) {
        ('/', Some('/')) => Some(code.find('\n').unwrap_or(code.len())),
        ('/', Some('*')) => Some(until(2, "*/")),
        ('r', Some('"' | '#')) if before.is_none_or(|c| c == 'b' || !is_of_a_name(c)) => {
            let fence = code[1..].chars().take_while(|c| *c == '#').count();
            let opens = code[1 + fence..].starts_with('"');
            opens.then(|| until(2 + fence, &format!("\"{}", "#".repeat(fence))))
        }
        ('"', _) => {
            let mut escaped = false;
            let end = code.char_indices().skip(1).find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            Some(end.map_or(code.len(), |(at, _)| at + 1))
        }
        ('\'', Some('\\')) => Some(until(3, "'")),
        ('\'', Some(c)) if chars.next() == Some('\'') => Some(2 + c.len_utf8()),
        _ => None,
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The code with empty strings for literals, and without comments.
fn without_text(mut rest: &str) -> String {
    let mut code = String::new();
    while let Some(next) = rest.chars().next() {
        let length = match text_at(rest, code.chars().next_back()) {
            Some(length) => {
                if next != '/' {
                    code.push_str("\"\"");
                }
                code.extend(rest[..length].chars().filter(|c| *c == '\n'));
                length
            }
            None => {
                code.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    code
}

/// The code without the items that only tests have, wherever they stand in it.
fn without_tests(mut rest: &str) -> String {
    let mut code = String::new();
    while let Some((before, item)) = rest.split_once("#[cfg(test)]") {
        code.push_str(before);
        let mut depth = 0_u32;
        let end = item.char_indices().find(|(_, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0 && ['}', ';'].contains(c)
        });
        rest = end.map_or("", |(at, _)| &item[at + 1..]);
    }
    code + rest
}

/// The module of a file, from the root of the crate.
fn module_of(file: &str) -> Vec<&str> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').filter(|part| !["lib", "main"].contains(part)).collect()
}

/// The paths of a tree such as `a::{b, c::{d, self}, e as f}`, and the name that each has where it is imported.
fn paths_of(tree: &str) -> Vec<(Vec<String>, String)> {
    let Some((stem, group)) = tree.split_once('{') else {
        let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut path: Vec<String> = path.trim().split("::").map(str::to_string).collect();
        path.pop_if(|last| last == "self");
        let name = Some(alias.trim()).filter(|alias| !alias.is_empty());
        let name = name.map_or_else(|| path.last().cloned().unwrap_or_default(), str::to_string);
        return vec![(path, name)];
    };
    let stem = stem.trim().trim_end_matches("::");
    let group = group.trim_end().strip_suffix('}').unwrap();
    let mut depth = 0_i32;
    let parts = group.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let parts = parts.map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(|part| paths_of(&format!("{stem}::{part}"))).collect()
}

/// The crate as the law sees it: the sources, and what is named by another name.
struct Crate {
    sources: Vec<Source>,
    modules: BTreeSet<Vec<String>>,
    /// What a path leads to that a module has only from elsewhere.
    exports: BTreeMap<Vec<String>, Vec<String>>,
}

impl Crate {
    fn read() -> Crate {
        let sources = files();
        let module = |source: &Source| {
            module_of(&source.name).into_iter().map(str::to_string).collect::<Vec<_>>()
        };
        let modules = sources.iter().map(module).collect();
        let mut all = Crate { sources, modules, exports: BTreeMap::new() };
        let exports = all.sources.iter().flat_map(|source| {
            let of = module(source);
            let uses = all.uses(source).into_iter().filter(|(public, ..)| *public);
            uses.map(move |(_, path, name)| ([of.clone(), vec![name]].concat(), path))
                .collect::<Vec<_>>()
        });
        all.exports = exports.collect();
        all
    }

    /// A path as it is written in a module, from the root of the crate; `None` for one of another crate.
    fn absolute(&self, module: &[&str], path: &[String]) -> Option<Vec<String>> {
        let own = |up: usize| {
            let above = module.len().saturating_sub(up);
            module[..above].iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let ups = path.iter().take_while(|part| *part == "super").count();
        let (stem, rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (own(0), &path[1..]),
            "super" => (own(ups), &path[ups..]),
            child => {
                let inner = [own(0), vec![child.to_string()]].concat();
                return self.modules.contains(&inner).then(|| [own(0), path.to_vec()].concat());
            }
        };
        Some([stem, rest.to_vec()].concat())
    }

    /// What a file imports from this crate: whether for others too, its path, and its name there.
    fn uses(&self, source: &Source) -> Vec<(bool, Vec<String>, String)> {
        let module = module_of(&source.name);
        let mut uses = Vec::new();
        for (at, _) in source.code.match_indices("use ") {
            let (before, after) = source.code.split_at(at);
            let begins = before.rsplit(['\n', '{', '}', ';']).next().unwrap_or_default().trim();
            // `pub enum Cause` holds these letters too.
            let public = begins == "pub" || begins.starts_with("pub(") && begins.ends_with(')');
            if !(begins.is_empty() || public) {
                continue;
            }
            let tree = after["use ".len()..].split(';').next().unwrap_or_default();
            let tree = tree.split_whitespace().collect::<Vec<_>>().join(" ");
            for (path, name) in paths_of(&tree) {
                if let Some(path) = self.absolute(&module, &path) {
                    uses.push((public, path, name));
                }
            }
        }
        uses
    }

    /// All that a file names of this crate, each by where it really is.
    fn named(&self, source: &Source) -> BTreeSet<Vec<String>> {
        let module = module_of(&source.name);
        let uses = self.uses(source);
        let local: BTreeMap<&str, &Vec<String>> =
            uses.iter().map(|(_, path, name)| (name.as_str(), path)).collect();
        let mut named: BTreeSet<Vec<String>> =
            uses.iter().map(|(_, path, _)| path.clone()).collect();
        for words in source.code.split(|c| !(is_of_a_name(c) || c == ':')) {
            let path: Vec<String> = words.split("::").map(str::to_string).collect();
            let imported = local.get(path[0].as_str()).filter(|_| path.len() > 1);
            named.extend(match imported {
                Some(stem) => Some([stem.to_vec(), path[1..].to_vec()].concat()),
                None => self.absolute(&module, &path).filter(|_| path.len() > 1),
            });
        }
        named.into_iter().map(|path| self.origin(path)).collect()
    }

    /// Where a path leads in the end.
    fn origin(&self, mut path: Vec<String>) -> Vec<String> {
        for _ in 0..8 {
            let longest =
                (1..=path.len()).rev().find(|length| self.exports.contains_key(&path[..*length]));
            let Some(length) = longest else { break };
            path = [self.exports[&path[..length]].clone(), path[length..].to_vec()].concat();
        }
        path
    }
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
    let all = Crate::read();
    let mut broken = Vec::new();
    for source in &all.sources {
        let allowed = allowed(&source.name);
        for path in all.named(source) {
            let known = |room: &&str| room.split("::").zip(&path).all(|(room, part)| room == part);
            // What stands at the root itself is in no room.
            let a_room = path.first().is_some_and(|room| all.modules.contains(&vec![room.clone()]));
            if a_room && !allowed.iter().any(known) {
                broken.push(format!("src/{}: {}", source.name, path.join("::")));
            }
        }
    }
    assert!(broken.is_empty(), "the dependency law is broken:\n{}", broken.join("\n"));
}

#[test]
fn the_law_reads_behind_tests_and_through_other_names() {
    let code = "use a;\n#[cfg(test)]\nmod tests {\n let x = ('}', \"}\", r#\"}\"#); // }\n}\nuse b; /* use c; */";
    assert_eq!(without_tests(&without_text(code)), "use a;\n\nuse b; ");
    let tree = "a::{b, c::{self, d as e}}";
    let path = |path: &str, name: &str| {
        (path.split("::").map(str::to_string).collect::<Vec<_>>(), name.to_string())
    };
    assert_eq!(paths_of(tree), [path("a::b", "b"), path("a::c", "c"), path("a::c::d", "e")]);
    let source = |name: &str, code: &str| Source { name: name.to_string(), code: code.to_string() };
    let sources = vec![source("outer/mod.rs", "use super::inner::Twice;"), source("inner.rs", "")];
    let parts = |path: &str| path.split("::").map(str::to_string).collect::<Vec<_>>();
    let modules = ["outer", "inner"].map(parts).into();
    let exports = [("inner::Twice", "inner::Once"), ("inner::Once", "far::Thing")];
    let exports = exports.map(|(from, to)| (parts(from), parts(to))).into();
    let all = Crate { sources, modules, exports };
    assert_eq!(all.named(&all.sources[0]), [parts("far::Thing")].into());
}

#[test]
fn files_processes_and_the_environment_are_touched_in_their_rooms_only() {
    let words =
        ["std::fs", "tokio::fs", "process::Command", "std::env::", "env::var", "nix::mount"];
    let mut broken = Vec::new();
    for Source { name: file, code } in files() {
        let room = file.split(['/', '.']).next().unwrap_or_default();
        if TOUCH_THE_MACHINE.contains(&room) {
            continue;
        }
        for line in code.lines() {
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
    for Source { name: file, code } in files() {
        for line in code.lines().filter(|line| words.iter().any(|word| line.contains(word))) {
            broken.push(format!("src/{file}: {}", line.trim()));
        }
    }
    assert!(broken.is_empty(), "codes are compared as text:\n{}", broken.join("\n"));
}

#[test]
fn only_the_client_of_the_engine_knows_bollard() {
    let knows = files().into_iter().filter(|source| source.code.contains("bollard::"));
    let mut knows: Vec<String> = knows.map(|source| source.name).collect();
    knows.sort();
    let client = ["container_body.rs", "mod.rs", "replies.rs", "transport.rs"];
    assert_eq!(knows, client.map(|file| format!("docker/client/{file}")));
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    for Source { name: file, code } in files() {
        let opens = code.matches("unsafe {").count();
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(&file));
        let reasons = text.unwrap().matches("// SAFETY:").count();
        assert!(opens <= reasons, "src/{file} has {opens} unsafe blocks and {reasons} reasons");
    }
}
