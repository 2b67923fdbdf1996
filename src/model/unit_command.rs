//! Command line of a systemd unit: `$VARIABLE` and `${VARIABLE}` in `ExecStart` (systemd.service(5), COMMAND LINES), and
//! the files that define them (systemd.exec(5), `EnvironmentFile`).

use std::collections::BTreeMap;

/// Variables of a unit's environment.
pub type Environment = BTreeMap<String, String>;

/// Arguments after substitution. `$NAME` as a word of its own becomes as many words as its value has, and no word if it
/// is not set; `${NAME}` becomes its value within the word, and `$$` a `$`.
pub fn expanded(args: &[String], environment: &Environment) -> Vec<String> {
    let mut result = Vec::with_capacity(args.len());
    for arg in args {
        match arg.strip_prefix('$') {
            Some(name) if is_name(name) => {
                result.extend(environment.get(name).into_iter().flat_map(|value| words(value)));
            }
            _ => result.push(substituted(arg, environment)),
        }
    }
    result
}

/// Text with each `${NAME}` replaced.
fn substituted(text: &str, environment: &Environment) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        result.push_str(before);
        let variable = behind.strip_prefix('{').and_then(|behind| behind.split_once('}'));
        rest = match variable {
            Some((name, behind)) if is_name(name) => {
                result.extend(environment.get(name).map(String::as_str));
                behind
            }
            _ => {
                result.push('$');
                behind.strip_prefix('$').unwrap_or(behind)
            }
        };
    }
    result + rest
}

/// Position in an environment file, as systemd reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Key,
    Comment,
    /// Before a value, or behind a quoted part of it: blanks are passed over.
    BeforeValue,
    /// Part without quotes: a quote in it is an ordinary character.
    Value,
    Quoted(char),
}

/// Adds the variables that `text`, the content of an environment file, assigns.
pub fn read_environment(text: &str, environment: &mut Environment) {
    let (mut place, mut key, mut value) = (Place::Key, String::new(), String::new());
    // Length of the value without blanks at its end, which count only within quotes.
    let mut kept = 0;
    let mut chars = text.chars().chain(['\n']);
    while let Some(char) = chars.next() {
        match (place, char) {
            (Place::Key, '\n') => key.clear(),
            (Place::Key, '#' | ';') if key.trim().is_empty() => place = Place::Comment,
            (Place::Key, '=') => place = Place::BeforeValue,
            (Place::Key, char) => key.push(char),
            (Place::Comment, '\n') => place = Place::Key,
            (Place::Comment, _) => {}
            (Place::BeforeValue | Place::Value, '\n') => {
                value.truncate(kept);
                let value = std::mem::take(&mut value);
                let name = std::mem::take(&mut key).trim().to_string();
                (place, kept) = (Place::Key, 0);
                if is_name(&name) {
                    environment.insert(name, value);
                }
            }
            (Place::BeforeValue, quote @ ('\'' | '"')) => place = Place::Quoted(quote),
            (Place::BeforeValue | Place::Value, '\\') => {
                place = Place::Value;
                value.extend(chars.next().filter(|next| *next != '\n'));
                kept = value.len();
            }
            (Place::BeforeValue, blank) if blank.is_whitespace() => {}
            (Place::BeforeValue | Place::Value, char) => {
                place = Place::Value;
                value.push(char);
                kept = if char.is_whitespace() { kept } else { value.len() };
            }
            (Place::Quoted(quote), char) if char == quote => place = Place::BeforeValue,
            (Place::Quoted('"'), '\\') => {
                match chars.next() {
                    Some('\n') | None => {}
                    Some(next @ ('"' | '\\' | '`' | '$')) => value.push(next),
                    Some(next) => value.extend(['\\', next]),
                }
                kept = value.len();
            }
            (Place::Quoted(_), char) => {
                value.push(char);
                kept = value.len();
            }
        }
    }
}

/// Words of `text`, which blanks separate, without their quotes and escapes.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), char) if char == open => quote = None,
            (None | Some('"'), '\\') => {
                word.get_or_insert_with(String::new).extend(chars.next());
            }
            (None, '"' | '\'') => {
                word.get_or_insert_with(String::new);
                quote = Some(char);
            }
            (None, blank) if blank.is_whitespace() => words.extend(word.take()),
            (_, char) => word.get_or_insert_with(String::new).push(char),
        }
    }
    words.extend(word);
    words
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|char| char.is_ascii_alphanumeric() || char == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(text: &str) -> Environment {
        let mut environment = Environment::new();
        read_environment(text, &mut environment);
        environment
    }

    /// Command line `args` with the variables of the environment file `text`.
    fn line(args: &[&str], text: &str) -> Vec<String> {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        expanded(&args, &environment(text))
    }

    // Units and environment files of docker.io in Debian 12, docker-engine in openEuler 20.03, docker in CentOS 7.
    #[test]
    fn variable_that_is_a_word_becomes_as_many_as_its_value_has() {
        let debian = ["/usr/sbin/dockerd", "-H", "fd://", "$DOCKER_OPTS"];
        let text = "# Use DOCKER_OPTS to modify the daemon startup options.\n\
                    DOCKER_OPTS=\"--iptables=false --dns 8.8.8.8\"\n";
        let words = ["/usr/sbin/dockerd", "-H", "fd://", "--iptables=false", "--dns", "8.8.8.8"];
        assert_eq!(line(&debian, text), words);
        assert_eq!(line(&debian, "#DOCKER_OPTS=\"--dns 8.8.8.8\"\n"), words[..3]);
        assert_eq!(line(&debian, ""), words[..3], "it is not set");
        let centos = ["dockerd-current", "$OPTIONS", "$DOCKER_NETWORK_OPTIONS"];
        let text =
            "OPTIONS='--selinux-enabled --signature-verification=false'\nDOCKER_NETWORK_OPTIONS=\n";
        let words = ["dockerd-current", "--selinux-enabled", "--signature-verification=false"];
        assert_eq!(line(&centos, text), words);
    }

    #[test]
    fn variable_in_braces_stays_within_its_word() {
        let args =
            ["dockerd", "--config-file=${CONFIG}", "a$CONFIG", "$$CONFIG", "${NONE}", "${", "$"];
        let words =
            ["dockerd", "--config-file=/etc/my docker.json", "a$CONFIG", "$CONFIG", "", "${", "$"];
        assert_eq!(line(&args, "CONFIG=\"/etc/my docker.json\""), words);
    }

    // As parse_env_file_internal of systemd reads them.
    #[test]
    fn file_is_read_with_quotes_comments_and_continuations() {
        let text = "; comment\n  A = 1 \nB=\"x y\" \nC='it''s' \nD=a\\\n b\n=none\n1X=2\nE=\"say \\\"hi\\\" \\n\"\nF\nA=2\n\
                    G=\"one\n two\"\nH=--label \"a b\"\nI='a \\'";
        let expected = [
            ("A", "2"),
            ("B", "x y"),
            ("C", "its"),
            ("D", "a b"),
            ("E", "say \"hi\" \\n"),
            ("G", "one\n two"),
            ("H", "--label \"a b\""),
            ("I", "a \\"),
        ];
        let read = environment(text);
        let read: Vec<(&str, &str)> =
            read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(read, expected);
        assert_eq!(line(&["dockerd", "$H"], text), ["dockerd", "--label", "a b"]);
    }

    #[test]
    fn quoted_blanks_and_empty_words_are_kept() {
        let args = ["dockerd", "$OPTS"];
        assert_eq!(line(&args, "OPTS='--label \"a b\" \"\"'"), ["dockerd", "--label", "a b", ""]);
    }
}
