//! `vhost-agent state show|export|import`.

pub mod document;
pub mod items;

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Subcommand;
use serde_json::{Value, json};

use self::document::{Document, Imported, MOST_BYTES, import};
use self::items::{PersistentState, StateItem, StateItems, look};
use super::agent_client::NodeRoot;
use super::render::{print, print_json, table};
use super::{Output, exit};
use crate::daemon::{hostname, run_dir, take_lock, url_in};
use crate::model::pools::PoolPages;
use crate::model::target::{CoreRequest, TargetKind, TargetSpec};
use crate::model::volume::{Backing, VolumeSpec};
use crate::store::{Lock, Store, StoreError, read_some, write_new};

/// Actions on the agent's state.
#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// Show the state: targets, volumes, reservations, the controller, pending results; secrets are hidden
    Show,
    /// Export the state, including secrets, as one JSON document
    Export {
        /// File that does not exist yet; without it or with -, standard output
        file: Option<PathBuf>,
    },
    /// Import such a document; requires that no agent runs here
    Import {
        /// Path of the document; - is standard input
        file: PathBuf,
        /// Replace existing items that differ
        #[arg(long)]
        replace: bool,
    },
}

pub(super) async fn run(place: NodeRoot, command: StateCommand, output: Output) -> Result<u8> {
    let (state, run) = (&place.settings.state_dir, run_dir(&place.settings, &place.root));
    match command {
        StateCommand::Show => show(&look(&Store::look(state, run), StateItem::read)?, output),
        StateCommand::Export { file } => {
            let document = Document::of(&Store::look(state, run), hostname(&place.root))?;
            export(&document, file.as_deref().filter(|file| *file != Path::new("-")))
        }
        StateCommand::Import { file, replace } => {
            let (document, items) =
                read(&file).with_context(|| format!("{} cannot be imported", named(&file)))?;
            let store = Store::open(state, run)?;
            let _lock = lock(&store).await?;
            let imported = import(&store, &items, replace)?;
            print_imported(&document, &imported, output)?;
            Ok(exit::HOLDS)
        }
    }
}

fn export(document: &Document, file: Option<&Path>) -> Result<u8> {
    let Some(file) = file else {
        print_json(document)?;
        return Ok(exit::HOLDS);
    };
    let mut bytes = serde_json::to_vec_pretty(document)?;
    writeln!(bytes)?;
    match write_new(file, &bytes) {
        Ok(()) => {
            // The count shows at once that a state is empty, as with a wrong --state-dir, and not when it is needed.
            print(&format!(
                "{} things of {} are in {}, with what is secret in them",
                document.count(),
                document.node(),
                file.display()
            ))?;
            Ok(exit::HOLDS)
        }
        Err(StoreError::Write { path, source }) if source.kind() == ErrorKind::AlreadyExists => {
            Err(anyhow!("{} is there already: name a file that is not", path.display()))
        }
        Err(other) => Err(other.into()),
    }
}

fn named(file: &Path) -> String {
    match file == Path::new("-") {
        true => "standard input".to_string(),
        false => file.display().to_string(),
    }
}

fn read(file: &Path) -> Result<(Document, StateItems)> {
    // One byte more, so that an excess is noticed.
    let bytes = match file == Path::new("-") {
        true => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
            bytes
        }
        false => read_some(file, MOST_BYTES + 1)?,
    };
    let document = Document::read(&bytes)?;
    let items = document.items()?;
    Ok((document, items))
}

/// Takes the node's lock; a running agent would not notice files written beside it.
async fn lock(store: &Store) -> Result<Lock> {
    match take_lock(store).await {
        Ok(mut lock) => {
            lock.sign(None);
            Ok(lock)
        }
        Err(StoreError::Locked { holder, .. }) if url_in(&holder).is_some() => Err(anyhow!(
            "an agent runs on this node ({holder}) and would not see what is imported: stop it \
             (systemctl stop vhost-agent), import, and start it again; nothing was written"
        )),
        Err(other) => Err(other.into()),
    }
}

fn print_imported(document: &Document, imported: &Imported, output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(imported);
    }
    let mut text = String::new();
    let lists = [
        ("written", &imported.written),
        ("replaced", &imported.replaced),
        ("the same already", &imported.same),
        ("not in the document, left as it is", &imported.left),
    ];
    for (word, names) in lists {
        names.iter().for_each(|name| text += &format!("{name}: {word}\n"));
    }
    let changed = imported.written.len() + imported.replaced.len();
    text += &match changed {
        0 => format!("everything of {} was here already", document.node()),
        _ => format!(
            "{changed} of {} taken in: the agent brings it about when it starts; reserved pages with the \
             next boot or 'vhost-agent pools restore'",
            document.node()
        ),
    };
    print(&text)
}

fn show(kept: &PersistentState, output: Output) -> Result<u8> {
    let code = if kept.unusable.is_empty() { exit::HOLDS } else { exit::FAILED };
    if output == Output::Json {
        let items = kept.items.iter().map(|(name, item)| (name.clone(), item.shown()));
        let items: serde_json::Map<String, Value> = items.collect();
        print_json(&json!({"things": items, "outbox": kept.outbox, "unusable": kept.unusable}))?;
        return Ok(code);
    }
    let mut text = sections(kept).join("\n\n");
    if text.is_empty() {
        text = "nothing is kept of this node".to_string();
    }
    for fault in &kept.unusable {
        text += &format!("\n\nerror ({}): {}", fault.code, fault.text);
    }
    print(&text)?;
    Ok(code)
}

/// Tables of the items, by kind; empty ones are omitted.
fn sections(kept: &PersistentState) -> Vec<String> {
    let mut targets = Rows::new(&["TARGET", "KIND", "IMAGE", "CORES", "MIB", "CONTROL SOCKET"]);
    let mut volumes = Rows::new(&["VOLUME", "OF TARGET", "BACKING", "BDEV", "ACCESS"]);
    let mut pages = Rows::new(&["PAGES", "OF", "ON"]);
    let mut controller = Rows::new(&["CONTROLLER", "THIS HOST'S UUID", "VERSION"]);
    for item in kept.items.values() {
        match item {
            StateItem::Target(spec) => targets.add(target_row(spec)),
            StateItem::Volume(target, spec) => volumes.add(volume_row(target.as_str(), spec)),
            StateItem::Reservations(list) => {
                list.iter().for_each(|PoolPages { size, node, pages: count }| {
                    pages.add([count.to_string(), size.to_string(), node.to_string()]);
                })
            }
            StateItem::Controller(_) => {
                let shown = item.shown();
                let text = |field: &str| shown[field].as_str().unwrap_or_default().to_string();
                controller.add([text("sendCommandUrl"), text("hostUuid"), text("version")]);
            }
        }
    }
    let mut outbox = Rows::new(&["TASK", "STATE", "RESULT GOES TO"]);
    for waiting in &kept.outbox {
        let state = if waiting.has_result { "waits for the controller" } else { "at work" };
        outbox.add([waiting.task.clone(), state.to_string(), waiting.callback_url.clone()]);
    }
    [targets, volumes, pages, controller, outbox].into_iter().filter_map(Rows::text).collect()
}

fn target_row(spec: &TargetSpec) -> [String; 6] {
    let kind = match spec.kind {
        TargetKind::Zbs => "zbs",
        TargetKind::Spdk => "spdk",
        TargetKind::BuiltIn => "built-in",
    };
    let cores = match &spec.cores {
        CoreRequest::These(list) => list.to_string(),
        CoreRequest::Count(count) => format!("any {count}"),
    };
    let mut image = spec.image.clone().unwrap_or_else(|| "its own".to_string());
    if let Some(url) = &spec.image_url {
        image += &format!(" from {url}");
    } else if let Some(tar) = &spec.image_tar {
        image += &format!(" from {}", tar.as_str());
    }
    let control = spec.control_sock.as_str().to_string();
    [spec.name.to_string(), kind.to_string(), image, cores, spec.memory_mib.to_string(), control]
}

fn volume_row(target: &str, spec: &VolumeSpec) -> [String; 5] {
    let backing = match &spec.backing {
        Backing::Zbs { path } => format!("zbs {path}"),
        Backing::Aio { path, .. } => format!("aio {}", path.as_str()),
        Backing::Malloc { size_mib, .. } => format!("malloc {size_mib} MiB"),
        Backing::Raw { method, .. } => format!("raw {method}"),
    };
    let access = if spec.read_only { "read-only" } else { "read-write" };
    let (name, bdev) = (spec.name.to_string(), spec.bdev.to_string());
    [name, target.to_string(), backing, bdev, access.to_string()]
}

/// Table that is shown if it gets a row.
struct Rows(comfy_table::Table, bool);

impl Rows {
    fn new(header: &[&str]) -> Rows {
        Rows(table(header), false)
    }

    fn add<const N: usize>(&mut self, row: [String; N]) {
        self.0.add_row(row);
        self.1 = true;
    }

    fn text(self) -> Option<String> {
        self.1.then(|| self.0.to_string())
    }
}
