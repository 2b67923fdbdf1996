//! Arguments of a QEMU: the UNIX sockets that its chardevs connect to, each with the pause between tries to reconnect.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::guest::Reconnect;

/// Upper limit of the bytes of a chardev's options: a path, and a handful of switches.
const MOST_OPTIONS: usize = 4096;

/// Options of a chardev by name; of an option given twice the last one counts, as in QEMU.
type ChardevOptions = BTreeMap<String, String>;

/// UNIX sockets to which the QEMU with `arguments` connects, by path. Sockets on which QEMU listens are left out, and
/// so are chardevs whose options cannot be parsed.
pub fn client_sockets<'a>(
    arguments: impl Iterator<Item = &'a [u8]> + Clone,
) -> BTreeMap<String, Reconnect> {
    let words = arguments.clone().zip(arguments.skip(1));
    let chardevs = words.filter(|(word, _)| matches!(*word, b"-chardev" | b"--chardev"));
    let values = chardevs.map(|(_, value)| value).filter(|value| value.len() <= MOST_OPTIONS);
    values.filter_map(|value| client_socket(std::str::from_utf8(value).ok()?)).collect()
}

fn client_socket(text: &str) -> Option<(String, Reconnect)> {
    let mut options = if text.starts_with('{') { of_json(text)? } else { of_options(text) };
    let is_off = |value: &String| matches!(value.as_str(), "off" | "no" | "n" | "false");
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
fn of_options(text: &str) -> ChardevOptions {
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
fn of_json(text: &str) -> Option<ChardevOptions> {
    let document: Value = serde_json::from_str(text).ok()?;
    let backend = document.get("backend")?;
    let data = |of: &Value| of.get("data").unwrap_or(of).as_object().cloned();
    let socket = data(backend)?;
    let address = socket.get("addr").and_then(data).unwrap_or_default();
    let mut options = ChardevOptions::from([("server".to_string(), "on".to_string())]);
    options.insert("backend".to_string(), backend.get("type")?.as_str()?.to_string());
    let option = |(name, value): (String, Value)| match value {
        Value::String(text) => Some((name, text)),
        Value::Bool(on) => Some((name, if on { "on" } else { "off" }.to_string())),
        Value::Number(number) => Some((name, number.to_string())),
        _ => None,
    };
    options.extend(socket.into_iter().chain(address).filter_map(option));
    Some(options)
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
