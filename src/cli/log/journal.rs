//! Log lines in journald's native format, with their fields (systemd.io/JOURNAL_NATIVE_PROTOCOL).

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::thread::sleep;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::log::{AUDIT, LogQueue};

const SOCKET: &str = "/run/systemd/journal/socket";
const IDENTIFIER: &str = "vhost-agent";
/// Identifier of the audit log: `journalctl -t vhost-agent-audit`.
const AUDIT_IDENTIFIER: &str = "vhost-agent-audit";
/// Limit of one value in bytes: a datagram takes about 200 KiB.
const MOST_BYTES: usize = 32 << 10;
/// Number of tries to send a line while journald does not listen: a restarted journald is back by then.
const TRIES: u32 = 50;
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Sender of lines to journald.
pub(super) struct Sink(UnixDatagram);

impl Sink {
    /// Connects to journald.
    ///
    /// # Errors
    /// When nothing listens there.
    pub(super) fn open() -> io::Result<Sink> {
        let socket = UnixDatagram::unbound()?;
        // journald discards an empty datagram.
        socket.send_to(&[], SOCKET)?;
        Ok(Sink(socket))
    }

    /// Connects without blocking: lines that a full journal does not take are lost.
    pub(super) fn open_nonblocking() -> io::Result<Sink> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to(&[], SOCKET)?;
        Ok(Sink(socket))
    }

    /// Sends a line; `true` if it was accepted.
    pub(super) fn send(&self, line: &[u8]) -> bool {
        for _ in 0..TRIES {
            match self.0.send_to(line, SOCKET) {
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                    ) =>
                {
                    sleep(PAUSE);
                }
                sent => return sent.is_ok(),
            }
        }
        false
    }
}

/// Layer that makes a line of each event, with the fields of the spans around it.
pub(super) struct Journal(pub(super) LogQueue);

/// Fields in journald's format.
struct Fields(Vec<u8>);

impl Fields {
    fn put(&mut self, name: &str, value: &str) {
        let mut end = value.len().min(MOST_BYTES);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let value = value.get(..end).unwrap_or_default().as_bytes();
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        // journald's format for values of any bytes: the length, then the value.
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn put_place(&mut self, of: &Metadata<'_>) {
        self.put("TARGET", of.target());
        if let (Some(file), Some(line)) = (of.file(), of.line()) {
            self.put("CODE_FILE", file);
            self.put("CODE_LINE", &line.to_string());
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put("MESSAGE", value),
            name => self.put(&format!("F_{}", name.to_ascii_uppercase()), value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}

/// Level as a syslog(3) priority; lines of normal operation are notices.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields(Vec::new());
        fields.put("SPAN_NAME", span.name());
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Fields(Vec::with_capacity(256));
        for span in context.lookup_current().iter().flat_map(|span| span.scope().from_root()) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.0.extend_from_slice(&fields.0);
            }
        }
        line.put("PRIORITY", priority(*event.metadata().level()));
        let is_audit = event.metadata().target() == AUDIT;
        line.put("SYSLOG_IDENTIFIER", if is_audit { AUDIT_IDENTIFIER } else { IDENTIFIER });
        line.put_place(event.metadata());
        event.record(&mut line);
        self.0.put(line.0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// The fields of a line.
    fn read(mut line: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let (name, rest) = (&line[..end], &line[end + 1..]);
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap());
            let (value, rest) = rest[8..].split_at(usize::try_from(length).unwrap());
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            fields.push((text(name), text(value)));
            line = &rest[1..];
        }
        fields
    }

    #[test]
    fn an_event_has_its_fields_and_those_of_its_span() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = lines.clone();
        let queue = LogQueue::start(move |line| {
            seen.lock().unwrap().push(line.to_vec());
            true
        })
        .unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal(queue.clone()));
        let long = "ä".repeat(MOST_BYTES);
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("connection", peer = "10.0.0.1:1").entered();
            tracing::warn!(volumes = 3, target_name = %"a\nb", "it is\ndown");
            tracing::info!("{long}");
            tracing::info!(target: AUDIT, by = "uid 0", "deploy by uid 0: changed");
        });
        queue.flush(Duration::from_secs(30));
        let lines = lines.lock().unwrap();
        let fields = read(&lines[0]);
        for (name, value) in [
            ("SPAN_NAME", "connection"),
            ("F_PEER", "10.0.0.1:1"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "vhost-agent"),
            ("F_VOLUMES", "3"),
            ("F_TARGET_NAME", "a\nb"),
            ("MESSAGE", "it is\ndown"),
        ] {
            let found = fields.iter().find(|field| field.0 == name);
            assert_eq!(found.map(|field| field.1.as_str()), Some(value), "{name}");
        }
        let (_, message) = read(&lines[1]).into_iter().find(|field| field.0 == "MESSAGE").unwrap();
        assert_eq!(message.len(), MOST_BYTES);
        let audit = read(&lines[2]);
        assert!(audit.contains(&("SYSLOG_IDENTIFIER".into(), "vhost-agent-audit".into())));
    }
}
