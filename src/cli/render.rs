//! Output for people: tables on standard output, progress on a terminal's standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::Output;
use super::doctor::Checks;
use crate::api::v1::domains::DomainsView;
use crate::api::v1::reservations::MemoryBody;
use crate::model::code::Code;
use crate::model::deep::{DeepHealth, MemoryKind, ProvenHealth, ProvenIo};
use crate::model::node::{Exposure, NodeStatus};
use crate::model::prepare::{
    Outcome, PrepareReport, Progress, ReclaimReport, StepOutcome, StepReport, WorkEvent,
};
use crate::model::status::TargetReport;
use crate::model::target::TargetHealth;
use crate::model::volume::{Backing, VolumeStatus, VolumeView};

/// Progress line; nothing without a terminal.
pub(super) struct ProgressBars(Option<ProgressBar>);

impl ProgressBars {
    pub(super) fn new(output: Output, dry_run: bool) -> ProgressBars {
        if output == Output::Json || dry_run || !std::io::stderr().is_terminal() {
            return ProgressBars(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {elapsed:>4} {prefix} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        ProgressBars(Some(bar))
    }

    pub(super) fn show(&self, progress: &Progress) {
        let Some(bar) = &self.0 else { return };
        match &progress.event {
            WorkEvent::Begun { step, subject, .. } => {
                bar.set_prefix(format!("{step} {subject}"));
                bar.set_message("");
            }
            WorkEvent::Line { text, .. } => bar.set_message(text.clone()),
            WorkEvent::Ended(step) => {
                let mark = if step.outcome == StepOutcome::Done { '✓' } else { '✗' };
                let StepReport { step, subject, after, duration_ms, .. } = step;
                bar.println(format!("{mark} {step} {subject}: {after} ({duration_ms:.0} ms)"));
            }
        }
    }

    pub(super) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Prints to standard output; a closed reader (`| head`) is no failure.
pub(super) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    table
}

fn steps(steps: &[StepReport]) -> String {
    let mut table = table(&["STEP", "ON", "BEFORE", "AFTER", "OUTCOME", "MS"]);
    for step in steps {
        let outcome = step.outcome.word();
        let ms = match step.outcome {
            StepOutcome::Planned => String::new(),
            _ => format!("{:.1}", step.duration_ms),
        };
        let cells = [&step.step, &step.subject, &step.before, &step.after, outcome, ms.as_str()];
        table.add_row(cells.to_vec());
    }
    table.to_string()
}

pub(super) fn print_prepare(report: &PrepareReport, output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(report);
    }
    let mut text = String::new();
    if !report.steps.is_empty() {
        text += &format!("{}\n\n", steps(&report.steps));
    }
    for finding in &report.findings {
        text += &format!("note ({}): {}\n", finding.code, finding.text);
    }
    for error in &report.errors {
        text += &format!("error ({}): {}\n", error.code, error.text);
    }
    let drifts = report.findings.iter().any(|finding| finding.code == Code::TargetDrift);
    text += &match report.outcome {
        Outcome::Holds if drifts => "it runs, with other settings than wanted".to_string(),
        Outcome::Holds => "everything holds already".to_string(),
        Outcome::Changed => format!("everything holds now ({:.0} ms)", report.duration_ms),
        Outcome::WouldChange => "this would be done; nothing was changed".to_string(),
        Outcome::Failed => "it does not hold: see the error above".to_string(),
    };
    if !report.mounts.is_empty() {
        text += &format!("; hugetlbfs: {}", report.mounts.join(", "));
    }
    if let Some(version) = &report.engine_version {
        text += &format!("; engine: {version}");
    }
    print(&text)
}

pub(super) fn print_health(health: &TargetHealth, output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(health);
    }
    print(&health_line(health)?)
}

fn health_line(health: &TargetHealth) -> Result<String> {
    let TargetHealth { name, state, reason, since, age_ms, pid, .. } = health;
    let state = serde_json::to_value(state)?;
    let mut text = format!("{name} is {} since {since}: {reason}", state.as_str().unwrap_or("?"));
    if let Some(pid) = pid {
        text += &format!("; pid {pid}");
    }
    if let Some(age) = age_ms {
        text += &format!("; its last answer is {age} ms old");
    }
    Ok(text)
}

pub(super) fn print_proven(health: &ProvenHealth, output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(health);
    }
    print(&format!("{}\n{}", health_line(&health.health)?, io_line(&health.deep)))
}

/// Result of a deep probe, in one line.
pub(super) fn io_line(deep: &DeepHealth) -> String {
    let mut text = match &deep.io {
        Some(ProvenIo { bytes, write_ms, read_ms, memory }) => {
            // Bytes in a microsecond are megabytes in a second.
            let rate = |ms: f64| *bytes as f64 / 1000.0 / ms.max(0.001);
            let memory = match memory {
                MemoryKind::Hugepages => "hugepages",
                MemoryKind::Ordinary => "ordinary memory, for no hugepage is free",
            };
            format!(
                "I/O is proven: {bytes} bytes written in {write_ms:.1} ms ({:.0} MB/s) and read back in \
                 {read_ms:.1} ms ({:.0} MB/s), through {memory}; the probe took {:.0} ms",
                rate(*write_ms),
                rate(*read_ms),
                deep.duration_ms
            )
        }
        None => "I/O is not proven".to_string(),
    };
    if let Some(error) = &deep.error {
        text += &format!("\nerror ({}): {}", error.code, error.text);
    }
    text
}

/// Prints volumes, one a line, and the reasons of failed ones below.
pub(super) fn print_volumes(volumes: &[VolumeView], output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(&serde_json::json!({"volumes": volumes}));
    }
    if volumes.is_empty() {
        return print("no volume is wanted");
    }
    let mut rows = table(&["VOLUME", "STATE", "SESSIONS", "BACKING", "SOCKET", "SINCE"]);
    let mut reasons = String::new();
    for VolumeView { spec, status, .. } in volumes {
        let (name, state) = (spec.name.as_str(), status.state.to_string());
        let sessions = match status.disconnected {
            true => format!("{} (one was cut off)", status.sessions),
            false => format!("{}{}", status.sessions, reconnects(status)),
        };
        let (backing, socket) = (backing(&spec.backing), &status.socket_path);
        rows.add_row([name, &state, &sessions, &backing, socket, &status.since]);
        if !status.reason.is_empty() {
            reasons += &format!("{name} is {state}: {}\n", status.reason);
        }
    }
    print(&format!("{rows}\n\n{reasons}"))
}

/// Prints checks, one a line, and the commands that help below.
pub(super) fn print_checks(checks: &Checks, output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(checks);
    }
    let mut text = String::new();
    for check in &checks.checks {
        let code = check.code.map_or(String::new(), |code| format!("({code}) "));
        text += &format!("{:<5}{:<9}{code}{}\n", check.state.to_string(), check.check, check.text);
        if let Some(fix) = &check.fix {
            text += &format!("{:14}see: {fix}\n", "");
        }
    }
    print(&text)
}

/// Prints virtual machines, one a line, and their findings below.
pub(super) fn print_domains(view: &DomainsView, output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(view);
    }
    if view.domains.is_empty() {
        return print(
            "libvirt has no virtual machine with a vhost-user disk or hugepages on this node",
        );
    }
    let mut rows = table(&["DOMAIN", "PID", "HUGEPAGES", "VHOST-USER DISKS", "FINDINGS"]);
    let mut findings = String::new();
    for domain in &view.domains {
        let pid = domain.pid.map_or("-".to_string(), |pid| pid.to_string());
        let memory: Vec<String> = domain.memory.iter().map(memory).collect();
        let disks: Vec<&str> = domain.disks.iter().map(|it| it.socket_path.as_str()).collect();
        let found = domain.findings.len().to_string();
        rows.add_row([&domain.name, &pid, &memory.join("\n"), &disks.join("\n"), &found]);
        for finding in &domain.findings {
            findings += &format!("note ({}): {}\n", finding.code, finding.text);
        }
    }
    print(&format!("{rows}\n\n{findings}"))
}

/// Pages of a virtual machine, such as `512 x 2M on 0,1`.
fn memory(part: &MemoryBody) -> String {
    let size = match (part.size_mib, part.size_kib) {
        (Some(mib), _) => format!("{mib} MiB"),
        (None, kib) => format!("{} KiB", kib.unwrap_or(0)),
    };
    let nodes = part.nodes.iter().flatten().map(u32::to_string).collect::<Vec<_>>().join(",");
    let on = if nodes.is_empty() { String::new() } else { format!(" on node {nodes}") };
    format!("{} of {size}{on}", part.pages)
}

/// Reconnect interval of a volume's guest, if known.
fn reconnects(status: &VolumeStatus) -> String {
    let known = status.reconnect_seconds;
    known.map_or(String::new(), |it| match it.pause() {
        Some(_) => format!(" (reconnects every {it})"),
        None => " (reconnects never)".to_string(),
    })
}

/// Storage of a volume, in a few words.
fn backing(backing: &Backing) -> String {
    match backing {
        Backing::Zbs { path } => format!("zbs {path}"),
        Backing::Aio { path, .. } => format!("aio {}", path.as_str()),
        Backing::Malloc { size_mib, .. } => format!("malloc {size_mib} MiB"),
        Backing::Raw { method, .. } => format!("raw {method}"),
    }
}

/// Prints one volume with its details.
pub(super) fn print_volume(volume: &VolumeView, output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(volume);
    }
    let VolumeView { target, spec, status } = volume;
    let access = if spec.read_only { "read-only" } else { "read and write" };
    let mut text = format!(
        "volume    {} in {target}\nstate     {} since {}\nsocket    {}\nsessions  {}{}\nbdev      {}, {access}\n\
         backing   {}\n",
        spec.name,
        status.state,
        status.since,
        status.socket_path,
        status.sessions,
        reconnects(status),
        spec.bdev,
        backing(&spec.backing)
    );
    if let Some(mask) = &spec.cpumask {
        text += &format!("cpumask   {mask}\n");
    }
    if !status.reason.is_empty() {
        text += &format!("reason    {}\n", status.reason);
    }
    if status.disconnected {
        text += "note      a virtual machine was connected when its target died, and has not come back\n";
    }
    for finding in &status.findings {
        text += &format!("note      ({}) {}\n", finding.code, finding.text);
    }
    print(&text)
}

pub(super) fn print_reclaim(report: &ReclaimReport, output: Output) -> Result<()> {
    if output == Output::Json {
        return print_json(report);
    }
    let mut text = match report.steps.is_empty() {
        true => "nothing to give back\n".to_string(),
        false => format!("{}\n\n", steps(&report.steps)),
    };
    for pages in &report.remaining {
        text += &format!(
            "{} pages of {} on {} remain the agent's\n",
            pages.pages, pages.size, pages.node
        );
    }
    for error in &report.errors {
        text += &format!("error ({}): {}\n", error.code, error.text);
    }
    print(&text)
}

fn target_table(targets: &[TargetReport]) -> Table {
    let mut rows = table(&["TARGET", "STATE", "SINCE", "VOLUMES", "REASON"]);
    for target in targets {
        let volumes = format!("{}/{}", target.volumes.serving, target.volumes.wanted);
        let (name, state) = (target.name.to_string(), target.state.to_string());
        rows.add_row(vec![name, state, target.since.clone(), volumes, target.reason.clone()]);
    }
    rows
}

/// Effect of a target's next exit on its guests, if known.
fn guests(target: &TargetReport) -> String {
    let (name, volumes) = (&target.name, &target.volumes);
    let mut text = String::new();
    if let Some(pause) = volumes.expected_pause_seconds {
        text += &format!("guests of {name} look for it every {pause} at the longest\n");
    }
    if volumes.not_reconnecting > 0 {
        text += &format!(
            "{} guests of {name} do not reconnect: see `vhost-agent volume list --target {name}`\n",
            volumes.not_reconnecting
        );
    }
    text
}

/// Security warnings for the operator, a line each.
pub(super) fn warnings(access: &Exposure) -> String {
    access.warnings.iter().map(|warning| format!("warning  {warning}\n")).collect()
}

/// Prints the node, and its targets if an agent runs, which alone knows their status.
pub(super) fn print_node(
    status: &NodeStatus,
    targets: Option<&[TargetReport]>,
    output: Output,
) -> Result<()> {
    if output == Output::Json {
        return print_json(status);
    }
    let mib = |kib: u64| kib / 1024;
    let mut text = format!(
        "host     {} (kernel {}, boot {})\nagent    {} ({})\nmemory   {} MiB available of {} MiB\ncpus     {} online\n",
        status.hostname,
        status.kernel,
        status.boot_id,
        status.agent_version,
        if targets.is_some() { "running" } else { "not running" },
        mib(status.memory.available_kib),
        mib(status.memory.total_kib),
        status.cpus.len(),
    );
    if let Some(access) = &status.access {
        text += &format!("access   {}\n{}", access.text(), warnings(access));
    }
    let engine = &status.engine;
    text += &format!("engine   {}", engine.state);
    if let (Some(version), Some(api)) = (&engine.version, &engine.api_version) {
        text += &format!(" {version} (API {api})");
    }
    if let Some(reason) = &engine.reason {
        text += &format!(": {reason}");
    }
    text += "\n\n";
    let mut pools = table(&["NODE", "PAGES OF", "TOTAL", "FREE", "KEPT", "SURPLUS", "AGENT'S"]);
    for pool in &status.pools {
        let (key, counts) = (pool.pool.key, pool.pool);
        let row = [
            key.node.to_string(),
            key.size.to_string(),
            counts.total.to_string(),
            counts.free.to_string(),
            pool.kept.to_string(),
            counts.surplus.to_string(),
            pool.grown.to_string(),
        ];
        pools.add_row(row.to_vec());
    }
    text += &format!("{pools}\n");
    for total in status.totals.iter().filter(|total| total.reserved > 0) {
        text += &format!("{} of the free {} pages are promised\n", total.reserved, total.size);
    }
    for mount in &status.mounts {
        text += &format!("hugetlbfs {} (pagesize={})\n", mount.path, mount.page_size);
    }
    if let Some(targets) = targets.filter(|targets| !targets.is_empty()) {
        text += &format!("\n{}\n", target_table(targets));
        targets.iter().for_each(|target| text += &guests(target));
    }
    for finding in &status.findings {
        text += &format!("note ({}): {}\n", finding.code, finding.text);
    }
    for error in &status.errors {
        text += &format!("error ({}): {}\n", error.code, error.text);
    }
    print(&text)
}
