//! NUMA nodes of which the CPUs have no memory beside them.

use std::collections::BTreeMap;

use super::units::NumaNode;

/// Nodes without memory that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryNodes {
    /// Distance of each such node to every node that has some (Documentation/ABI/stable/sysfs-devices-node: 10 is the
    /// node itself).
    pub distances: BTreeMap<NumaNode, BTreeMap<NumaNode, u32>>,
}

impl MemoryNodes {
    /// `true` if `node` has no memory that can be used.
    pub fn lacks(&self, node: NumaNode) -> bool {
        self.distances.contains_key(&node)
    }

    /// Nodes that memory for the CPUs of `node` comes from: the node itself if it has some, else the nearest ones.
    /// Several may be equally near.
    pub fn beside(&self, node: NumaNode) -> Vec<NumaNode> {
        let Some(distances) = self.distances.get(&node) else { return vec![node] };
        let least = distances.values().min();
        let nearest = distances.iter().filter(|(_, distance)| Some(*distance) == least);
        nearest.map(|(node, _)| *node).collect()
    }

    /// Nodes that memory for the CPUs of all `nodes` comes from, each once.
    pub fn beside_all(&self, nodes: impl IntoIterator<Item = NumaNode>) -> Vec<NumaNode> {
        let mut all: Vec<NumaNode> = nodes.into_iter().flat_map(|node| self.beside(node)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_from_the_node_itself_or_else_from_the_nearest_ones() {
        let distances = |list: &[(u32, u32)]| {
            list.iter().map(|(node, distance)| (NumaNode(*node), *distance)).collect()
        };
        let memory = MemoryNodes {
            distances: [
                (NumaNode(0), distances(&[(1, 16), (2, 16), (4, 32)])),
                (NumaNode(5), distances(&[(1, 32), (2, 32), (4, 16)])),
            ]
            .into(),
        };
        let beside = |nodes: &[u32]| {
            let found = memory.beside_all(nodes.iter().copied().map(NumaNode));
            found.into_iter().map(|node| node.0).collect::<Vec<_>>()
        };
        assert_eq!(beside(&[0]), [1, 2]);
        assert_eq!(beside(&[1]), [1]);
        assert_eq!(beside(&[5, 4]), [4]);
        assert_eq!(beside(&[5, 0, 7]), [1, 2, 4, 7]);
        assert!(memory.lacks(NumaNode(5)) && !memory.lacks(NumaNode(4)));
    }
}
