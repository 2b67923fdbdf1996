//! The kernel's mount table (proc_pid_mountinfo(5)), read as bytes: a path may be in any encoding, and one odd line
//! hides no other.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::facts::init;
use super::files::read_table;
use super::{HostError, Root};
use crate::model::engine::Init;
use crate::model::units::PageSize;

/// Line of the mount table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    /// Mount point, without escapes.
    pub(super) at: PathBuf,
    /// Options of this mount.
    options: &'a [u8],
    /// Options of its file system. Kernels before 4.14 show a hugetlbfs's as they were given to mount(2), or none.
    super_options: &'a [u8],
}

/// Reads the mount table: where systemd is PID 1 that of PID 1, because more is read-only in the agent's unit than on
/// the host.
///
/// # Errors
/// When the table cannot be read.
pub(super) fn read(root: &Root) -> Result<Vec<u8>, HostError> {
    if init(root) == Init::Systemd
        && let Ok(table) = read_table(&root.path("/proc/1/mountinfo"))
    {
        return Ok(table);
    }
    read_table(&root.path("/proc/self/mountinfo"))
}

/// Parses the lines of `table` with file systems of the kind `kind`, of all kinds if that is `None`. Lines that do not
/// parse are skipped.
pub(super) fn mounts<'a>(table: &'a [u8], kind: Option<&str>) -> impl Iterator<Item = Mount<'a>> {
    table.split(|byte| *byte == b'\n').filter_map(move |line| Mount::parse(line, kind))
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8], kind: Option<&str>) -> Option<Mount<'a>> {
        let mut fields = line.split(|byte| *byte == b' ');
        let (at, options) = (fields.nth(4)?, fields.next()?);
        // Any number of optional fields comes before the dash.
        fields.find(|field| *field == b"-")?;
        fields.next().filter(|it| kind.is_none_or(|kind| *it == kind.as_bytes()))?;
        let super_options = fields.nth(1)?;
        Some(Mount { at: unescaped(at).into(), options, super_options })
    }

    /// `true` if both the mount and its file system have the option `name`, which has no value.
    pub(super) fn has(&self, name: &str) -> bool {
        let has = |options| words(options).any(|option| option == name.as_bytes());
        has(self.options) && has(self.super_options)
    }

    /// Value of the file system's option `name`; `None` if it has no such option.
    pub(super) fn value(&self, name: &str) -> Option<&'a [u8]> {
        let value =
            |option: &'a [u8]| option.strip_prefix(name.as_bytes())?.strip_prefix(b"=".as_slice());
        words(self.super_options).find_map(value)
    }
}

fn words(options: &[u8]) -> impl Iterator<Item = &[u8]> {
    options.split(|byte| *byte == b',')
}

/// `field` without escapes. In a table, the kernel writes blanks, tabs, line ends and backslashes of a path as `\040`,
/// `\011`, `\012` and `\134` (mangle in fs/proc_namespace.c).
fn unescaped(field: &[u8]) -> OsString {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |code, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        code.checked_mul(8)?.checked_add(digit)
    })
}

/// Page size in the option `pagesize=` of a hugetlbfs, by the rules of the kernel's memparse: bytes in decimal, octal
/// (`0…`) or hexadecimal (`0x…`), or a number with one of the letters K, M, G and T, and then anything (`2MB`).
pub(super) fn page_size(option: &[u8]) -> Option<PageSize> {
    let text = std::str::from_utf8(option).ok()?;
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = match (hex, text.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(digits)) => (digits, 8),
        (None, None) => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (digits, unit) = digits.split_at(end);
    let shift = match unit.bytes().next().map(|unit| unit.to_ascii_uppercase()) {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(b'T') => 40,
        _ => 0,
    };
    let bytes = u64::from_str_radix(digits, radix).ok()?.checked_mul(1_u64 << shift)?;
    if bytes % 1024 == 0 { PageSize::from_kib(bytes / 1024) } else { None }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn lines_are_read_with_any_path_and_any_number_of_optional_fields() {
        // proc_pid_mountinfo(5) has the fields; the escapes are those of mangle() in fs/proc_namespace.c.
        let table = b"37 24 0:32 / /mnt/a\\040b\\011c\\134d rw,relatime shared:19 master:2 - hugetlbfs none rw,pagesize=2M\n\
            38 24 0:33 / /mnt/\xff rw - hugetlbfs  rw\n\
            39 24 0:34 / /mnt/\\777\\04 ro,nosuid - hugetlbfs a\\040b rw,size=1024\n\
            40 24 0:35 / /mnt/cut rw - hugetlbfs\n\
            garbage\n\
            41 24 0:36 / /mnt/x rw - ext4 /dev/vda1 rw\n";
        let found: Vec<_> = mounts(table, Some("hugetlbfs")).collect();
        let paths: [&[u8]; 3] = [b"/mnt/a b\tc\\d", b"/mnt/\xff", b"/mnt/\\777\\04"];
        let at: Vec<&OsStr> = found.iter().map(|mount| mount.at.as_os_str()).collect();
        assert_eq!(at, paths.map(OsStr::from_bytes));
        let value = |at: usize, name| found[at].value(name).map(<[u8]>::to_vec);
        assert_eq!(value(0, "pagesize"), Some(b"2M".to_vec()));
        assert_eq!((value(1, "pagesize"), value(2, "size")), (None, Some(b"1024".to_vec())));
        assert_eq!([0, 1, 2].map(|at: usize| found[at].has("rw")), [true, true, false]);
        assert_eq!(mounts(table, None).count(), 4);
    }

    #[test]
    fn page_sizes_of_mounts_are_read_as_the_kernel_reads_them() {
        // lib/cmdline.c, memparse; before Linux 4.14 the option is shown as it was given.
        for (option, kib) in [
            ("2M", Some(2048)),
            ("1024M", Some(1 << 20)),
            ("2097152", Some(2048)),
            ("0x200000", Some(2048)),
            ("010000000", Some(2048)),
            ("2MB", Some(2048)),
            ("2m", Some(2048)),
            ("1g", Some(1 << 20)),
            ("64K", Some(64)),
            ("524288k", Some(512 << 10)),
            ("0", None),
            ("3M", None),
            ("M", None),
            ("", None),
            ("99999999999999999999", None),
            ("-2M", None),
        ] {
            let read = page_size(option.as_bytes()).map(PageSize::kib);
            assert_eq!(read, kib, "{option}");
        }
        assert_eq!(page_size(b"\xff"), None);
    }
}
