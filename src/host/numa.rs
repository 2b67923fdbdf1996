//! NUMA nodes, from sysfs (Documentation/ABI/stable/sysfs-devices-node): their folders, and which of them have memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{HeldFile, entries, parse_list, read_text};
use super::{HostError, Root};
use crate::model::numa::MemoryNodes;
use crate::model::units::NumaNode;

const NODES: &str = "/sys/devices/system/node";
/// Lists of the nodes that have memory. Kernels before 4.13 have the first one only if built with CONFIG_MOVABLE_NODE;
/// the second one lacks nodes of which all memory is movable.
const WITH_MEMORY: [&str; 2] = ["has_memory", "has_normal_memory"];

/// Path of the entry `name` in the folder of the nodes.
pub(super) fn path(root: &Root, name: impl AsRef<Path>) -> PathBuf {
    root.path(Path::new(NODES).join(name))
}

/// Lists the online nodes with their folders, in the order of their numbers; none on a kernel without NUMA.
///
/// # Errors
/// When sysfs cannot be listed.
pub(super) fn nodes(root: &Root) -> Result<Vec<(NumaNode, PathBuf)>, HostError> {
    let node = |(name, folder): (String, PathBuf)| {
        let number = name.strip_prefix("node")?.parse().ok()?;
        Some((NumaNode(number), folder))
    };
    let mut nodes: Vec<_> = entries(&root.path(NODES))?.into_iter().filter_map(node).collect();
    nodes.sort_unstable();
    Ok(nodes)
}

/// Files about the nodes' memory. The nodes are enumerated once: they do not change while the machine runs.
#[derive(Debug, Clone)]
pub struct NumaFiles {
    nodes: Arc<[(NumaNode, PathBuf)]>,
    /// List of the nodes with memory; `None` if the kernel has none.
    with_memory: Option<Arc<HeldFile>>,
}

impl NumaFiles {
    /// Enumerates the nodes.
    ///
    /// # Errors
    /// When sysfs cannot be listed.
    pub fn find(root: &Root) -> Result<NumaFiles, HostError> {
        let with_memory = WITH_MEMORY.iter().map(|name| path(root, name)).find(|it| it.exists());
        let with_memory = with_memory.map(|path| Arc::new(HeldFile::new(path)));
        Ok(NumaFiles { nodes: nodes(root)?.into(), with_memory })
    }

    /// Finds the nodes without memory, or with `bound` those without memory among `bound`. Distances are read only for
    /// these. Where the kernel does not tell which nodes have memory, all have.
    pub fn memory(&self, bound: Option<&BTreeSet<NumaNode>>) -> MemoryNodes {
        let mut usable: BTreeSet<NumaNode> = match self.with_memory() {
            Some(listed) => self.online().filter(|node| listed.contains(&node.0)).collect(),
            None => self.online().collect(),
        };
        if let Some(bound) = bound {
            usable.retain(|node| bound.contains(node));
        }
        if usable.is_empty() {
            return MemoryNodes::default();
        }
        let lacking = self.nodes.iter().filter(|(node, _)| !usable.contains(node));
        let distances = lacking.map(|(node, folder)| (*node, self.distances(folder, &usable)));
        MemoryNodes { distances: distances.collect() }
    }

    fn online(&self) -> impl Iterator<Item = NumaNode> {
        self.nodes.iter().map(|(node, _)| *node)
    }

    fn with_memory(&self) -> Option<Vec<u32>> {
        // With one node there is no choice, and nothing to read.
        let list = self.with_memory.as_ref().filter(|_| self.nodes.len() > 1)?;
        list.read(|_, text| Ok(parse_list(text).ok())).ok().flatten()
    }

    /// Distances of the node with the folder `folder` to each of the nodes `to`. The file has a column for each online
    /// node, in the order of their numbers, which may have gaps. A distance that cannot be read is the largest.
    fn distances(&self, folder: &Path, to: &BTreeSet<NumaNode>) -> BTreeMap<NumaNode, u32> {
        let row = read_text(&folder.join("distance")).unwrap_or_default();
        let columns = row.split_whitespace().map(|distance| distance.parse::<u32>().ok());
        let columns = columns.chain(std::iter::repeat(None));
        let known = self.online().zip(columns).filter(|(node, _)| to.contains(node));
        known.map(|(node, distance)| (node, distance.unwrap_or(u32::MAX))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Nodes without memory, each with those that its memory comes from.
    fn lacking(files: &[(&str, &str)], bound: Option<&[u32]>) -> Vec<(u32, Vec<u32>)> {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        for (name, text) in files {
            let path = path(&root, name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let bound = bound.map(|nodes| nodes.iter().copied().map(NumaNode).collect());
        let memory = NumaFiles::find(&root).unwrap().memory(bound.as_ref());
        let numbers = |nodes: Vec<NumaNode>| nodes.into_iter().map(|node| node.0).collect();
        let nodes = memory.distances.keys();
        nodes.map(|node| (node.0, numbers(memory.beside(*node)))).collect()
    }

    #[test]
    fn nodes_without_memory_have_that_of_the_nearest_ones() {
        // github.com/numactl/numactl/issues/165: a Threadripper 3960X whose nodes 0 and 3 have CPUs and no memory.
        let equal = [
            ("has_memory", "1-2"),
            ("node0/distance", "10 12 12 12"),
            ("node1/distance", "12 10 12 12"),
            ("node2/distance", "12 12 10 12"),
            ("node3/distance", "12 12 12 10"),
        ];
        assert_eq!(lacking(&equal, None), [(0, vec![1, 2]), (3, vec![1, 2])]);
        let bound = lacking(&equal, Some(&[2, 3]));
        assert_eq!(bound, [(0, vec![2]), (1, vec![2]), (3, vec![2])], "within a cpuset");
        assert_eq!(lacking(&equal, Some(&[3])), [], "which contradicts the list");
    }

    #[test]
    fn columns_of_distances_are_those_of_online_nodes_in_numerical_order() {
        // POWER9 with GPUs: nodes 0, 8 and 252 to 255, of which these have memory of a GPU and no CPUs.
        let sparse = [
            ("has_memory", "8,252"),
            ("node0/distance", "10 40 80"),
            ("node252/distance", "80 80 10"),
            ("node8/distance", "40 10 80"),
        ];
        assert_eq!(lacking(&sparse, None), [(0, vec![8])]);
        // Names sort otherwise than numbers.
        let many = [
            ("has_memory", "2,10"),
            ("node10/distance", "21 32 10"),
            ("node2/distance", "32 10 32"),
            ("node9/distance", "32 10 21"),
        ];
        assert_eq!(lacking(&many, None), [(9, vec![10])]);
    }

    #[test]
    fn without_the_kernels_word_each_node_has_memory() {
        let (one, two) = (("node0/distance", "10 20"), ("node1/distance", "20 10"));
        assert_eq!(lacking(&[], None), [], "no NUMA");
        assert_eq!(lacking(&[one, two], None), []);
        assert_eq!(lacking(&[("has_memory", "garbage"), one, two], None), []);
        assert_eq!(lacking(&[("has_memory", ""), one, two], None), []);
        // A kernel without CONFIG_MOVABLE_NODE, before 4.13.
        assert_eq!(lacking(&[("has_normal_memory", "1"), one, two], None), [(0, vec![1])]);
        let unknown = [("has_memory", "1-2"), ("node0/x", ""), ("node1/x", ""), ("node2/x", "")];
        assert_eq!(lacking(&unknown, None), [(0, vec![1, 2])], "any, if distances are unknown");
    }
}
