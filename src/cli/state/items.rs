//! Persistent state of a node: its items, the file of each, and the validation of items from elsewhere.
//!
//! ```text
//! targets/<target>.json            desired state of a target
//! volumes/<target>/<volume>.json   desired state of a volume
//! reservations.json                the hugepages that each boot restores
//! controller.json                  identity of this host for its controller
//! ```
//!
//! Other files belong to one run, one boot or one call: the ledger of pages, the lock, and the
//! outbox, whose results are sent by the agent that was called and by no other. The owners read
//! and write their own files; here all are read at once. `document` carries them elsewhere.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::agent::memory::RESERVATIONS;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::identity::HostIdentity;
use crate::model::path::CleanPath;
use crate::model::pools::{PoolPages, pages_map};
use crate::model::target::{TargetName, TargetSpec};
use crate::model::url::{HttpUrl, text_without_secrets};
use crate::model::volume::{Backing, VolumeSpec};
use crate::store::{self, Durability, Store};
use crate::targets::desired_files::{FOLDER as TARGETS, TargetFile, VOLUMES, VolumeEntry};

/// Folder of the results pending for the controller.
const OUTBOX: &str = "outbox";

/// Item of the state.
#[derive(Debug, Clone, PartialEq)]
pub enum StateItem {
    /// Desired state of a target.
    Target(Box<TargetSpec>),
    /// Desired state of a volume.
    Volume(TargetName, Box<VolumeSpec>),
    /// Hugepages that each boot restores.
    Reservations(Vec<PoolPages>),
    /// Identity of this host for its controller.
    Controller(HostIdentity),
}

/// Items by the names of their files in the state folder.
pub type StateItems = BTreeMap<String, StateItem>;

impl StateItem {
    /// Parses a file of that name, as its owner does.
    ///
    /// # Errors
    /// An unknown name or format version, or an invalid value.
    pub fn read(name: &str, value: &Value) -> Result<StateItem, Fault> {
        StateItem::of(name, &content(name, value)?)
    }

    fn of(name: &str, value: &Value) -> Result<StateItem, Fault> {
        let item = match name.split('/').collect::<Vec<_>>()[..] {
            [TARGETS, _] => StateItem::Target(Box::new(parse::<TargetFile>(name, value)?.spec)),
            [VOLUMES, _, _] => {
                let VolumeEntry { target, spec } = parse(name, value)?;
                StateItem::Volume(target, Box::new(spec))
            }
            [RESERVATIONS] => StateItem::Reservations(parse(name, value)?),
            [HostIdentity::FILE] => StateItem::Controller(parse(name, value)?),
            _ => return Err(refused(name, "is nothing that this agent keeps")),
        };
        match item.name() {
            own if own == name => Ok(item),
            own => Err(refused(name, &format!("holds what belongs into {own}"))),
        }
    }

    /// Parses an item of a document strictly: unknown fields, and values that a call could not set, are refused.
    ///
    /// # Errors
    /// As [`StateItem::read`], and for an unknown field, and for a value that a call could not set.
    pub fn admit(name: &str, value: &Value) -> Result<StateItem, Fault> {
        let content = content(name, value)?;
        let item = StateItem::of(name, &content)?;
        if let Some(field) = passed_over(&content, &item.content(), "") {
            return Err(refused(name, &format!("has {field}, which this agent does not know")));
        }
        item.validate().map_err(|why| refused(name, &format!("cannot be: {why}")))?;
        Ok(item)
    }

    fn validate(&self) -> Result<(), String> {
        match self {
            StateItem::Target(spec) => {
                spec.clone().validate().map(drop).map_err(|fault| fault.text)
            }
            // The length of its socket's path is checked where its target is known.
            StateItem::Volume(_, spec) => "/"
                .parse()
                .and_then(|shortest: CleanPath| spec.clone().validate(&shortest))
                .map(drop)
                .map_err(|fault| fault.text),
            StateItem::Reservations(list) if pages_map(list).len() != list.len() => {
                Err("one pool is in it twice".to_string())
            }
            StateItem::Controller(HostIdentity { send_command_url: url, .. })
                if !url.is_empty() =>
            {
                let parsed = url.parse::<HttpUrl>();
                parsed.map(drop).map_err(|why| format!("its sendCommandUrl is no address: {why}"))
            }
            StateItem::Reservations(_) | StateItem::Controller(_) => Ok(()),
        }
    }

    /// Name of the item's file in the state folder.
    pub fn name(&self) -> String {
        match self {
            StateItem::Target(spec) => format!("{TARGETS}/{}.json", spec.name),
            StateItem::Volume(target, spec) => format!("{VOLUMES}/{target}/{}.json", spec.name),
            StateItem::Reservations(_) => RESERVATIONS.to_string(),
            StateItem::Controller(_) => HostIdentity::FILE.to_string(),
        }
    }

    /// Content of the file, without the version.
    pub(super) fn content(&self) -> Value {
        match self {
            StateItem::Target(spec) => json!(TargetFile { spec: (**spec).clone(), trial: None }),
            StateItem::Volume(target, spec) => {
                json!(VolumeEntry { target: target.clone(), spec: (**spec).clone() })
            }
            StateItem::Reservations(list) => json!(list),
            StateItem::Controller(identity) => json!(identity),
        }
    }

    /// Representation in a document.
    pub fn value(&self) -> Value {
        let mut value = self.content();
        if let StateItem::Target(_) | StateItem::Volume(..) = self {
            value["version"] = store::VERSION.into();
        }
        value
    }

    /// Representation without possible secrets: the URLs of images and of the controller may contain credentials, and
    /// the parameters of a raw method may be anything.
    pub fn shown(&self) -> Value {
        let mut value = self.value();
        match self {
            StateItem::Target(spec) => {
                if let Some(url) = &spec.image_url {
                    value["spec"]["imageUrl"] = url.to_string().into();
                }
            }
            StateItem::Volume(_, spec) => {
                if let Backing::Raw { params, .. } = &spec.backing {
                    let hidden = params.keys().map(|name| (name.clone(), Value::from("…")));
                    value["spec"]["backing"]["params"] = Value::Object(hidden.collect());
                }
            }
            StateItem::Controller(identity) => {
                value["sendCommandUrl"] = text_without_secrets(&identity.send_command_url).into();
            }
            StateItem::Reservations(_) => {}
        }
        value
    }
}

fn refused(name: &str, why: &str) -> Fault {
    // The name may come from an untrusted document: control characters are removed, and its length is limited.
    let name: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    Fault::new(Code::InvalidState, format!("{name} {why}"))
}

fn parse<T: DeserializeOwned>(name: &str, value: &Value) -> Result<T, Fault> {
    T::deserialize(value).map_err(|e| refused(name, &format!("cannot be read: {e}")))
}

fn content(name: &str, value: &Value) -> Result<Value, Fault> {
    store::content(value.clone()).map_err(|why| refused(name, &why.to_string()))
}

/// Path of the first field of `read` that is missing in `understood`; a field that is null is ignored.
fn passed_over(read: &Value, understood: &Value, path: &str) -> Option<String> {
    match (read, understood) {
        (Value::Object(read), Value::Object(understood)) => read.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match understood.get(key) {
                Some(understood) => passed_over(value, understood, &path),
                None => (!value.is_null()).then_some(path),
            }
        }),
        (Value::Array(read), Value::Array(understood)) => {
            read.iter().zip(understood).enumerate().find_map(|(n, (read, understood))| {
                passed_over(read, understood, &format!("{path}[{n}]"))
            })
        }
        _ => None,
    }
}

/// Pending result for the controller, or running call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingItem {
    /// Task id of the controller.
    pub task: String,
    pub callback_url: String,
    /// `true` if the call has its result.
    pub has_result: bool,
}

/// Persistent state of a node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PersistentState {
    pub items: StateItems,
    /// Unusable files, with the reason.
    pub unusable: Vec<Fault>,
    /// Tasks and results of the outbox.
    pub outbox: Vec<PendingItem>,
}

/// Parser of a file: [`StateItem::read`] or [`StateItem::admit`].
pub type Reading = fn(&str, &Value) -> Result<StateItem, Fault>;

/// Reads the whole state; nothing is changed, and no file is set aside.
///
/// # Errors
/// When the disk fails.
pub fn look(store: &Store, reading: Reading) -> Result<PersistentState, Fault> {
    let mut kept = PersistentState::default();
    for name in names(store)? {
        let Some(bytes) = store.bytes(&name, Durability::Disk)? else { continue };
        let value = serde_json::from_slice::<Value>(&bytes);
        let value = value.map_err(|e| refused(&name, &format!("is no JSON: {e}")));
        match value.and_then(|value| reading(&name, &value)) {
            Ok(item) => drop(kept.items.insert(name, item)),
            Err(fault) => kept.unusable.push(fault),
        }
    }
    kept.outbox = outbox(store)?;
    Ok(kept)
}

fn outbox(store: &Store) -> Result<Vec<PendingItem>, Fault> {
    let mut waiting = Vec::new();
    for name in store.list(OUTBOX, Durability::Disk)? {
        let Some(bytes) = store.bytes(&format!("{OUTBOX}/{name}"), Durability::Disk)? else {
            continue;
        };
        // The format is the outbox's own; any readable field is shown.
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        waiting.push(PendingItem {
            task: name.trim_end_matches(".json").to_string(),
            callback_url: text_without_secrets(value["callbackUrl"].as_str().unwrap_or_default()),
            has_result: !value["result"].is_null(),
        });
    }
    Ok(waiting)
}

/// Names of all items' files.
fn names(store: &Store) -> Result<Vec<String>, Fault> {
    let list = |folder: &str| {
        let names = store.list(folder, Durability::Disk)?;
        Ok::<_, Fault>(names.into_iter().map(|name| format!("{folder}/{name}")).collect::<Vec<_>>())
    };
    let mut names = list(TARGETS)?;
    for target in store.folders(VOLUMES, Durability::Disk)? {
        names.extend(list(&format!("{VOLUMES}/{target}"))?);
    }
    names.extend([RESERVATIONS.to_string(), HostIdentity::FILE.to_string()]);
    Ok(names)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
