//! Findings on the next start of virtual machines that libvirt knows.

use super::guests::{bad_reconnect, private_memory};
use super::hugepages::free_share;
use crate::model::code::Code;
use crate::model::domain::{Domain, DomainSeen, DomainStatus, DomainsSeen};
use crate::model::fault::Finding;
use crate::model::mounts::HugetlbMount;
use crate::model::pools::{PoolWant, PoolsSeen};

/// Memory of the node, as far as a start takes it.
#[derive(Debug)]
pub struct Supply {
    /// Pools, in which pages that are kept for others do not count as free.
    pub pools: PoolsSeen,
    pub mounts: Vec<HugetlbMount>,
    /// Names of the reservations. The pages of a virtual machine with a reservation are kept for it.
    pub reservations: Vec<String>,
}

/// Status of each virtual machine with a vhost-user disk, with hugepages, or of which nothing is known.
pub fn statuses(seen: DomainsSeen, supply: &Supply) -> Vec<DomainStatus> {
    seen.into_iter().filter_map(|(name, seen)| status(name, seen, supply)).collect()
}

fn status(name: String, seen: DomainSeen, supply: &Supply) -> Option<DomainStatus> {
    let next = seen.defined.or_else(|| seen.running.clone())?;
    let running = seen.running.and_then(Result::ok);
    let pid = running.as_ref().and_then(|running| running.pid);
    match next {
        Ok(domain) => {
            if domain.vhost_user_disks.is_empty() && domain.hugepages.is_empty() {
                return None;
            }
            let findings = findings(&name, &domain, running.as_ref(), supply);
            Some(DomainStatus { name, domain: Some(domain), pid, findings })
        }
        Err(reason) => {
            let text = format!("the definition of {name} cannot be read: {reason}");
            let findings = vec![Finding::new(Code::GuestDefinitionUnreadable, text)];
            Some(DomainStatus { name, domain: None, pid, findings })
        }
    }
}

fn findings(name: &str, next: &Domain, running: Option<&Domain>, supply: &Supply) -> Vec<Finding> {
    let machine = format!("{name}, as it is defined,");
    let disks = &next.vhost_user_disks;
    let private = (!disks.is_empty() && !next.shares_memory).then(|| private_memory(&machine));
    let mut found: Vec<Finding> = private.into_iter().collect();
    found.extend(disks.iter().filter_map(|it| bad_reconnect(&machine, &it.socket, it.reconnect)));
    for want in &next.hugepages {
        let is_mounted = supply.mounts.iter().any(|mount| mount.is_good_for(want.size));
        if next.needs_mount && !is_mounted {
            found.push(unmounted(name, want));
        }
    }
    if !supply.reservations.contains(&next.reservation()) {
        found.extend(short(name, next, running, supply));
    }
    found
}

fn unmounted(name: &str, want: &PoolWant) -> Finding {
    let size = want.size;
    let text = format!(
        "{name} takes hugepages of {size}, of which there is no usable mount: libvirt refuses its start, or gives it other pages \
         where its definition names no size. Mount them (`vhost-agent prepare` does, for 2M and 1G), and restart libvirt's \
         daemon, which looks for mounts when it starts"
    );
    Finding::new(Code::GuestPagesUnmounted, text)
}

/// Finding on pages that are missing for the next start. Those that it has now, it gives back before.
fn short(name: &str, next: &Domain, running: Option<&Domain>, supply: &Supply) -> Option<Finding> {
    let held = |want: &PoolWant| {
        let same = |it: &&PoolWant| (it.size, &it.placement) == (want.size, &want.placement);
        let held = running.into_iter().flat_map(|running| &running.hugepages).find(same);
        held.map_or(0, |held| held.pages)
    };
    let mut pools = supply.pools.clone();
    let mut missing = Vec::new();
    for want in &next.hugepages {
        let pages = want.pages.saturating_sub(held(want));
        match free_share(&PoolWant { pages, ..want.clone() }, &pools) {
            Ok(shares) => {
                let free: u64 = shares.values().sum();
                if free < pages {
                    missing.push(format!("{} of {}", pages - free, want.size));
                }
                pools = pools.without(&shares);
            }
            Err(fault) => missing.push(fault.text),
        }
    }
    let missing = (!missing.is_empty()).then(|| missing.join(", "))?;
    let text = format!(
        "{name} takes more hugepages at its next start than are free for it ({missing} are missing): unless libvirt's hook or a \
         reservation (POST /v1/reservations) finds them then, it does not start; `vhost-agent prepare --pages` adds them now"
    );
    Some(Finding::new(Code::GuestPagesShort, text))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::domain::VhostUserDisk;
    use crate::model::guest::Reconnect;
    use crate::model::pools::{Placement, Pool, PoolKey};
    use crate::model::units::{NumaNode, PageSize};

    /// Virtual machine without a fault, that takes so many pages of 2 MiB.
    fn domain(pages: u64) -> Domain {
        let want = PoolWant {
            size: PageSize::MIB_2,
            pages,
            placement: Placement::Spread,
            move_shortfall: false,
        };
        let reconnect = Reconnect::each(Duration::from_secs(1));
        Domain {
            uuid: "5f0c".to_string(),
            pid: None,
            vhost_user_disks: vec![VhostUserDisk { socket: "/s/v".to_string(), reconnect }],
            shares_memory: true,
            needs_mount: true,
            hugepages: vec![want],
        }
    }

    /// Two NUMA nodes with so many free pages of 2 MiB each, and a mount of them.
    fn supply(free: u64) -> Supply {
        let pool = |node| {
            let key = PoolKey { size: PageSize::MIB_2, node: NumaNode(node) };
            Pool { key, total: free, free, surplus: 0 }
        };
        let mount = HugetlbMount {
            path: "/dev/hugepages".to_string(),
            page_size: PageSize::MIB_2,
            writable: true,
            reachable: true,
        };
        Supply {
            pools: PoolsSeen {
                pools: vec![pool(0), pool(1)],
                cpu_nodes: vec![NumaNode(0), NumaNode(1)],
                ..PoolsSeen::default()
            },
            mounts: vec![mount],
            reservations: Vec::new(),
        }
    }

    fn codes(next: Domain, supply: &Supply) -> Vec<Code> {
        codes_of(DomainSeen { defined: Some(Ok(next)), running: None }, supply)
    }

    fn codes_of(seen: DomainSeen, supply: &Supply) -> Vec<Code> {
        let statuses = statuses([("web".to_string(), seen)].into(), supply);
        statuses.iter().flat_map(|it| &it.findings).map(|finding| finding.code).collect()
    }

    #[test]
    fn each_fault_of_a_definition_is_a_finding() {
        let supply = supply(8);
        assert_eq!(codes(domain(16), &supply), []);
        assert_eq!(codes(domain(17), &supply), [Code::GuestPagesShort]);
        let private = Domain { shares_memory: false, ..domain(1) };
        assert_eq!(codes(private.clone(), &supply), [Code::GuestMemoryPrivate]);
        let without_disk = Domain { vhost_user_disks: Vec::new(), ..private };
        assert_eq!(codes(without_disk, &supply), []);
        for (seconds, code) in [(0, Code::GuestDoesNotReconnect), (2, Code::GuestReconnectsSlowly)]
        {
            let mut next = domain(1);
            next.vhost_user_disks[0].reconnect = Reconnect::each(Duration::from_secs(seconds));
            assert_eq!(codes(next, &supply), [code]);
        }
    }

    #[test]
    fn pages_need_a_usable_mount_of_their_size() {
        let mut supply = supply(8);
        supply.mounts[0].writable = false;
        assert_eq!(codes(domain(1), &supply), [Code::GuestPagesUnmounted]);
        assert_eq!(codes(Domain { needs_mount: false, ..domain(1) }, &supply), []);
    }

    #[test]
    fn pages_that_are_its_own_are_not_missing() {
        let mut supply = supply(0);
        let running = |defined| DomainSeen {
            defined: Some(Ok(domain(defined))),
            running: Some(Ok(Domain { pid: Some(7), ..domain(4) })),
        };
        assert_eq!(codes_of(running(4), &supply), []);
        assert_eq!(codes_of(running(5), &supply), [Code::GuestPagesShort]);
        supply.reservations = vec!["libvirt-5f0c".to_string()];
        assert_eq!(codes_of(running(5), &supply), [], "they are kept for it");
    }

    #[test]
    fn pages_are_counted_once_and_where_they_are_bound_to() {
        let mut next = domain(8);
        next.hugepages[0].placement = Placement::Bound(vec![NumaNode(1)]);
        assert_eq!(codes(next.clone(), &supply(8)), []);
        assert_eq!(codes(next.clone(), &supply(7)), [Code::GuestPagesShort]);
        next.hugepages.push(domain(9).hugepages.remove(0));
        assert_eq!(codes(next.clone(), &supply(8)), [Code::GuestPagesShort]);
        next.hugepages[0].placement = Placement::Bound(vec![NumaNode(9)]);
        next.hugepages.truncate(1);
        assert_eq!(codes(next, &supply(8)), [Code::GuestPagesShort], "there is no such node");
    }

    #[test]
    fn what_is_of_no_concern_is_left_out() {
        let supply = supply(8);
        let other = Domain { vhost_user_disks: Vec::new(), hugepages: Vec::new(), ..domain(1) };
        let seen = |defined, running| DomainSeen { defined, running };
        let all = DomainsSeen::from([
            ("other".to_string(), seen(Some(Ok(other)), None)),
            ("transient".to_string(), seen(None, Some(Ok(Domain { pid: Some(7), ..domain(9) })))),
            ("unread".to_string(), seen(Some(Err("no XML".to_string())), None)),
        ]);
        let statuses = statuses(all, &supply);
        let shown: Vec<_> = statuses
            .iter()
            .map(|it| (it.name.as_str(), it.pid, it.domain.is_some(), it.findings.len()))
            .collect();
        assert_eq!(shown, [("transient", Some(7), true, 0), ("unread", None, false, 1)]);
    }
}
