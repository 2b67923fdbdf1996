//! Reading and writing the kernel's files. Writes never create: a knob that is not there is an error.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::HostError;

/// The trimmed text of a file, which is small: the kernel gives such a file whole in one read(2).
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
        let mut text = String::from_utf8(bytes).map_err(io::Error::other)?;
        text.truncate(text.trim_end().len());
        Ok(text)
    };
    read().map_err(|source| HostError::Read { path: path.to_owned(), source })
}

/// What a path leads to: a file by its file system and inode, a device by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity(u64, u64);

/// What `path` leads to; `None` where nothing is there.
pub fn identity(path: &Path) -> Option<Identity> {
    let meta = fs::metadata(path).ok()?;
    let kind = meta.file_type();
    Some(match kind.is_block_device() || kind.is_char_device() {
        true => Identity(u64::MAX, meta.rdev()),
        false => Identity(meta.dev(), meta.ino()),
    })
}

/// The bytes of a file whose size the kernel does not tell before it is read, such as a mount table.
///
/// # Errors
/// [`HostError::Read`] with the path.
pub fn read_table(path: &Path) -> Result<Vec<u8>, HostError> {
    /// Enough for most nodes at once; growing from nothing takes a dozen reads.
    const USUAL: usize = 32 * 1024;
    let mut bytes = Vec::with_capacity(USUAL);
    let read = |bytes: &mut Vec<u8>| fs::File::open(path)?.read_to_end(bytes);
    match read(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(source) => Err(HostError::Read { path: path.to_owned(), source }),
    }
}

/// A small file of the kernel's that is looked at often. It is opened once: that takes five times as long
/// as reading it, and the kernel makes the text anew whenever it is read from its beginning.
#[derive(Debug)]
pub struct HeldFile {
    path: PathBuf,
    file: OnceLock<fs::File>,
    /// The same, open for writing.
    knob: OnceLock<fs::File>,
}

impl HeldFile {
    /// The file at `path`, which is opened when it is first read.
    pub fn new(path: PathBuf) -> HeldFile {
        HeldFile { path, file: OnceLock::new(), knob: OnceLock::new() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `parse` makes of its path and its trimmed text, as it is now.
    ///
    /// # Errors
    /// [`HostError::Read`] with the path, or what `parse` says.
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
            // Longer, or another file under its name: the memory of a node may be unplugged and plugged
            // again.
            _ => parse(&self.path, &read_text(&self.path)?),
        }
    }

    /// The number that it holds now.
    ///
    /// # Errors
    /// [`HostError::Read`], or [`HostError::Parse`] when it is no number.
    pub fn number(&self) -> Result<u64, HostError> {
        self.read(parse_number)
    }

    /// Writes one value as [`write_value`] does.
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
            // Another file is under its name, and this one was not written to.
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

/// The file that is held, opened when it is not yet.
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

/// The number that a file holds.
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

/// Writes one value to an existing file in one write(2), as sysfs wants it.
///
/// # Errors
/// [`HostError::Write`] with path, value, and a hint where the cause is known.
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

/// errno values by their names.
mod libc_codes {
    use nix::errno::Errno;

    pub(super) const EROFS: i32 = Errno::EROFS as i32;
    pub(super) const ENODEV: i32 = Errno::ENODEV as i32;
    pub(super) const EACCES: i32 = Errno::EACCES as i32;
    pub(super) const EPERM: i32 = Errno::EPERM as i32;
}

/// The entries of a folder; an absent folder has none.
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
/// A text that names the part that is none.
pub fn parse_list(text: &str) -> Result<Vec<u32>, String> {
    // The kernel's own lists are short; what claims more CPUs than any kernel has is garbage.
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

/// The numbers of a file in the kernel's list format.
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
    fn a_knob_that_is_not_there_is_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nr_hugepages");
        assert!(matches!(write_value(&path, "1"), Err(HostError::Write { .. })));
        assert!(!path.exists());
    }
}
