//! Processors of the node, and lists of them.

use crate::model::code::Code;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::fault::Fault;
use super::numa::MemoryNodes;
use super::units::NumaNode;

/// Online logical CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Number given by the kernel.
    pub id: u32,
    /// NUMA node; node 0 on kernels without NUMA.
    pub node: NumaNode,
    /// Number of the core, which cores of other dies may have too; `None` if unknown.
    pub core: Option<u32>,
    /// Package (socket); `None` if unknown.
    pub package: Option<u32>,
    /// Logical CPUs of the same core, this one included; empty if unknown.
    pub siblings: Vec<u32>,
    /// Set if kept from the scheduler (`isolcpus=`).
    pub isolated: bool,
}

impl Cpu {
    /// `true` if both are threads of one core. Not told by the numbers of the cores, which repeat between dies.
    pub fn shares_core_with(&self, other: &Cpu) -> bool {
        self.siblings.contains(&other.id) || other.siblings.contains(&self.id)
    }
}

/// Other users of the CPUs, and bounds of the engine's containers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuUse {
    /// CPUs on which the engine's containers may run; `None` if nothing confines them.
    pub containers: Option<BTreeSet<u32>>,
    /// NUMA nodes that have no memory for the engine's containers.
    pub memory_nodes: MemoryNodes,
    /// Virtual machines, and targets other than the one in question.
    pub holders: Vec<Holder>,
    /// NUMA nodes whose CPUs would get too few free hugepages for the target. They are used only if no other node will
    /// do.
    pub short_nodes: BTreeSet<NumaNode>,
}

/// Process whose threads may count on CPUs of their own: a virtual machine, or another target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub kind: HolderKind,
    /// Name of a virtual machine in libvirt, or of the process.
    pub name: String,
    /// Lists of the CPUs on which its threads may run, each list once.
    pub allowed: BTreeSet<Vec<u32>>,
}

/// Kind of a [`Holder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HolderKind {
    /// Virtual machine.
    Machine,
    /// Target, whose reactors use all the time of their CPUs.
    Target,
}

/// List of CPUs, in the order of their numbers, none twice, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoreList(Vec<u32>);

/// Limit of CPU numbers: more than any kernel has (`CONFIG_NR_CPUS`).
const MOST_CPUS: u32 = 8192;

impl CoreList {
    /// List of the numbers in `cores`, sorted and without duplicates; `None` if `cores` is empty.
    pub fn of(mut cores: Vec<u32>) -> Option<CoreList> {
        cores.sort_unstable();
        cores.dedup();
        (!cores.is_empty()).then_some(CoreList(cores))
    }

    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// Form of SPDK's command line: `[6,7]`.
    pub fn for_spdk(&self) -> String {
        format!("[{self}]")
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&cores.join(","))
    }
}

impl FromStr for CoreList {
    type Err = Fault;

    /// Parses `[6,7]`, `6-7`, `6,7` or a mask, `0xc0`.
    fn from_str(text: &str) -> Result<CoreList, Fault> {
        let text = text.trim();
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let cores = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(mask) => of_mask(mask),
            None => of_ranges(inner),
        };
        cores.and_then(CoreList::of).ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            Fault::new(
                Code::InvalidCores,
                format!("'{shown}' is no list of cores: write [6,7], 6-7 or a mask such as 0xc0"),
            )
        })
    }
}

/// Reads a list of cores in a request, given as text or as a JSON list of numbers. A JSON list is returned as its text,
/// such as `[6,7]`.
///
/// # Errors
/// Any other JSON type. The text is validated where it becomes a [`CoreList`].
pub fn written<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        list @ Value::Array(_) => Ok(Some(list.to_string())),
        _ => Err(D::Error::custom("it is no list of cores: write [6,7], \"6-7\" or \"0xc0\"")),
    }
}

fn of_ranges(text: &str) -> Option<Vec<u32>> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let number = |text: &str| text.trim().parse().ok().filter(|core| *core < MOST_CPUS);
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (number(first)?, number(last)?);
        // A list with more entries than there can be CPUs repeats some. Without this limit, a short text could fill the
        // memory.
        if first > last || cores.len() + (last - first) as usize >= MOST_CPUS as usize {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

fn of_mask(mask: &str) -> Option<Vec<u32>> {
    let digits = mask.len();
    if digits == 0 || digits > (MOST_CPUS / 4) as usize {
        return None;
    }
    let mut cores = Vec::new();
    for (place, digit) in (0..).zip(mask.chars().rev()) {
        let digit = digit.to_digit(16)?;
        cores.extend((0..4).filter(|bit| digit & (1 << bit) != 0).map(|bit| place * 4 + bit));
    }
    Some(cores)
}

impl TryFrom<String> for CoreList {
    type Error = Fault;

    fn try_from(text: String) -> Result<CoreList, Fault> {
        text.parse()
    }
}

impl From<CoreList> for String {
    fn from(cores: CoreList) -> String {
        cores.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists_are_read_in_each_of_their_forms() {
        for (text, cores) in [
            ("[6,7]", vec![6, 7]),
            ("6-7", vec![6, 7]),
            (" 7 , 6,6 ", vec![6, 7]),
            ("0xc0", vec![6, 7]),
            ("0X1", vec![0]),
            ("[0-2,8]", vec![0, 1, 2, 8]),
        ] {
            assert_eq!(text.parse::<CoreList>().unwrap().as_slice(), cores, "{text}");
        }
        assert_eq!("0xc0".parse::<CoreList>().unwrap().for_spdk(), "[6,7]");
    }

    #[test]
    fn a_call_has_cores_as_text_or_as_numbers() {
        for (json, text) in [
            ("null", None),
            ("\"6-7\"", Some("6-7")),
            ("[6, 7]", Some("[6,7]")),
            ("[\"a\"]", Some("[\"a\"]")),
        ] {
            let read = written(&mut serde_json::Deserializer::from_str(json)).unwrap();
            assert_eq!(read.as_deref(), text, "{json}");
        }
        for json in ["7", "{}", "true"] {
            written(&mut serde_json::Deserializer::from_str(json)).unwrap_err();
        }
        assert_eq!("[6,7]".parse::<CoreList>().unwrap().as_slice(), [6, 7]);
        for text in ["[\"a\"]", "[6.0]", "[-1]", "[[6]]"] {
            assert_eq!(text.parse::<CoreList>().unwrap_err().code, Code::InvalidCores, "{text}");
        }
    }

    #[test]
    fn a_list_that_says_all_cores_again_and_again_is_refused_before_it_fills_the_memory() {
        assert_eq!("0-8191".parse::<CoreList>().unwrap().as_slice().len(), 8192);
        for text in ["0-8191,0", "0-8191,0-8191", &vec!["0-8191"; 100_000].join(",")] {
            assert_eq!(text.parse::<CoreList>().unwrap_err().code, Code::InvalidCores);
        }
    }

    #[test]
    fn what_is_no_core_list_is_refused() {
        let long = format!("0x{}", "f".repeat(3000));
        for text in ["", "[]", "[6", "7-6", "a", "-1", "0x", "0x0", "0xg", "9999999", "1,,2", &long]
        {
            assert_eq!(text.parse::<CoreList>().unwrap_err().code, Code::InvalidCores, "{text}");
        }
    }
}
