//! Quantities whose unit must not be mistaken: page sizes, NUMA nodes, and the text form of durations and modes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Size of one hugepage, kept in KiB because that is how the kernel names its pools (`hugepages-2048kB`,
/// Documentation/admin-guide/mm/hugetlbpage.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u64);

impl PageSize {
    /// 2 MiB, what vhost targets and guests use on x86-64.
    pub const MIB_2: PageSize = PageSize(2 * 1024);
    pub const GIB_1: PageSize = PageSize(1024 * 1024);

    /// Page size of `kib` KiB; `None` for zero, for what is no power of two, and for more than can be counted in bytes.
    pub fn from_kib(kib: u64) -> Option<PageSize> {
        (kib.is_power_of_two() && kib.checked_mul(1024).is_some()).then_some(PageSize(kib))
    }

    /// Page size of `mib` MiB; `None` in the cases of [`PageSize::from_kib`].
    pub fn from_mib(mib: u64) -> Option<PageSize> {
        mib.checked_mul(1024).and_then(PageSize::from_kib)
    }

    /// KiB in one page.
    pub const fn kib(self) -> u64 {
        self.0
    }

    /// Bytes in one page.
    pub fn bytes(self) -> u64 {
        self.0 * 1024
    }

    /// KiB that `pages` pages hold, saturating: an absurd count stays absurd instead of wrapping.
    pub fn kib_of(self, pages: u64) -> u64 {
        self.0.saturating_mul(pages)
    }
}

impl fmt::Display for PageSize {
    /// Writes the size as hugetlbfs writes its `pagesize=` option: `64K`, `2M`, `1024M`, and `1G` for the whole GiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            kib if kib % (1024 * 1024) == 0 => write!(f, "{}G", kib / (1024 * 1024)),
            kib if kib % 1024 == 0 => write!(f, "{}M", kib / 1024),
            kib => write!(f, "{kib}K"),
        }
    }
}

impl FromStr for PageSize {
    type Err = String;

    /// Reads `2M`, `1G`, `1024M`, `64K`, with an optional `iB` behind the letter.
    fn from_str(text: &str) -> Result<PageSize, String> {
        let bad = || format!("'{text}' is not a page size; write it like 2M or 1G");
        let short = text.trim().trim_end_matches("iB").trim_end_matches('B');
        let (digits, factor) = match short.char_indices().last() {
            Some((at, 'K' | 'k')) => (&short[..at], 1),
            Some((at, 'M' | 'm')) => (&short[..at], 1024),
            Some((at, 'G' | 'g')) => (&short[..at], 1024 * 1024),
            _ => return Err(bad()),
        };
        let count: u64 = digits.parse().map_err(|_| bad())?;
        count.checked_mul(factor).and_then(PageSize::from_kib).ok_or_else(bad)
    }
}

impl Serialize for PageSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PageSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<PageSize, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// NUMA node by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NumaNode(pub u32);

impl fmt::Display for NumaNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.0)
    }
}

/// Durations as text: `30s`, `15m`, `1h 30m`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(span: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&humantime::format_duration(*span))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(&text).map_err(|e| {
            D::Error::custom(format!("'{text}' is not a duration such as 30s or 15m: {e}"))
        })
    }
}

/// File modes, written as a string of octal digits.
pub mod octal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(mode: &u32, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{mode:04o}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
        let text = String::deserialize(d)?;
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| {
            D::Error::custom(format!("'{text}' is not a mode in octal such as \"0755\""))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_read_as_hugetlbfs_writes_them() {
        for (text, kib, shown) in [
            ("2M", 2048, "2M"),
            ("1G", 1048576, "1G"),
            ("1024M", 1048576, "1G"),
            ("64K", 64, "64K"),
            ("2MiB", 2048, "2M"),
        ] {
            let size: PageSize = text.parse().unwrap();
            assert_eq!((size.kib(), size.to_string().as_str()), (kib, shown));
        }
    }

    #[test]
    fn the_bytes_of_a_page_can_be_counted() {
        assert_eq!(PageSize::from_kib(1 << 53).unwrap().bytes(), 1 << 63);
        for kib in [0, 3, 1 << 54, 1 << 63] {
            assert_eq!(PageSize::from_kib(kib), None);
        }
        assert_eq!(PageSize::from_mib(1 << 44), None);
    }

    #[test]
    fn what_is_no_page_size_is_refused() {
        for text in ["", "M", "2", "3M", "0M", "-2M", "99999999999999999999G", "18014398509481984K"]
        {
            assert!(text.parse::<PageSize>().is_err(), "{text}");
        }
    }
}
