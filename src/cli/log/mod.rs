//! The log: human on a terminal, journald under systemd, JSON elsewhere.

mod journal;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use self::journal::{Journal, Sink};
use crate::config::{Log, LogFormat, stderr_is_the_journal};
use crate::log::LogQueue;

/// How long the last lines may take when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log, until the process ends.
pub(super) struct LogGuard(LogQueue);

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES);
    }
}

/// Starts logging to standard error. A command for people (`daemon` false) only logs what goes wrong:
/// it prints its results itself.
///
/// # Errors
/// When the level is no filter, or journald was asked for and is not there.
pub(super) fn start(log: &Log, daemon: bool) -> Result<LogGuard> {
    let level = if daemon { log.level.as_str() } else { "warn" };
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("log.level '{}' is no level or filter", log.level))?;
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
        // Nobody takes it any more, or the disk is full: it has no other way out.
        _ => LogQueue::start(|line| std::io::stderr().write_all(line).is_ok()),
    };
    let queue = queue.context("the log cannot be started")?;
    let (guard, writer) = (LogGuard(queue.clone()), queue.clone());
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
    tracing_subscriber::registry().with(filter).with(layer).init();
    // A panic is a line of the log like any other, not loose text between them.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref().copied()).unwrap_or("no text");
        tracing::error!(place, "the agent broke: {text}; this is a bug, report it");
    }));
    Ok(guard)
}
