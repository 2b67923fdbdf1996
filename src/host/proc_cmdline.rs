//! Command lines of processes, from procfs, and the machine names in them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Upper bound on the length of a command line, in bytes: a process may present any part of its memory as its command
/// line (prctl(2), `PR_SET_MM_MAP`).
pub(super) const MOST_ARGUMENTS: u64 = 2 << 20;

/// Command line of the process with the folder `folder`, empty if unreadable; `None` if longer than [`MOST_ARGUMENTS`].
pub(super) fn command_line(folder: &Path) -> Option<Vec<u8>> {
    /// Initial capacity in bytes, enough for most virtual machines.
    const USUAL: usize = 16 * 1024;
    let mut bytes = Vec::with_capacity(USUAL);
    let read = File::open(folder.join("cmdline"))
        .and_then(|file| file.take(MOST_ARGUMENTS + 1).read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    (bytes.len() as u64 <= MOST_ARGUMENTS).then_some(bytes)
}

/// Splits `command_line` into its arguments.
pub(super) fn words(command_line: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    command_line.split(|byte| *byte == 0)
}

/// Printable form of `name`, shortened: a process can give itself any name.
pub(super) fn shown(name: &str) -> String {
    /// Maximum length in characters. libvirt permits longer names, but this much identifies a machine.
    const MOST: usize = 64;
    name.chars().filter(|c| !c.is_control()).take(MOST).collect()
}

/// Name of a virtual machine, from its option `-name`: `web-1`, or `guest=web-1,debug-threads=on` (qemu(1)).
pub(super) fn machine_name(command_line: &[u8]) -> Option<String> {
    let value = words(command_line).skip_while(|word| *word != b"-name").nth(1)?;
    let value = String::from_utf8_lossy(value);
    let first = value.split(',').next()?;
    let name = first.strip_prefix("guest=").unwrap_or(first);
    let shown = shown(name);
    (!shown.is_empty()).then_some(shown)
}
