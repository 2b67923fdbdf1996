//! Captures of a node's `/proc` and `/sys`, unpacked to folders and files.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Writes the files of a capture. Its lines are those that `grep -r '' /proc /sys` prints, a path, a colon and a line of
/// the file; comments begin with `#`. With a range of numbers in the path, `{0-3}`, a line stands for one of each number;
/// ranges in the text are counted along, from their begin again when they end.
pub(crate) fn unpack(capture: &Path, to: &Path) {
    let bytes = fs::read(capture).unwrap();
    for line in bytes.split(|byte| *byte == b'\n') {
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if !line.contains(&b'{') {
            write(line, to);
            continue;
        }
        let line = std::str::from_utf8(line).unwrap();
        let (_, (first, last), _) = range(line).unwrap();
        (0..=last - first).for_each(|count| write(counted(line, count).as_bytes(), to));
    }
}

/// The line for one of the numbers.
fn counted(line: &str, count: u32) -> String {
    match range(line) {
        None => line.to_string(),
        Some((before, (first, last), behind)) => {
            let number = first + count % (last - first + 1);
            format!("{before}{number}{}", counted(behind, count))
        }
    }
}

/// The first range of numbers in a text, with what is before and behind it.
fn range(text: &str) -> Option<(&str, (u32, u32), &str)> {
    let (before, rest) = text.split_once('{')?;
    let (range, behind) = rest.split_once('}')?;
    let (first, last) = range.split_once('-')?;
    Some((before, (first.parse().ok()?, last.parse().ok()?), behind))
}

fn write(line: &[u8], to: &Path) {
    let colon = line.iter().position(|byte| *byte == b':').unwrap();
    let path = std::str::from_utf8(&line[..colon]).unwrap();
    let path = to.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    file.write_all(&[&line[colon + 1..], b"\n"].concat()).unwrap();
}
