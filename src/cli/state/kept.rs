//! What the agent keeps of a node, all of it: which things there are, where each has its file, and how
//! each is judged before it may come in from elsewhere.
//!
//! ```text
//! targets/<target>.json            what is wanted of a target
//! volumes/<target>/<volume>.json   what is wanted of a volume
//! reservations.json                the hugepages that each boot takes again
//! controller.json                  who this host is to its controller
//! ```
//!
//! What is not in here belongs to one run, one boot or one call: the ledger of pages, the lock, and the
//! outbox, whose results are told by the agent that was asked for them and by no other. The owners read
//! and write their own files; here somebody looks at them all at once. `document` carries them elsewhere.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::agent::memory::RESERVATIONS;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::identity::Identity;
use crate::model::path::CleanPath;
use crate::model::pools::{PoolPages, pages_map};
use crate::model::target::{TargetName, TargetSpec};
use crate::model::url::{HttpUrl, text_without_secrets};
use crate::model::volume::{Backing, VolumeSpec};
use crate::store::{self, Durability, Store};
use crate::targets::desired::{Entry, FOLDER as TARGETS, VOLUMES, VolumeEntry};

/// The folder of the results that wait for the controller.
const OUTBOX: &str = "outbox";

/// One thing that is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Thing {
    /// What is wanted of a target.
    Target(Box<TargetSpec>),
    /// What is wanted of a volume.
    Volume(TargetName, Box<VolumeSpec>),
    /// The hugepages that each boot takes again.
    Reservations(Vec<PoolPages>),
    /// Who this host is to its controller.
    Controller(Identity),
}

/// Things by the names of their files in the state folder.
pub type Things = BTreeMap<String, Thing>;

impl Thing {
    /// What a file of that name holds, as the owner of it reads it.
    ///
    /// # Errors
    /// A name that no thing has, a form that this agent does not know, a value that is none.
    pub fn read(name: &str, value: &Value) -> Result<Thing, Fault> {
        Thing::of(name, &content(name, value)?)
    }

    fn of(name: &str, value: &Value) -> Result<Thing, Fault> {
        let thing = match name.split('/').collect::<Vec<_>>()[..] {
            [TARGETS, _] => Thing::Target(Box::new(parse::<Entry>(name, value)?.spec)),
            [VOLUMES, _, _] => {
                let VolumeEntry { target, spec } = parse(name, value)?;
                Thing::Volume(target, Box::new(spec))
            }
            [RESERVATIONS] => Thing::Reservations(parse(name, value)?),
            [Identity::FILE] => Thing::Controller(parse(name, value)?),
            _ => return Err(refused(name, "is nothing that this agent keeps")),
        };
        match thing.name() {
            own if own == name => Ok(thing),
            own => Err(refused(name, &format!("holds what belongs into {own}"))),
        }
    }

    /// The same, for what comes from elsewhere: nothing in it is passed over, and it could have been
    /// asked for by a call.
    ///
    /// # Errors
    /// As [`Thing::read`], and a field that this agent does not know, and a value that it would not take.
    pub fn admit(name: &str, value: &Value) -> Result<Thing, Fault> {
        let content = content(name, value)?;
        let thing = Thing::of(name, &content)?;
        if let Some(field) = passed_over(&content, &thing.content(), "") {
            return Err(refused(name, &format!("has {field}, which this agent does not know")));
        }
        thing.judge().map_err(|why| refused(name, &format!("cannot be: {why}")))?;
        Ok(thing)
    }

    fn judge(&self) -> Result<(), String> {
        match self {
            Thing::Target(spec) => spec.clone().judge().map(drop).map_err(|fault| fault.text),
            // Whether its socket's path fits is judged where its target is known.
            Thing::Volume(_, spec) => "/"
                .parse()
                .and_then(|shortest: CleanPath| spec.clone().judge(&shortest))
                .map(drop)
                .map_err(|fault| fault.text),
            Thing::Reservations(list) if pages_map(list).len() != list.len() => {
                Err("one pool is in it twice".to_string())
            }
            Thing::Controller(Identity { send_command_url: url, .. }) if !url.is_empty() => {
                let judged = url.parse::<HttpUrl>();
                judged.map(drop).map_err(|why| format!("its sendCommandUrl is no address: {why}"))
            }
            Thing::Reservations(_) | Thing::Controller(_) => Ok(()),
        }
    }

    /// The name of its file in the state folder.
    pub fn name(&self) -> String {
        match self {
            Thing::Target(spec) => format!("{TARGETS}/{}.json", spec.name),
            Thing::Volume(target, spec) => format!("{VOLUMES}/{target}/{}.json", spec.name),
            Thing::Reservations(_) => RESERVATIONS.to_string(),
            Thing::Controller(_) => Identity::FILE.to_string(),
        }
    }

    /// What its file holds beside the version.
    pub(super) fn content(&self) -> Value {
        match self {
            Thing::Target(spec) => json!(Entry { spec: (**spec).clone(), trial: None }),
            Thing::Volume(target, spec) => {
                json!(VolumeEntry { target: target.clone(), spec: (**spec).clone() })
            }
            Thing::Reservations(list) => json!(list),
            Thing::Controller(identity) => json!(identity),
        }
    }

    /// What a document has of it.
    pub fn value(&self) -> Value {
        let mut value = self.content();
        if let Thing::Target(_) | Thing::Volume(..) = self {
            value["version"] = store::VERSION.into();
        }
        value
    }

    /// The same without what can be secret: an address's query can be what gives access to it, and what a
    /// raw method is called with may be anything.
    pub fn shown(&self) -> Value {
        let mut value = self.value();
        match self {
            Thing::Target(spec) => {
                if let Some(url) = &spec.image_url {
                    value["spec"]["imageUrl"] = url.to_string().into();
                }
            }
            Thing::Volume(_, spec) => {
                if let Backing::Raw { params, .. } = &spec.backing {
                    let hidden = params.keys().map(|name| (name.clone(), Value::from("…")));
                    value["spec"]["backing"]["params"] = Value::Object(hidden.collect());
                }
            }
            Thing::Controller(identity) => {
                value["sendCommandUrl"] = text_without_secrets(&identity.send_command_url).into();
            }
            Thing::Reservations(_) => {}
        }
        value
    }
}

fn refused(name: &str, why: &str) -> Fault {
    // It may come from anywhere.
    let name: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    Fault::new(Code::InvalidState, format!("{name} {why}"))
}

fn parse<T: DeserializeOwned>(name: &str, value: &Value) -> Result<T, Fault> {
    T::deserialize(value).map_err(|e| refused(name, &format!("cannot be read: {e}")))
}

fn content(name: &str, value: &Value) -> Result<Value, Fault> {
    store::content(value.clone()).map_err(|why| refused(name, &why.to_string()))
}

/// The first field that was read and is not in what was understood; one without a value says nothing.
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

/// A result that waits for the controller, or a call whose work goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// The controller's name for it.
    pub task: String,
    /// Where its result goes.
    pub callback_url: String,
    /// Whether it has its result.
    pub has_result: bool,
}

/// All that is kept of a node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Kept {
    /// The things.
    pub things: Things,
    /// Files that cannot be used, and why.
    pub unusable: Vec<Fault>,
    /// What waits for the controller.
    pub outbox: Vec<Waiting>,
}

/// How a file is read: [`Thing::read`] or [`Thing::admit`].
pub type Reading = fn(&str, &Value) -> Result<Thing, Fault>;

/// Looks at all that is kept; nothing is changed, and nothing set aside.
///
/// # Errors
/// When the disk fails.
pub fn look(store: &Store, reading: Reading) -> Result<Kept, Fault> {
    let mut kept = Kept::default();
    for name in names(store)? {
        let Some(bytes) = store.bytes(&name, Durability::Disk)? else { continue };
        let value = serde_json::from_slice::<Value>(&bytes);
        let value = value.map_err(|e| refused(&name, &format!("is no JSON: {e}")));
        match value.and_then(|value| reading(&name, &value)) {
            Ok(thing) => drop(kept.things.insert(name, thing)),
            Err(fault) => kept.unusable.push(fault),
        }
    }
    kept.outbox = outbox(store)?;
    Ok(kept)
}

fn outbox(store: &Store) -> Result<Vec<Waiting>, Fault> {
    let mut waiting = Vec::new();
    for name in store.list(OUTBOX, Durability::Disk)? {
        let Some(bytes) = store.bytes(&format!("{OUTBOX}/{name}"), Durability::Disk)? else {
            continue;
        };
        // Its form is the outbox's business; what it shows of itself is shown.
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        waiting.push(Waiting {
            task: name.trim_end_matches(".json").to_string(),
            callback_url: text_without_secrets(value["callbackUrl"].as_str().unwrap_or_default()),
            has_result: !value["result"].is_null(),
        });
    }
    Ok(waiting)
}

/// The files of all things.
fn names(store: &Store) -> Result<Vec<String>, Fault> {
    let list = |folder: &str| {
        let names = store.list(folder, Durability::Disk)?;
        Ok::<_, Fault>(names.into_iter().map(|name| format!("{folder}/{name}")).collect::<Vec<_>>())
    };
    let mut names = list(TARGETS)?;
    for target in store.folders(VOLUMES, Durability::Disk)? {
        names.extend(list(&format!("{VOLUMES}/{target}"))?);
    }
    names.extend([RESERVATIONS.to_string(), Identity::FILE.to_string()]);
    Ok(names)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
