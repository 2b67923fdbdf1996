//! Splitter of a target's byte stream into replies. A reply ends with a newline but may contain some, and may arrive in
//! pieces of any size.

use serde::Deserialize;
use serde_json::Value;

use super::RawResult;

/// Maximum bytes of a reply, more than any target sends: the list of some thousand bdevs takes 32 MiB.
const MOST_BYTES: usize = 64 * 1024 * 1024;
/// Minimum free space for the next read, in bytes: many short replies arrive together.
const ROOM: usize = 8 * 1024;
/// Maximum capacity that an empty buffer keeps, in bytes.
const KEPT_BYTES: usize = 1024 * 1024;

/// Reply of a target.
#[derive(Debug, Deserialize)]
pub struct Reply {
    /// Id of the request; null if the target could not read the request.
    #[serde(default)]
    pub id: Value,
    /// Result of the call; `None` also if it is `null`.
    #[serde(default)]
    pub result: Option<RawResult>,
    /// Error of the target, if it refused.
    #[serde(default)]
    pub error: Option<ReplyError>,
}

/// Error of a refused call.
#[derive(Debug, Deserialize)]
pub struct ReplyError {
    /// JSON-RPC code, or negative errno.
    #[serde(default)]
    pub code: i64,
    /// Message of the target.
    #[serde(default)]
    pub message: String,
}

/// Received bytes that do not form a complete reply yet. Each byte is scanned once, in however many pieces it arrives.
#[derive(Debug, Default)]
pub struct ReplyBuffer {
    bytes: Vec<u8>,
    /// Number of bytes at the front that are scanned already.
    scanned: usize,
    /// Number of objects and arrays that are open after the scanned bytes.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ReplyBuffer {
    /// Buffer with free space, to which the next bytes are appended.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.bytes.reserve(ROOM);
        &mut self.bytes
    }

    /// `true` if the scanned bytes end within a reply.
    pub fn is_half(&self) -> bool {
        self.depth > 0
    }

    /// Passes each complete reply received so far to `deliver`.
    ///
    /// # Errors
    /// The fault in the stream, as text; no reply can be read from the stream any more.
    pub fn replies(&mut self, mut deliver: impl FnMut(Reply)) -> Result<(), String> {
        let mut begin = 0;
        while let Some(byte) = self.bytes.get(self.scanned).copied() {
            self.scanned += 1;
            let was_open = self.is_half();
            self.step(byte)?;
            if was_open && self.depth == 0 {
                let reply = self.bytes.get(begin..self.scanned).unwrap_or_default();
                deliver(serde_json::from_slice(reply).map_err(|e| e.to_string())?);
            }
            if self.depth == 0 {
                begin = self.scanned;
            }
        }
        self.bytes.drain(..begin);
        self.scanned -= begin;
        if self.bytes.len() > MOST_BYTES {
            return Err(format!("an answer of more than {MOST_BYTES} bytes"));
        }
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<(), String> {
        match (self.in_string, byte) {
            (true, _) if self.escaped => self.escaped = false,
            (true, b'\\') => self.escaped = true,
            (true, b'"') => self.in_string = false,
            // A newline in a string means that a reply was cut off and another one follows.
            (true, b'\n') => return Err("a line ends within a string".to_string()),
            (true, _) => {}
            (false, b'{') => self.depth += 1,
            (false, byte) if self.depth > 0 => match byte {
                b'"' => self.in_string = true,
                b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            },
            (false, b' ' | b'\t' | b'\r' | b'\n') => {}
            (false, byte) => {
                let shown = char::from(byte).escape_default();
                return Err(format!("it begins with '{shown}' and is no JSON object"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(incoming: &mut ReplyBuffer, bytes: &[u8]) -> (Vec<Value>, Option<String>) {
        incoming.buffer().extend_from_slice(bytes);
        let mut ids = Vec::new();
        let failed = incoming.replies(|reply| ids.push(reply.id)).err();
        (ids, failed)
    }

    #[test]
    fn replies_are_found_however_they_are_cut() {
        let text = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[\n  \"}\\\"]\"\n]}\n{\"id\":2,\"result\":true}\n";
        for cut in 0..text.len() {
            let mut incoming = ReplyBuffer::default();
            let (one, two) = text.split_at(cut);
            let (mut all, failed) = ids(&mut incoming, one);
            assert_eq!(failed, None, "cut at {cut}");
            all.extend(ids(&mut incoming, two).0);
            assert_eq!(all, [1, 2], "cut at {cut}");
            assert!(!incoming.is_half(), "cut at {cut}");
        }
    }

    #[test]
    fn a_half_reply_waits_and_garbage_is_named_after_what_was_good() {
        let mut incoming = ReplyBuffer::default();
        assert_eq!(ids(&mut incoming, b"{\"id\":1,"), (vec![], None));
        assert!(incoming.is_half());
        let (good, failed) = ids(&mut incoming, b"\"result\":1}\nHTTP/1.1 400");
        assert_eq!((good, failed.is_some()), (vec![Value::from(1)], true));
        for garbage in ["\0", "}", "{\"id\":\"1\n", "[1]", "{]", "7"] {
            let (good, failed) = ids(&mut ReplyBuffer::default(), garbage.as_bytes());
            assert!(good.is_empty() && failed.is_some(), "{garbage}");
        }
    }

    #[test]
    fn an_answer_without_end_is_refused_before_it_fills_the_memory() {
        for piece in ["{\"id\":[\n", "{\"a\":[0,\n", "{\"result\":\"x"] {
            let mut incoming = ReplyBuffer::default();
            let mut text = piece.as_bytes().to_vec();
            let failed = (0..20_000).find_map(|_| {
                let failed = ids(&mut incoming, &text).1;
                text = b"0000000000000000000000000000000000000000,\t\t\t\t\t\t\t\t\t\t".repeat(100);
                failed
            });
            assert!(failed.is_some_and(|why| why.contains("more than")), "{piece}");
            assert!(incoming.buffer().capacity() <= 4 * MOST_BYTES);
        }
    }
}
