//! Logging: human-readable on a terminal, journald under systemd, JSON elsewhere.

mod journal;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tracing_subscriber::filter::{Directive, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use self::journal::{Journal, Sink};
use crate::config::{Log, LogFormat, stderr_is_the_journal};
use crate::log::{AUDIT, LogQueue};
use crate::store::open_to_append;

/// Time limit for the last lines when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Log writers, until the process ends.
pub(super) struct LogGuard {
    queue: LogQueue,
    audit: Vec<LogQueue>,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.queue.flush(LAST_LINES);
        self.audit.iter().for_each(|audit| audit.flush(LAST_LINES));
    }
}

/// Directive that writes the audit log at any level.
fn audit_directive() -> Result<Directive> {
    format!("{AUDIT}=info").parse().context("the audit log cannot be switched on")
}

/// Queue of lines to the audit log's file.
fn audit_queue(path: &str) -> Result<LogQueue> {
    let mut file = open_to_append(Path::new(path)).with_context(|| {
        format!("{path} cannot be written: see whether its folder is there (access.audit_file)")
    })?;
    let queue = LogQueue::start(move |line| file.write_all(line).is_ok());
    queue.context("the audit log cannot be started")
}

/// Starts logging to standard error. A command (`daemon` false) only logs errors, as it prints its results itself.
///
/// # Errors
/// When the level is no valid filter, or journald is configured and not reachable.
pub(super) fn start(log: &Log, audit_file: &str, daemon: bool) -> Result<LogGuard> {
    let level = if daemon { log.level.as_str() } else { "warn" };
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("log.level '{}' is no level or filter", log.level))?;
    // A command reports its outcome to its user, and to the audit log if no agent runs that does.
    let filter = if daemon { filter.add_directive(audit_directive()?) } else { filter };
    let audit = Some(audit_file).filter(|path| !path.is_empty());
    let audit = match daemon {
        true => audit.map(audit_queue).transpose()?,
        // An error is ignored: a read-only command may run as a user who cannot write the file.
        false => audit.and_then(|path| audit_queue(path).ok()),
    };
    let journal = match daemon {
        true => None,
        false => Sink::open_nonblocking()
            .ok()
            .and_then(|sink| LogQueue::start(move |line| sink.send(line)).ok()),
    };
    let format = match log.format {
        LogFormat::Auto if !daemon || std::io::stderr().is_terminal() => LogFormat::Human,
        LogFormat::Auto if stderr_is_the_journal() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Json,
        chosen => chosen,
    };
    let queue = match format {
        LogFormat::Journald => {
            let sink = Sink::open().context("journald cannot be reached")?;
            LogQueue::start(move |line| sink.send(line))
        }
        // Lines are lost if standard error is closed or on a full disk: there is no other output.
        _ => LogQueue::start(|line| std::io::stderr().write_all(line).is_ok()),
    };
    let queue = queue.context("the log cannot be started")?;
    let audits = [&audit, &journal].into_iter().flatten().cloned().collect();
    let guard = LogGuard { queue: queue.clone(), audit: audits };
    let writer = queue.clone();
    let layer = match format {
        LogFormat::Journald => Journal(queue).boxed(),
        LogFormat::Json => {
            let json = fmt::layer().json().flatten_event(true).with_span_list(false);
            json.with_writer(move || writer.clone()).boxed()
        }
        LogFormat::Human | LogFormat::Auto => fmt::layer()
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(move || writer.clone())
            .boxed(),
    };
    let is_audit = || filter_fn(|of| of.target() == AUDIT).with_max_level_hint(LevelFilter::INFO);
    let audit = audit.map(|queue| {
        let json = fmt::layer().json().flatten_event(true).with_span_list(false);
        let json = json.with_current_span(false).with_writer(move || queue.clone());
        json.with_filter(is_audit())
    });
    let journal = journal.map(|queue| Journal(queue).with_filter(is_audit()));
    let layer = layer.with_filter(filter);
    tracing_subscriber::registry().with(layer).with(audit).with(journal).init();
    // A panic is a regular line of the log, not loose text between lines.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref().copied()).unwrap_or("no text");
        tracing::error!(
            place,
            "the agent panicked at {}: {text}; this is a bug, report it",
            place.as_deref().unwrap_or("an unknown place")
        );
    }));
    Ok(guard)
}
