//! Arguments of a QEMU: the UNIX sockets that its chardevs connect to, each with the pause between tries to reconnect, and
//! whether it shares its memory.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::guest::Reconnect;

/// Upper limit of the bytes of a chardev's options: a path, and a handful of switches.
const MOST_OPTIONS: usize = 4096;

/// Options of a chardev or an object by name; of an option given twice the last one counts, as in QEMU.
type OptionsByName = BTreeMap<String, String>;

/// UNIX sockets to which the QEMU with `arguments` connects, by path. Sockets on which QEMU listens are left out, and
/// so are chardevs whose options cannot be parsed.
pub fn client_sockets<'a>(
    arguments: impl Iterator<Item = &'a [u8]> + Clone,
) -> BTreeMap<String, Reconnect> {
    values_of("-chardev", arguments).filter_map(client_socket).collect()
}

/// `true` if the QEMU with `arguments` has its memory in objects that other processes may map, all of them.
pub fn shares_memory<'a>(arguments: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
    let mut backends = values_of("-object", arguments).filter_map(is_shared_backend).peekable();
    backends.peek().is_some() && backends.all(|is_shared| is_shared)
}

/// Values of each option `name`, which may be written with two dashes.
fn values_of<'a>(
    name: &'static str,
    arguments: impl Iterator<Item = &'a [u8]> + Clone,
) -> impl Iterator<Item = &'a str> {
    let pairs = arguments.clone().zip(arguments.skip(1));
    let values = pairs.filter(move |(word, _)| {
        *word == name.as_bytes() || word.strip_prefix(b"-") == Some(name.as_bytes())
    });
    let values = values.map(|(_, value)| value).filter(|value| value.len() <= MOST_OPTIONS);
    values.filter_map(|value| std::str::from_utf8(value).ok())
}

/// `true` if the memory of an object is shared; `None` if it is no memory.
fn is_shared_backend(text: &str) -> Option<bool> {
    let (kind, options) = if text.starts_with('{') {
        let object: Value = serde_json::from_str(text).ok()?;
        let options = object.as_object().cloned().map(scalars)?;
        (options.get("qom-type").cloned()?, options)
    } else {
        let options = of_options(text);
        (options.get("backend").or_else(|| options.get("qom-type")).cloned()?, options)
    };
    let by_default = match kind.as_str() {
        "memory-backend-memfd" => true,
        "memory-backend-file" | "memory-backend-ram" => false,
        _ => return None,
    };
    Some(options.get("share").map_or(by_default, |share| !is_off(share)))
}

fn is_off(value: &str) -> bool {
    matches!(value, "off" | "no" | "n" | "false")
}

fn client_socket(text: &str) -> Option<(String, Reconnect)> {
    let mut options = if text.starts_with('{') { of_json(text)? } else { of_options(text) };
    let is_on = |name: &str| options.get(name).is_some_and(|value| !is_off(value));
    if options.get("backend")? != "socket" || is_on("server") || is_on("abstract") {
        return None;
    }
    // QEMU does not start with a `reconnect` that is no number.
    let number = |name: &str| options.get(name).map(|value| value.parse::<u32>().ok());
    let pause = match (number("reconnect-ms"), number("reconnect")) {
        (Some(millis), _) => Duration::from_millis(millis?.into()),
        (None, Some(seconds)) => Duration::from_secs(seconds?.into()),
        (None, None) => Duration::ZERO,
    };
    Some((options.remove("path")?, Reconnect::each(pause)))
}

/// Parses options in QEMU's own syntax: `socket,id=a,path=/b,reconnect=1`, where two commas stand for one that is part
/// of a value, and a name alone switches something on or, with `no` before it, off.
fn of_options(text: &str) -> OptionsByName {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match parts.last_mut() {
            Some(part) if c != ',' || chars.next_if_eq(&',').is_some() => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    let option = |(at, part): (usize, String)| {
        let (name, value) = match part.split_once('=') {
            Some(option) => option,
            None if at == 0 => ("backend", part.as_str()),
            None => part.strip_prefix("no").map_or((part.as_str(), "on"), |name| (name, "off")),
        };
        (name.to_string(), value.to_string())
    };
    parts.into_iter().enumerate().map(option).collect()
}

/// Parses options in the form of QMP's `chardev-add`, in which a socket listens unless it says otherwise.
fn of_json(text: &str) -> Option<OptionsByName> {
    let document: Value = serde_json::from_str(text).ok()?;
    let backend = document.get("backend")?;
    let data = |of: &Value| of.get("data").unwrap_or(of).as_object().cloned();
    let socket = data(backend)?;
    let address = socket.get("addr").and_then(data).unwrap_or_default();
    let mut options = OptionsByName::from([("server".to_string(), "on".to_string())]);
    options.insert("backend".to_string(), backend.get("type")?.as_str()?.to_string());
    options.extend(scalars(socket));
    options.extend(scalars(address));
    Some(options)
}

/// Members that are no structures, as texts.
fn scalars(object: Map<String, Value>) -> OptionsByName {
    let option = |(name, value): (String, Value)| match value {
        Value::String(text) => Some((name, text)),
        Value::Bool(on) => Some((name, if on { "on" } else { "off" }.to_string())),
        Value::Number(number) => Some((name, number.to_string())),
        _ => None,
    };
    object.into_iter().filter_map(option).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(count: u64) -> Reconnect {
        Reconnect::each(Duration::from_millis(count))
    }

    /// Sockets on a command line with one chardev.
    fn sockets(chardev: &str) -> Vec<(String, Reconnect)> {
        let words = ["qemu-system-x86_64", "-m", "1", "-chardev", chardev, "-device", "x"];
        client_sockets(words.iter().map(|word| word.as_bytes())).into_iter().collect()
    }

    #[test]
    fn sockets_are_told_with_how_often_they_are_looked_for() {
        for (chardev, reconnect) in [
            ("socket,id=a,path=/s/v", Reconnect::NEVER),
            ("socket,id=a,path=/s/v,reconnect=0", Reconnect::NEVER),
            ("socket,id=a,path=/s/v,reconnect=10", millis(10_000)),
            ("socket,id=a,path=/s/v,reconnect-ms=500", millis(500)),
            ("socket,id=a,reconnect=1,path=/s/v,server=off", millis(1000)),
            ("socket,id=a,noserver,path=/s/v,abstract=no", Reconnect::NEVER),
            ("backend=socket,path=/t,path=/s/v", Reconnect::NEVER),
            (
                r#"{"id": "a", "backend": {"type": "socket", "data": {"server": false, "reconnect": 2,
                    "addr": {"type": "unix", "data": {"path": "/s/v"}}}}}"#,
                millis(2000),
            ),
            (
                r#"{"backend": {"type": "socket", "server": false, "reconnect-ms": 250,
                    "addr": {"type": "unix", "path": "/s/v"}}}"#,
                millis(250),
            ),
        ] {
            assert_eq!(sockets(chardev), [("/s/v".to_string(), reconnect)], "{chardev}");
        }
    }

    #[test]
    fn what_listens_is_no_socket_or_cannot_be_understood_is_left_out() {
        for chardev in [
            "",
            ",",
            "socket",
            "socket,id=a,host=1.2.3.4,port=7",
            "socket,path=/s/v,server=on",
            "socket,path=/s/v,server",
            "socket,path=/s/v,abstract=on",
            "socket,path=/s/v,reconnect=often",
            "socket,path=/s/v,reconnect=99999999999999999999",
            "socket,path=/s/v,reconnect-ms=-1",
            "file,path=/s/v",
            "{",
            "{}",
            r#"{"backend": 7}"#,
            r#"{"backend": {"type": "socket"}}"#,
            r#"{"backend": {"type": "socket", "data": {"addr": {"data": {"path": "/s/v"}}}}}"#,
            r#"{"backend": {"type": "file", "data": {"path": "/s/v", "server": false}}}"#,
        ] {
            assert_eq!(sockets(chardev), [], "{chardev}");
        }
        assert_eq!(sockets(&format!("socket,path=/s/v{}", ",wait".repeat(1000))), [], "too long");
        for words in [&[][..], &[b"-chardev".as_slice()], &[b"-chardev", b"socket,path=/\xff"]] {
            assert!(client_sockets(words.iter().copied()).is_empty());
        }
    }

    #[test]
    fn memory_is_shared_if_all_its_objects_say_so() {
        let shares = |objects: &[&str]| {
            let words = objects.iter().flat_map(|object| ["-object", object]);
            shares_memory(["qemu", "-m", "1"].into_iter().chain(words).map(str::as_bytes))
        };
        let file = "memory-backend-file,id=m,mem-path=/dev/hugepages,size=1G";
        let shared = format!("{file},share=on");
        for (objects, expected) in [
            (&[][..], false),
            (&["iothread,id=i"], false),
            (&[file], false),
            (&[&shared], true),
            (&[&shared, "iothread,id=i"], true),
            (&[&shared, file], false),
            (&["memory-backend-ram,id=m,size=1G"], false),
            (&["memory-backend-memfd,id=m,size=1G"], true),
            (&["memory-backend-memfd,id=m,share=off,size=1G"], false),
            (&["qom-type=memory-backend-file,share=yes,id=m"], true),
            (
                &[
                    r#"{"qom-type": "memory-backend-file", "id": "ram-node0", "share": true, "size": 1}"#,
                ],
                true,
            ),
            (&[r#"{"qom-type": "memory-backend-file", "id": "ram-node0", "size": 1}"#], false),
            (&["{"], false),
        ] {
            assert_eq!(shares(objects), expected, "{objects:?}");
        }
        assert!(shares_memory([b"--object".as_slice(), shared.as_bytes()].into_iter()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_path_is_read_as_it_was_escaped(path in "[a-z,=/ -]{1,20}", seconds in 0_u32..100) {
            let escaped = path.replace(',', ",,");
            let told = sockets(&format!("socket,id=a,path={escaped},reconnect={seconds}"));
            prop_assert_eq!(told, [(path, Reconnect::each(Duration::from_secs(seconds.into())))]);
        }

        #[test]
        fn any_command_line_is_read_without_a_panic(
            words in prop::collection::vec("-chardev|\\{.{0,40}|(socket|path|server|reconnect|no|=|,|/s|[0-9]|.){0,20}", 0..6)
        ) {
            let all = words.iter().map(String::as_bytes);
            prop_assert!(client_sockets(all).len() <= words.len());
        }
    }
}
