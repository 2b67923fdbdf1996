//! CPUs to which virtual machines are pinned or other targets are held.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::code::Code;
use crate::model::cpu::{CoreList, Cpu, Holder, HolderKind};
use crate::model::fault::Finding;
use crate::model::units::NumaNode;

/// Most names that a finding lists.
const MOST_NAMES: usize = 5;

/// Virtual machines and targets that are held to each CPU, by the number of the CPU.
#[derive(Debug, Default)]
pub(super) struct Pins<'a>(BTreeMap<u32, Vec<Pin<'a>>>);

#[derive(Debug)]
struct Pin<'a> {
    holder: &'a Holder,
    room: usize,
}

impl<'a> Pins<'a> {
    /// Pins of `holders` on a machine with these CPUs.
    pub(super) fn of(cpus: &[Cpu], holders: &'a [Holder]) -> Pins<'a> {
        let mut nodes: BTreeMap<NumaNode, BTreeSet<u32>> = BTreeMap::new();
        for cpu in cpus {
            nodes.entry(cpu.node).or_default().insert(cpu.id);
        }
        let online = |cpu: &u32| nodes.values().any(|node| node.contains(cpu));
        let mut pins = Pins::default();
        for holder in holders {
            for list in &holder.allowed {
                // A mask may include CPUs that are offline.
                let allowed: BTreeSet<u32> = list.iter().copied().filter(online).collect();
                // A holder that may run on a whole node is bound to a place (numad, a slice's cpuset) and not pinned:
                // the scheduler moves it away from a CPU that a target has.
                if !nodes.values().any(|node| node.is_subset(&allowed)) {
                    pins.add(holder, &allowed);
                }
            }
        }
        pins
    }

    fn add(&mut self, holder: &'a Holder, allowed: &BTreeSet<u32>) {
        // A reactor leaves nothing to others, however many CPUs it could move to.
        let room = match holder.kind {
            HolderKind::Target => 0,
            HolderKind::Machine => allowed.len(),
        };
        for cpu in allowed {
            self.0.entry(*cpu).or_default().push(Pin { holder, room });
        }
    }

    /// Number of CPUs available to the most tightly pinned holder of `cpu` or of its siblings; `usize::MAX` if they
    /// have no holder. The more CPUs the holder has, the less a spinning neighbour harms it. Siblings count, because a
    /// CPU that spins takes half of their power.
    pub(super) fn room(&self, cpu: &Cpu) -> usize {
        self.beside(cpu).map(|pin| pin.room).min().unwrap_or(usize::MAX)
    }

    /// `true` if nobody is held to that CPU.
    pub(super) fn is_nobodys(&self, cpu: &Cpu) -> bool {
        !self.0.contains_key(&cpu.id)
    }

    fn beside(&self, cpu: &Cpu) -> impl Iterator<Item = &Pin<'a>> {
        let others = cpu.siblings.iter().filter(|sibling| **sibling != cpu.id);
        std::iter::once(&cpu.id).chain(others).filter_map(|id| self.0.get(id)).flatten()
    }

    /// Findings on holders of the `chosen` CPUs or of their siblings: one for virtual machines, one for targets.
    pub(super) fn findings(&self, chosen: &[&Cpu]) -> Vec<Finding> {
        let finding = |kind| {
            let mut names = BTreeSet::new();
            let mut shared = Vec::new();
            for cpu in chosen {
                for pin in self.beside(cpu).filter(|pin| pin.holder.kind == kind) {
                    names.insert(pin.holder.name.as_str());
                    shared.push(cpu.id);
                }
            }
            Some(finding(kind, &CoreList::of(shared)?, &names))
        };
        [HolderKind::Machine, HolderKind::Target].into_iter().filter_map(finding).collect()
    }
}

fn finding(kind: HolderKind, shared: &CoreList, names: &BTreeSet<&str>) -> Finding {
    let mut listed: Vec<String> =
        names.iter().take(MOST_NAMES).map(|name| (*name).to_string()).collect();
    if names.len() > MOST_NAMES {
        listed.push(format!("{} more", names.len() - MOST_NAMES));
    }
    let listed = listed.join(", ");
    match kind {
        HolderKind::Machine => Finding::new(
            Code::CoresSharedWithVms,
            format!(
                "virtual machines are pinned to CPUs {shared} or to other threads of their cores: \
                 {listed}. The target spins there and slows them: give it other CPUs (cores), or \
                 pin them elsewhere"
            ),
        ),
        HolderKind::Target => Finding::new(
            Code::CoresSharedWithTargets,
            format!(
                "other targets have CPUs {shared} or other threads of their cores: {listed}. Both \
                 spin there and slow each other: give this one other CPUs (cores), or fewer"
            ),
        ),
    }
}
