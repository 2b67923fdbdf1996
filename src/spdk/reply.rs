//! Taking replies out of a stream that has no frames: a reply ends with a newline, but may have some
//! within, and may arrive in any pieces.

use serde::Deserialize;
use serde_json::Value;

/// More than any target answers at once.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// What a target answered.
#[derive(Debug, Deserialize)]
pub(super) struct Reply {
    /// Of the request; null when the target could not read it.
    #[serde(default)]
    pub(super) id: Value,
    #[serde(default)]
    pub(super) result: Option<Value>,
    #[serde(default)]
    pub(super) error: Option<ReplyError>,
}

/// Why it refused.
#[derive(Debug, Deserialize)]
pub(super) struct ReplyError {
    #[serde(default)]
    pub(super) code: i64,
    #[serde(default)]
    pub(super) message: String,
}

/// Bytes that arrived and were not understood yet.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    /// Bytes at the front that were tried without a newline after them.
    tried: usize,
}

impl Incoming {
    /// Where the next bytes go.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The whole replies that have arrived.
    ///
    /// # Errors
    /// What is wrong with the stream, which is worth nothing from there on.
    pub(super) fn replies(&mut self) -> Result<Vec<Reply>, String> {
        // Only a newline can end a reply: without a new one, parsing again would find the same.
        if !self.bytes.iter().skip(self.tried).any(|byte| *byte == b'\n') {
            self.tried = self.bytes.len();
            return self.bounded(Vec::new());
        }
        let mut found = Vec::new();
        let mut stream = serde_json::Deserializer::from_slice(&self.bytes).into_iter::<Reply>();
        let failed = loop {
            match stream.next() {
                None => break None,
                Some(Ok(reply)) => found.push(reply),
                Some(Err(e)) if e.is_eof() => break None,
                Some(Err(e)) => break Some(e.to_string()),
            }
        };
        let taken = stream.byte_offset();
        match failed {
            Some(why) if found.is_empty() => return Err(why),
            // What came before is good; the rest is found out about with the next look.
            Some(_) | None => drop(self.bytes.drain(..taken)),
        }
        self.tried = if failed.is_some() { 0 } else { self.bytes.len() };
        self.bounded(found)
    }

    fn bounded(&self, found: Vec<Reply>) -> Result<Vec<Reply>, String> {
        match self.bytes.len() > MOST_BYTES {
            true => Err(format!("an answer of more than {MOST_BYTES} bytes")),
            false => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(incoming: &mut Incoming, bytes: &[u8]) -> Result<Vec<Value>, String> {
        incoming.buffer().extend_from_slice(bytes);
        Ok(incoming.replies()?.into_iter().map(|reply| reply.id).collect())
    }

    #[test]
    fn replies_are_found_however_they_are_cut() {
        let text =
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[\n  1\n]}\n{\"id\":2,\"result\":true}\n";
        for cut in 0..text.len() {
            let mut incoming = Incoming::default();
            let (one, two) = text.split_at(cut);
            let mut all = ids(&mut incoming, one).unwrap();
            all.extend(ids(&mut incoming, two).unwrap());
            assert_eq!(all, [1, 2], "cut at {cut}");
        }
    }

    #[test]
    fn a_half_reply_waits_and_garbage_is_named_after_what_was_good() {
        let mut incoming = Incoming::default();
        assert_eq!(ids(&mut incoming, b"{\"id\":1,").unwrap(), [] as [Value; 0]);
        assert_eq!(ids(&mut incoming, b"\"result\":1}\nHTTP/1.1 400\n").unwrap(), [1]);
        assert!(ids(&mut incoming, b"").is_err() || ids(&mut incoming, b"\n").is_err());
    }
}
