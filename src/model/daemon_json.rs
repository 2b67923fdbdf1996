//! Text of daemon.json, the engine's configuration: keys are added to it, and the rest stays as the operator wrote it,
//! with its order, indentation and numbers.

use serde_json::{Map, Value};

use super::engine::DaemonJson;

/// Key that, set to `false`, keeps the engine from changing the host's packet filter.
pub const IPTABLES: &str = "iptables";
/// Key like [`IPTABLES`] for the packet filter of IPv6. Engines before 20.10 do not know it, and do not start with it.
pub const IP6TABLES: &str = "ip6tables";
/// Key of the bridge for containers without a network of their own.
pub const BRIDGE: &str = "bridge";
/// Key of the registries that the engine trusts without verification.
const INSECURE: &str = "insecure-registries";

/// `text` without a byte order mark of UTF-8, which editors of other systems write and RFC 8259 allows to ignore.
pub fn unmarked(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Keys and values of the JSON object in `text`; none if `text` is no object.
pub fn keys(text: &str) -> Map<String, Value> {
    serde_json::from_str(unmarked(text)).unwrap_or_default()
}

/// Adds `added` as the first keys, and returns the new text.
pub fn with_keys(file: &DaemonJson, added: &[(&str, Value)]) -> String {
    let lines: Vec<String> =
        added.iter().map(|(key, value)| format!("\n  \"{key}\": {value}")).collect();
    let lines = lines.join(",");
    match file {
        DaemonJson::Object { text, .. } if !keys(text).is_empty() => {
            unmarked(text).replacen('{', &format!("{{{lines},"), 1)
        }
        _ => format!("{{{lines}\n}}\n"),
    }
}

/// Adds a registry that the engine trusts without verification, and keeps the rest as the operator wrote it; `None`
/// if it is listed already.
///
/// # Errors
/// The reason why the file cannot be merged into.
pub fn with_insecure_registry(file: &DaemonJson, registry: &str) -> Result<Option<String>, String> {
    let text = match file {
        DaemonJson::Absent => "",
        DaemonJson::Object { text, .. } => unmarked(text),
        DaemonJson::Unusable(why) => return Err(why.clone()),
    };
    let text = if text.trim().is_empty() { "{}" } else { text };
    let mut wanted: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let entry = Value::from(registry);
    let was_empty = wanted.is_empty();
    let list = wanted.entry(INSECURE).or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(list) = list else {
        return Err(format!("its \"{INSECURE}\" is no list, but {list}"));
    };
    if list.contains(&entry) {
        return Ok(None);
    }
    let first = list.is_empty();
    list.insert(0, entry.clone());
    let as_new_key = match was_empty {
        true => format!("{{\n  \"{INSECURE}\": [{entry}]\n}}\n"),
        false => text.replacen('{', &format!("{{\n  \"{INSECURE}\": [{entry}],"), 1),
    };
    // Text that looks like the list can occur elsewhere: only a result that parses as intended is accepted.
    let separator = if first { "" } else { ", " };
    let in_list = text.match_indices('[').map(|(at, bracket)| {
        let (before, after) = text.split_at(at + bracket.len());
        format!("{before}{entry}{separator}{after}")
    });
    let reads_as_wanted =
        |text: &String| serde_json::from_str::<Map<_, _>>(text).is_ok_and(|read| read == wanted);
    let kept = std::iter::once(as_new_key).chain(in_list).find(reads_as_wanted);
    Ok(Some(match kept {
        Some(text) => text,
        None => serde_json::to_string_pretty(&wanted).map_err(|e| e.to_string())?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_first_and_the_rest_stays_as_written() {
        for (before, after) in [
            (
                "{\n    \"mtu\": 9e3,\n    \"debug\": true\n}\n",
                "{\n  \"iptables\": false,\n    \"mtu\": 9e3,\n    \"debug\": true\n}\n",
            ),
            (" {\"labels\":[\"{\"]}", " {\n  \"iptables\": false,\"labels\":[\"{\"]}"),
            (" { }\n", "{\n  \"iptables\": false\n}\n"),
            ("\n", "{\n  \"iptables\": false\n}\n"),
            ("\u{feff}{\"mtu\": 1}", "{\n  \"iptables\": false,\"mtu\": 1}"),
        ] {
            let file = DaemonJson::Object { text: before.into(), modified_at: 0 };
            let text = with_keys(&file, &[(IPTABLES, Value::Bool(false))]);
            assert_eq!(text, after);
            assert_eq!(keys(&text)[IPTABLES], Value::Bool(false));
        }
        let two = [(IPTABLES, Value::Bool(false)), (BRIDGE, Value::from("none"))];
        let text = with_keys(&DaemonJson::Absent, &two);
        assert_eq!(text, "{\n  \"iptables\": false,\n  \"bridge\": \"none\"\n}\n");
    }

    #[test]
    fn a_registry_is_merged_and_the_rest_stays_as_it_was_written() {
        let object = |text: &str| DaemonJson::Object { text: text.into(), modified_at: 0 };
        let merged = |file: &DaemonJson| with_insecure_registry(file, "10.0.0.1:5000");
        let alone = "{\n  \"insecure-registries\": [\"10.0.0.1:5000\"]\n}\n";
        assert_eq!(merged(&DaemonJson::Absent).unwrap().unwrap(), alone);
        assert_eq!(merged(&object(" {} ")).unwrap().unwrap(), alone);
        assert_eq!(merged(&object(" ")).unwrap().unwrap(), alone);
        assert_eq!(merged(&object("\u{feff}{}")).unwrap().unwrap(), alone);
        for (before, after) in [
            (
                "{\"z\": 1.50, \"a\": [2]}",
                "{\n  \"insecure-registries\": [\"10.0.0.1:5000\"],\"z\": 1.50, \"a\": [2]}",
            ),
            (
                "{\"dns\": [\"1.1.1.1\"],\n \"insecure-registries\" : [\n \"a:1\"]}",
                "{\"dns\": [\"1.1.1.1\"],\n \"insecure-registries\" : [\"10.0.0.1:5000\", \n \"a:1\"]}",
            ),
            (
                "{\"x\": \"insecure-registries: [\", \"insecure-registries\": [ ]}",
                "{\"x\": \"insecure-registries: [\", \"insecure-registries\": [\"10.0.0.1:5000\" ]}",
            ),
        ] {
            assert_eq!(merged(&object(before)).unwrap().unwrap(), after);
        }
        assert_eq!(merged(&object(alone)).unwrap(), None);
        let wrong = merged(&object("{\"insecure-registries\": \"a:1\"}")).unwrap_err();
        assert!(wrong.contains("is no list, but \"a:1\""), "{wrong}");
        assert_eq!(merged(&DaemonJson::Unusable("it is torn".into())).unwrap_err(), "it is torn");
    }
}
