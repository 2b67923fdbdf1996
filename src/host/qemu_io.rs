//! `qemu-io`, which reads a heartbeat volume by QEMU's driver for the storage: its command line, and the meaning of its
//! answers (qemu-io(1)).

use super::spawn::{Invocation, QueryEnd};
use crate::model::path::CleanPath;
use crate::model::storage::{CBD, HeartbeatVolume};

/// Name of the program.
pub const PROGRAM: &str = "qemu-io";
/// Beginning of the line that it prints for a read of 4 KiB that succeeded.
const READ: &str = "read 4096/4096 bytes at offset 0";

/// Command that reads the first 4 KiB of `volume` with `program`. `conf` is the configuration of the storage's client.
pub fn read(program: String, volume: &HeartbeatVolume, conf: &CleanPath) -> Invocation {
    let file = volume.file_name(conf);
    // Without `-r`, as kvmagent calls it: the driver is not public, and known to open volumes in this way alone. Nothing is
    // written.
    let args = ["-c", "read 0G 4k", "-f", CBD, &file].map(str::to_string).to_vec();
    // Its messages are part of an error.
    Invocation { program, args, env: vec![("LC_ALL".to_string(), "C".to_string())] }
}

/// Cause of a read that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFailure {
    /// This build of QEMU has no driver for the storage.
    NoDriver,
    TimedOut,
    Other,
}

/// Classifies the end of a read; `None` if it succeeded. The exit code alone does not tell: before QEMU 3.0 it was 0 also
/// where the read failed.
pub fn failure(end: &QueryEnd) -> Option<ReadFailure> {
    if end.timed_out {
        return Some(ReadFailure::TimedOut);
    }
    if end.code == Some(0) && end.output.lines().any(|line| line.starts_with(READ)) {
        return None;
    }
    let names_driver = end.output.to_ascii_lowercase().contains(&format!("driver '{CBD}'"));
    Some(if names_driver { ReadFailure::NoDriver } else { ReadFailure::Other })
}

/// Last lines of the output, in one line of at most 300 characters.
pub fn last_words(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let first = lines.len().saturating_sub(3);
    let words = lines[first..].join(" | ");
    if words.is_empty() {
        "it printed nothing".to_string()
    } else {
        words.chars().take(300).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(code: i32, output: &str) -> QueryEnd {
        QueryEnd { code: Some(code), output: output.to_string(), ..QueryEnd::default() }
    }

    #[test]
    fn command_is_the_one_that_controllers_know_without_a_shell() {
        let volume = "cbd:pool/lpool1/zbs_zstack_heartbeat".parse().unwrap();
        let conf = "/etc/zbs/client.conf".parse().unwrap();
        let command = read("/usr/bin/qemu-io".into(), &volume, &conf);
        assert_eq!(command.program, "/usr/bin/qemu-io");
        let file = "cbd:pool/lpool1/zbs_zstack_heartbeat_zbs_:/etc/zbs/client.conf";
        assert_eq!(command.args, ["-c", "read 0G 4k", "-f", "cbd", file]);
    }

    /// Texts after QEMU's qemu-io-cmds.c and block.c, and the exit code before its commit "qemu-io: Exit with error when a
    /// command failed" (3.0).
    #[test]
    fn only_a_read_of_all_bytes_is_a_success() {
        let good = "read 4096/4096 bytes at offset 0\n4 KiB, 1 ops; 00.00 sec (1.2 MiB/sec and 300.1 ops/sec)\n";
        assert_eq!(failure(&end(0, good)), None);
        assert_eq!(failure(&end(1, good)), Some(ReadFailure::Other));
        for (code, output) in [
            (1, "read failed: Input/output error\n"),
            (0, "read failed: Input/output error\n"),
            (0, ""),
            (
                1,
                "qemu-io: can't open device cbd:p/l/v_zbs_:/etc/zbs/client.conf: Connection timed out\n",
            ),
            (0, "qemu-io: can't open device read 4096/4096 bytes at offset 0: No such file\n"),
        ] {
            assert_eq!(failure(&end(code, output)), Some(ReadFailure::Other), "{output}");
        }
        for output in [
            "qemu-io: can't open device cbd:p/l/v_zbs_:/c: Unknown driver 'cbd'\n",
            "qemu-io: can't open device cbd:p/l/v_zbs_:/c: Driver 'cbd' is not whitelisted\n",
        ] {
            assert_eq!(failure(&end(1, output)), Some(ReadFailure::NoDriver), "{output}");
        }
        let hung = QueryEnd { output: good.into(), timed_out: true, ..QueryEnd::default() };
        assert_eq!(failure(&hung), Some(ReadFailure::TimedOut));
    }

    #[test]
    fn last_words_are_one_line_of_bounded_length() {
        assert_eq!(last_words("a\n\nb\n c \nd\n"), "b | c | d");
        assert_eq!(last_words(" \n"), "it printed nothing");
        assert_eq!(last_words(&"x".repeat(9000)).len(), 300);
    }
}
