//! Reading and writing the kernel's files. A write never creates a file: a missing kernel setting is an error.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::HostError;

/// Reads the text of a small file without trailing white space, in one read(2) where 4 KiB suffice: the kernel
/// generates such a text anew for each read. Bytes that are not UTF-8 are replaced, because a process may give itself
/// any name. Not for a table, of which one read(2) returns the first entries only: see [`read_table_text`].
///
/// # Errors
/// [`HostError::Read`] with the path.
pub fn read_text(path: &Path) -> Result<String, HostError> {
    let read = || {
        let mut file = fs::File::open(path)?;
        let mut page = [0; 4096];
        let there = file.read(&mut page)?;
        let mut bytes = page.get(..there).unwrap_or_default().to_vec();
        if there == page.len() {
            file.read_to_end(&mut bytes)?;
        }
        let mut text = text(bytes);
        text.truncate(text.trim_end().len());
        Ok(text)
    };
    read().map_err(|source| HostError::Read { path: path.to_owned(), source })
}

/// Identity of the file at the end of a path: of a device its number, of any other file its file system and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileIdentity(u64, u64);

/// Identity of the file to which `path` leads, links followed; `None` if no file is there.
pub fn identity(path: &Path) -> Option<FileIdentity> {
    let meta = fs::metadata(path).ok()?;
    let kind = meta.file_type();
    Some(match kind.is_block_device() || kind.is_char_device() {
        true => FileIdentity(u64::MAX, meta.rdev()),
        false => FileIdentity(meta.dev(), meta.ino()),
    })
}

/// Reads a file to its end whose size the kernel does not report in advance, such as a mount table.
///
/// # Errors
/// [`HostError::Read`] with the path.
pub fn read_table(path: &Path) -> Result<Vec<u8>, HostError> {
    /// Initial capacity in bytes, enough for most nodes. A buffer that grows from nothing takes a dozen reads.
    const USUAL: usize = 32 * 1024;
    let mut bytes = Vec::with_capacity(USUAL);
    let read = |bytes: &mut Vec<u8>| fs::File::open(path)?.read_to_end(bytes);
    match read(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(source) => Err(HostError::Read { path: path.to_owned(), source }),
    }
}

/// Reads a table, as [`read_table`] does, and replaces bytes that are not UTF-8.
///
/// # Errors
/// [`HostError::Read`] with the path.
pub fn read_table_text(path: &Path) -> Result<String, HostError> {
    Ok(text(read_table(path)?))
}

/// Text of `bytes`; what is not UTF-8 is replaced.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Small file of the kernel that is read often and stays open: opening takes five times as long as reading. The kernel
/// generates the text anew for each read from the beginning.
#[derive(Debug)]
pub struct HeldFile {
    path: PathBuf,
    file: OnceLock<fs::File>,
    /// File at `path`, open for writing.
    knob: OnceLock<fs::File>,
}

impl HeldFile {
    /// File at `path`, opened when it is first read.
    pub fn new(path: PathBuf) -> HeldFile {
        HeldFile { path, file: OnceLock::new(), knob: OnceLock::new() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file's current text, and passes `path` and the text without trailing white space to `parse`.
    ///
    /// # Errors
    /// [`HostError::Read`] with the path, or the error of `parse`.
    pub fn read<T>(
        &self,
        parse: impl FnOnce(&Path, &str) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        let mut page = [0; 4096];
        let read = self.open().and_then(|file| file.read_at(&mut page, 0));
        let text = match read {
            Ok(there) if there < page.len() => page.get(..there),
            _ => None,
        };
        match text.map(std::str::from_utf8) {
            Some(Ok(text)) => parse(&self.path, text.trim_end()),
            // The text is longer than the buffer, or the open file is dead and its name belongs to another one: memory
            // of a NUMA node may be unplugged and plugged again.
            _ => parse(&self.path, &read_text(&self.path)?),
        }
    }

    /// Reads the file's content as a number.
    ///
    /// # Errors
    /// [`HostError::Read`], or [`HostError::Parse`] when it is no number.
    pub fn number(&self) -> Result<u64, HostError> {
        self.read(parse_number)
    }

    /// Writes `value` to the file, which stays open; else like [`write_value`].
    ///
    /// # Errors
    /// As [`write_value`].
    pub fn write(&self, value: &str) -> Result<(), HostError> {
        let write = || {
            let open = || OpenOptions::new().write(true).create(false).open(&self.path);
            let knob = held(&self.knob, open)?;
            knob.write_at(value.as_bytes(), 0)
        };
        match write() {
            Ok(there) if there == value.len() => Ok(()),
            // The open file is dead and its name belongs to another one; nothing was written.
            Err(e) if e.raw_os_error() == Some(libc_codes::ENODEV) => {
                write_value(&self.path, value)
            }
            Ok(_) => Err(write_failed(&self.path, value, io::ErrorKind::WriteZero.into())),
            Err(source) => Err(write_failed(&self.path, value, source)),
        }
    }

    fn open(&self) -> io::Result<&fs::File> {
        held(&self.file, || fs::File::open(&self.path))
    }
}

/// Returns the open file in `file`, and opens it first if there is none.
fn held(
    file: &OnceLock<fs::File>,
    open: impl FnOnce() -> io::Result<fs::File>,
) -> io::Result<&fs::File> {
    match file.get() {
        Some(file) => Ok(file),
        None => {
            let opened = open()?;
            Ok(file.get_or_init(|| opened))
        }
    }
}

/// Reads a file that holds one number.
///
/// # Errors
/// [`HostError::Read`], or [`HostError::Parse`] when it is no number.
pub fn read_number(path: &Path) -> Result<u64, HostError> {
    parse_number(path, &read_text(path)?)
}

fn parse_number(path: &Path, text: &str) -> Result<u64, HostError> {
    text.trim().parse().map_err(|_| HostError::Parse {
        path: path.to_owned(),
        value: text.chars().take(80).collect(),
        expected: "a number",
    })
}

/// Writes `value` to the existing file at `path`, in one write(2), as sysfs requires.
///
/// # Errors
/// [`HostError::Write`] with path and value, and with a hint for the operator where the cause is known.
pub fn write_value(path: &Path, value: &str) -> Result<(), HostError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(false).open(path)?;
        file.write_all(value.as_bytes())
    };
    write().map_err(|source| write_failed(path, value, source))
}

fn write_failed(path: &Path, value: &str, source: io::Error) -> HostError {
    let hint = match source.raw_os_error() {
        Some(libc_codes::EROFS) => {
            " (it is mounted read-only: remount it, or run the agent outside the container)"
        }
        Some(libc_codes::EACCES | libc_codes::EPERM) => " (run the agent as root)",
        _ => "",
    };
    HostError::Write { path: path.to_owned(), value: value.to_string(), hint, source }
}

/// Values of errno by name.
mod libc_codes {
    use nix::errno::Errno;

    pub(super) const EROFS: i32 = Errno::EROFS as i32;
    pub(super) const ENODEV: i32 = Errno::ENODEV as i32;
    pub(super) const EACCES: i32 = Errno::EACCES as i32;
    pub(super) const EPERM: i32 = Errno::EPERM as i32;
}

/// Lists the entries of a folder; an absent folder has none.
///
/// # Errors
/// [`HostError::Read`] for anything but an absent folder.
pub fn entries(path: &Path) -> Result<Vec<(String, PathBuf)>, HostError> {
    let read = |source| HostError::Read { path: path.to_owned(), source };
    let listing = match fs::read_dir(path) {
        Ok(listing) => listing,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(read(e)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(read)?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Parses the kernel's list format, such as `0-3,7` (Documentation/admin-guide/cputopology.rst).
///
/// # Errors
/// The part of the list that could not be parsed.
pub fn parse_list(text: &str) -> Result<Vec<u32>, String> {
    // Upper bound on the CPU numbers and their count, more than any kernel supports; larger input is refused.
    const MOST: u32 = 65_536;
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let number = |s: &str| s.trim().parse::<u32>().ok().filter(|n| *n < MOST);
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            (Some(first), Some(last))
                if first <= last && all.len() + (last - first) as usize <= MOST as usize =>
            {
                all.extend(first..=last);
            }
            _ => return Err(format!("'{part}' is not a number or a range")),
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Reads a file in the kernel's list format.
///
/// # Errors
/// [`HostError::Read`] or [`HostError::Parse`].
pub fn read_list(path: &Path) -> Result<Vec<u32>, HostError> {
    let text = read_text(path)?;
    parse_list(&text).map_err(|_| HostError::Parse {
        path: path.to_owned(),
        value: text.chars().take(80).collect(),
        expected: "a list of numbers such as 0-3,7",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-2,7\n").unwrap(), [0, 1, 2, 7]);
        assert_eq!(parse_list("").unwrap(), [] as [u32; 0]);
        assert_eq!(parse_list("5,1,5").unwrap(), [1, 5]);
    }

    #[test]
    fn what_is_no_list_is_refused_without_harm() {
        let again = vec!["0-65535"; 10_000].join(",");
        for text in ["a", "3-1", "-", "0-4294967295", "1-2-3", "-1", &again] {
            assert!(parse_list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("comm");
        for (bytes, text) in [(b"kvm\n".as_slice(), "kvm"), (b"a\xffb \n".as_slice(), "a\u{fffd}b")]
        {
            fs::write(&path, bytes).unwrap();
            assert_eq!(read_text(&path).unwrap(), text);
            let held = HeldFile::new(path.clone());
            assert_eq!(held.read(|_, read| Ok(read.to_string())).unwrap(), text);
        }
        assert_eq!(read_table_text(&path).unwrap(), "a\u{fffd}b \n");
    }

    #[test]
    fn a_knob_that_is_not_there_is_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nr_hugepages");
        assert!(matches!(write_value(&path, "1"), Err(HostError::Write { .. })));
        assert!(!path.exists());
    }
}
