//! State of a node as one document, and its import into a state folder.
//!
//! Everything is validated before anything is written: the document, each item in it, and the existing state. Items
//! that are not in a document stay as they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::items::{PersistentState, StateItem, StateItems, look};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::target::TargetName;
use crate::store::{Durability, Store};

/// Format version of the document.
const VERSION: u64 = 1;
/// Limit of a document in bytes: ten thousand volumes take five million.
pub const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// State of a node, to be carried elsewhere. Secrets are included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    version: u64,
    /// Time of the export, in RFC 3339.
    exported_at: String,
    /// Version of the exporting agent.
    agent_version: String,
    /// Name of the exported node.
    node: String,
    #[serde(rename = "things")]
    items: BTreeMap<String, Value>,
}

impl Document {
    /// Exports the current state.
    ///
    /// # Errors
    /// When the disk fails, and when there is an item that no agent of this version would accept: a document without it
    /// would be incomplete.
    pub fn of(store: &Store, node: String) -> Result<Document, Fault> {
        let PersistentState { items, unusable, .. } = look(store, StateItem::admit)?;
        if let Some(fault) = unusable.into_iter().next() {
            let text = format!("{fault}: mend it or move it away, then export again");
            return Err(Fault { code: fault.code, text });
        }
        Ok(Document {
            version: VERSION,
            exported_at: humantime::format_rfc3339_seconds(std::time::SystemTime::now())
                .to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_string(),
            node,
            items: items.into_iter().map(|(name, item)| (name, item.value())).collect(),
        })
    }

    /// Parses a document.
    ///
    /// # Errors
    /// When it is truncated, is something else, or was exported by a newer agent.
    pub fn read(bytes: &[u8]) -> Result<Document, Fault> {
        let refused = |why: String| Fault::new(Code::InvalidDocument, format!("it is {why}"));
        if bytes.len() as u64 > MOST_BYTES {
            return Err(refused(format!("larger than {MOST_BYTES} bytes, which no state is")));
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|e| match e.is_eof() {
            true => refused(format!("cut off: {e}")),
            false => refused(format!("no JSON: {e}")),
        })?;
        let version = value.get("version").and_then(Value::as_u64);
        match version.filter(|_| value.get("things").is_some()) {
            Some(VERSION) => {}
            Some(version) => {
                return Err(refused(format!(
                    "of version {version}, and this agent knows {VERSION}: import it with a vhost-agent \
                     as new as the one that made it"
                )));
            }
            None => {
                let why = "no exported state: 'vhost-agent state export' makes those";
                return Err(refused(why.to_string()));
            }
        }
        Document::deserialize(value).map_err(|e| refused(format!("no exported state: {e}")))
    }

    /// Name of the exported node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Number of items.
    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// Validates the items and returns them.
    ///
    /// # Errors
    /// The first item that this agent would not accept, by its name.
    pub fn items(&self) -> Result<StateItems, Fault> {
        let admit =
            |(name, value): (&String, &Value)| Ok((name.clone(), StateItem::admit(name, value)?));
        let items: StateItems = self.items.iter().map(admit).collect::<Result<_, Fault>>()?;
        for item in items.values() {
            let StateItem::Volume(target, spec) = item else { continue };
            if let Some(folder) = socket_dir(&items, target) {
                spec.clone().validate(folder).map_err(|fault| Fault {
                    code: fault.code,
                    text: format!("{} cannot be: {}", item.name(), fault.text),
                })?;
            }
        }
        Ok(items)
    }
}

fn socket_dir<'a>(items: &'a StateItems, target: &TargetName) -> Option<&'a CleanPath> {
    items.values().find_map(|item| match item {
        StateItem::Target(spec) if spec.name == *target => Some(&spec.socket_dir),
        _ => None,
    })
}

/// Outcome of an import, by the names of files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// New files.
    pub written: Vec<String>,
    /// Files that replaced different ones.
    pub replaced: Vec<String>,
    /// Files that were there already, with the same content.
    pub same: Vec<String>,
    /// Files that are not in the document, left as they are.
    pub left: Vec<String>,
}

/// Writes items into the state folder, whose lock the caller holds.
///
/// # Errors
/// When a different item exists and is not to be replaced, and nothing is written then; when the disk fails, and files
/// written by then stay, so that the same import can be repeated.
pub fn import(store: &Store, items: &StateItems, replace: bool) -> Result<Imported, Fault> {
    let imported = compare(store, items)?;
    if !replace && !imported.replaced.is_empty() {
        let names = imported.replaced.join(", ");
        return Err(Fault::new(
            Code::StateDiffers,
            format!(
                "this node keeps something else in {names}: --replace writes over it; nothing was written"
            ),
        ));
    }
    let write = |name: &String| Some((name.clone(), items.get(name)?.content()));
    let values: Vec<(String, Value)> =
        imported.written.iter().chain(&imported.replaced).filter_map(write).collect();
    store.write_all(&values)?;
    Ok(imported)
}

/// Compares these items with the existing ones.
fn compare(store: &Store, items: &StateItems) -> Result<Imported, Fault> {
    let mut imported = Imported::default();
    for (name, item) in items {
        let there = store.bytes(name, Durability::Disk)?;
        let same = |bytes: &Vec<u8>| {
            let value = serde_json::from_slice::<Value>(bytes).ok();
            value.is_some_and(|value| {
                StateItem::read(name, &value).is_ok_and(|there| there == *item)
            })
        };
        let list = match there {
            None => &mut imported.written,
            Some(bytes) if same(&bytes) => &mut imported.same,
            Some(_) => &mut imported.replaced,
        };
        list.push(name.clone());
    }
    let kept = look(store, StateItem::read)?.items;
    imported.left = kept.into_keys().filter(|name| !items.contains_key(name)).collect();
    Ok(imported)
}
