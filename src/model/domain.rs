//! Memory and vhost-user disks of a virtual machine, from its definition in libvirt
//! (<https://libvirt.org/formatdomain.html>).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roxmltree::{Document, Node, ParsingOptions};

use super::fault::Finding;
use super::guest::Reconnect;
use super::pools::{Placement, PoolWant};
use super::units::{NumaNode, PageSize};

/// Longest definition that is read, in bytes.
pub const MOST_XML: u64 = 4 << 20;
/// Upper bound on the XML nodes of a definition.
const MOST_XML_NODES: u32 = 200_000;
/// Largest size of ordinary pages, which a definition may name too, in KiB. Hugepages are larger.
const MOST_ORDINARY_KIB: u64 = 16;
/// Upper bound on NUMA nodes, of a guest and of a host.
const MOST_NODES: u32 = 1024;

/// Reason why a definition cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    #[error("it is no XML: {0}")]
    Xml(#[from] roxmltree::Error),
    #[error("it has no <{0}>")]
    Lacks(&'static str),
    #[error("<{element}> has '{value}', which is not understood")]
    Value { element: &'static str, value: String },
}

/// Virtual machine, as far as its memory and its disks concern this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub uuid: String,
    /// Process, in the state that libvirt keeps of one that runs.
    pub pid: Option<u32>,
    pub vhost_user_disks: Vec<VhostUserDisk>,
    /// Set if other processes may map all of its memory, which libvirt requires of one with a vhost-user disk.
    pub shares_memory: bool,
    /// Set if its hugepages are files on a hugetlbfs mount.
    pub needs_mount: bool,
    /// Hugepages that it takes when it starts.
    pub hugepages: Vec<PoolWant>,
}

/// Definition as it was read, or the reason why it cannot be.
pub type ReadDomain = Result<Domain, String>;

/// Virtual machine that libvirt knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainSeen {
    /// Definition with which it starts next; `None` if libvirt forgets it at its end.
    pub defined: Option<ReadDomain>,
    /// Definition with which it runs.
    pub running: Option<ReadDomain>,
}

/// Virtual machines by name.
pub type DomainsSeen = BTreeMap<String, DomainSeen>;

/// Virtual machine with a vhost-user disk or hugepages, and the findings on its next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainStatus {
    pub name: String,
    /// Definition with which it starts next, as far as is known; `None` if that cannot be read.
    pub domain: Option<Domain>,
    /// Process, if it runs.
    pub pid: Option<u32>,
    pub findings: Vec<Finding>,
}

/// vhost-user disk of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserDisk {
    /// Path of the target's socket.
    pub socket: String,
    pub reconnect: Reconnect,
}

/// Memory that the guest's QEMU takes at once.
struct Chunk<'a> {
    kib: u64,
    /// NUMA node of the guest; `None` if the guest has none.
    cell: Option<u32>,
    /// Page size and host nodes of a memory device that names its own.
    size: Option<PageSize>,
    nodes: Option<Vec<NumaNode>>,
    /// Own mode of access.
    access: Option<&'a str>,
}

impl Domain {
    /// Name of the reservation that libvirt's hook makes for it.
    pub fn reservation(&self) -> String {
        format!("libvirt-{}", self.uuid)
    }

    /// Reads a definition, or the state that libvirt keeps of a virtual machine that runs, which has it inside; `default` is
    /// the kernel's default size of hugepages.
    ///
    /// # Errors
    /// When `xml` is no definition, or one with values that are not understood.
    pub fn parse(xml: &str, default: Option<PageSize>) -> Result<Domain, DomainError> {
        let options = ParsingOptions { nodes_limit: MOST_XML_NODES, ..ParsingOptions::default() };
        let document = Document::parse_with_options(xml, options)?;
        let root = document.root_element();
        let domain = match root.has_tag_name("domstatus") {
            true => child(root, "domain").ok_or(DomainError::Lacks("domain"))?,
            false => root,
        };
        let backing = child(domain, "memoryBacking");
        let source = backing.and_then(|it| child(it, "source")).and_then(|it| it.attribute("type"));
        let chunks = chunks(domain)?;
        let is_shared = |access| access == Some("shared");
        let all = backing.and_then(|it| child(it, "access")).and_then(|it| it.attribute("mode"));
        Ok(Domain {
            uuid: text(child(domain, "uuid").ok_or(DomainError::Lacks("uuid"))?).to_string(),
            pid: root.attribute("pid").and_then(|pid| pid.parse().ok()),
            vhost_user_disks: vhost_user_disks(domain),
            shares_memory: chunks.iter().all(|chunk| is_shared(chunk.access.or(all))),
            needs_mount: source != Some("memfd"),
            hugepages: BackingPages::of(backing, default)?.wants(chunks, &NumaTune::of(domain)?),
        })
    }
}

/// vhost-user disks whose source names a socket.
fn vhost_user_disks(domain: Node<'_, '_>) -> Vec<VhostUserDisk> {
    let disks = child(domain, "devices").into_iter().flat_map(|it| children(it, "disk"));
    let disks = disks.filter(|disk| disk.attribute("type") == Some("vhostuser"));
    let disks = disks.filter_map(|disk| {
        let source = child(disk, "source")?;
        let seconds = child(source, "reconnect")
            .filter(|it| it.attribute("enabled") == Some("yes"))
            .and_then(|it| it.attribute("timeout")?.parse::<u32>().ok());
        Some(VhostUserDisk {
            socket: source.attribute("path")?.to_string(),
            reconnect: Reconnect::each(Duration::from_secs(seconds.unwrap_or(0).into())),
        })
    });
    disks.collect()
}

/// Page sizes of the guest's memory, from `<memoryBacking><hugepages>`.
struct BackingPages {
    /// Size for each named NUMA node of the guest.
    named: BTreeMap<u32, PageSize>,
    /// Size for all other memory; `None` for ordinary pages.
    other: Option<PageSize>,
}

impl BackingPages {
    fn of(
        backing: Option<Node<'_, '_>>,
        default: Option<PageSize>,
    ) -> Result<BackingPages, DomainError> {
        let mut pages = BackingPages { named: BTreeMap::new(), other: None };
        let Some(hugepages) = backing.and_then(|it| child(it, "hugepages")) else {
            return Ok(pages);
        };
        let mut is_empty = true;
        for page in children(hugepages, "page") {
            is_empty = false;
            let size = page_size("page", page.attribute("size").unwrap_or_default(), page)?;
            match page.attribute("nodeset") {
                None => pages.other = Some(size),
                Some(cells) => {
                    let cells = numbers("page", cells)?;
                    pages.named.extend(cells.into_iter().map(|cell| (cell, size)));
                }
            }
        }
        if is_empty {
            pages.other = default;
        }
        Ok(pages)
    }

    fn wants(&self, chunks: Vec<Chunk<'_>>, tune: &NumaTune) -> Vec<PoolWant> {
        let mut wants: Vec<PoolWant> = Vec::new();
        for chunk in chunks {
            let of_cell = || match chunk.cell {
                Some(cell) => self.named.get(&cell).copied().or(self.other),
                // Without NUMA nodes, libvirt takes the size for node 0.
                None => self.named.get(&0).copied().or(self.other),
            };
            let Some(size) = chunk.size.or_else(of_cell) else { continue };
            let placement = match chunk.nodes {
                Some(nodes) => Placement::Bound(nodes),
                None => tune.placement(chunk.cell),
            };
            if size.kib() <= MOST_ORDINARY_KIB {
                continue;
            }
            let pages = chunk.kib.div_ceil(size.kib());
            match wants.iter_mut().find(|it| it.size == size && it.placement == placement) {
                Some(want) => want.pages = want.pages.saturating_add(pages),
                None if pages > 0 => {
                    wants.push(PoolWant { size, pages, placement, move_shortfall: false });
                }
                None => {}
            }
        }
        wants
    }
}

/// Placement of the guest's memory on NUMA nodes of the host, from `<numatune>`.
struct NumaTune {
    all: Placement,
    by_cell: BTreeMap<u32, Placement>,
}

impl NumaTune {
    fn of(domain: Node<'_, '_>) -> Result<NumaTune, DomainError> {
        let mut tune = NumaTune { all: Placement::Spread, by_cell: BTreeMap::new() };
        let Some(element) = child(domain, "numatune") else { return Ok(tune) };
        if let Some(memory) = child(element, "memory") {
            tune.all = placement("memory", memory)?;
        }
        for memnode in children(element, "memnode") {
            let cell = memnode.attribute("cellid").unwrap_or_default();
            let cell = number("memnode", cell)?;
            tune.by_cell.insert(cell, placement("memnode", memnode)?);
        }
        Ok(tune)
    }

    fn placement(&self, cell: Option<u32>) -> Placement {
        cell.and_then(|cell| self.by_cell.get(&cell)).unwrap_or(&self.all).clone()
    }
}

/// Placement of an element with `mode` and `nodeset`. Other modes than these two only prefer nodes.
fn placement(name: &'static str, element: Node<'_, '_>) -> Result<Placement, DomainError> {
    let mode = element.attribute("mode").unwrap_or("strict");
    match element.attribute("nodeset") {
        Some(nodes) if matches!(mode, "strict" | "restrictive") => {
            Ok(Placement::Bound(host_nodes(name, nodes)?))
        }
        _ => Ok(Placement::Spread),
    }
}

/// Parts of the guest's memory: its NUMA nodes, or all of it, and its memory devices.
fn chunks<'a>(domain: Node<'a, '_>) -> Result<Vec<Chunk<'a>>, DomainError> {
    let numa = child(domain, "cpu").and_then(|cpu| child(cpu, "numa"));
    let mut chunks = Vec::new();
    for (at, cell) in numa.into_iter().flat_map(|numa| children(numa, "cell")).enumerate() {
        let id = match cell.attribute("id") {
            Some(id) => number("cell", id)?,
            None => u32::try_from(at).unwrap_or(u32::MAX),
        };
        let kib = kib("cell", cell.attribute("memory").unwrap_or_default(), cell)?;
        let access = cell.attribute("memAccess");
        chunks.push(Chunk { kib, cell: Some(id), size: None, nodes: None, access });
    }
    if chunks.is_empty() {
        let memory = child(domain, "memory").ok_or(DomainError::Lacks("memory"))?;
        let kib = kib("memory", text(memory), memory)?;
        chunks.push(Chunk { kib, cell: None, size: None, nodes: None, access: None });
        return Ok(chunks);
    }
    let devices = child(domain, "devices");
    for device in devices.into_iter().flat_map(|devices| children(devices, "memory")) {
        // Other models lie in a file, or in memory that is no hugepage.
        if matches!(device.attribute("model"), Some("dimm" | "virtio-mem")) {
            chunks.extend(device_chunk(device)?);
        }
    }
    Ok(chunks)
}

/// Memory of a DIMM, or that requested of a virtio-mem device.
fn device_chunk<'a>(device: Node<'a, '_>) -> Result<Option<Chunk<'a>>, DomainError> {
    let Some(target) = child(device, "target") else { return Ok(None) };
    let Some(size) = child(target, "requested").or_else(|| child(target, "size")) else {
        return Ok(None);
    };
    let source = child(device, "source");
    let part = |name| source.and_then(|source| child(source, name));
    Ok(Some(Chunk {
        kib: kib("size", text(size), size)?,
        cell: child(target, "node").map(|node| number("node", text(node))).transpose()?,
        size: part("pagesize").map(|it| page_size("pagesize", text(it), it)).transpose()?,
        nodes: part("nodemask").map(|it| host_nodes("nodemask", text(it))).transpose()?,
        access: device.attribute("access"),
    }))
}

fn children<'a, 'b>(of: Node<'a, 'b>, name: &'static str) -> impl Iterator<Item = Node<'a, 'b>> {
    of.children().filter(move |it| it.has_tag_name(name))
}

fn child<'a, 'b>(of: Node<'a, 'b>, name: &'static str) -> Option<Node<'a, 'b>> {
    children(of, name).next()
}

fn text<'a>(of: Node<'a, '_>) -> &'a str {
    of.text().unwrap_or_default().trim()
}

fn bad(element: &'static str, value: &str) -> DomainError {
    DomainError::Value { element, value: value.chars().take(80).collect() }
}

fn number(element: &'static str, text: &str) -> Result<u32, DomainError> {
    let number = text.trim().parse().ok().filter(|number| *number < MOST_NODES);
    number.ok_or_else(|| bad(element, text))
}

/// KiB that `value` means, with the unit of `element`; KiB without a unit.
fn kib(name: &'static str, value: &str, element: Node<'_, '_>) -> Result<u64, DomainError> {
    let factor: u128 = match element.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "K" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        unit => return Err(bad(name, unit)),
    };
    let count: u64 = value.trim().parse().map_err(|_| bad(name, value))?;
    u64::try_from((u128::from(count) * factor).div_ceil(1024)).map_err(|_| bad(name, value))
}

fn page_size(
    name: &'static str,
    value: &str,
    element: Node<'_, '_>,
) -> Result<PageSize, DomainError> {
    PageSize::from_kib(kib(name, value, element)?).ok_or_else(|| bad(name, value))
}

fn host_nodes(name: &'static str, text: &str) -> Result<Vec<NumaNode>, DomainError> {
    Ok(numbers(name, text)?.into_iter().map(NumaNode).collect())
}

/// Numbers of a set such as `0-3,^2,5`.
fn numbers(name: &'static str, text: &str) -> Result<BTreeSet<u32>, DomainError> {
    let mut set = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        match (part.strip_prefix('^'), part.split_once('-')) {
            (Some(without), _) => drop(set.remove(&number(name, without)?)),
            (None, Some((first, last))) => set.extend(number(name, first)?..=number(name, last)?),
            (None, None) => drop(set.insert(number(name, part)?)),
        }
    }
    if set.is_empty() { Err(bad(name, text)) } else { Ok(set) }
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
