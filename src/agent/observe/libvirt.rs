//! Virtual machines that libvirt knows, from its own files: it keeps the definition of each, and the state of each that runs
//! (<https://libvirt.org/drvqemu.html#location-of-configuration-files>). Its socket is not used: it speaks a protocol of its
//! own, and may hang with a virtual machine.

use std::path::{Path, PathBuf};

use super::blocking;
use super::memory::MemoryObserver;
use crate::host::files::{entries, read_table_text, read_text};
use crate::host::{HostError, Root, facts};
use crate::model::domain::{Domain, DomainsSeen, ReadDomain};
use crate::model::fault::{Fault, chain};
use crate::model::mounts::HugetlbMount;
use crate::model::pools::PoolsSeen;
use crate::model::units::PageSize;

/// Folder of the definitions of virtual machines.
const DEFINED: &str = "/etc/libvirt/qemu";
/// Folder of the states of those that run.
const RUNNING: &str = "/run/libvirt/qemu";
/// Upper bound on the files that are read of a folder.
const MOST_FILES: usize = 4096;

/// Observer of the virtual machines, and of the memory that they take.
#[derive(Debug, Clone)]
pub struct DomainObserver {
    root: Root,
    memory: MemoryObserver,
}

/// Observed virtual machines, with the pools and mounts of the node.
#[derive(Debug)]
pub struct NodeDomains {
    pub domains: DomainsSeen,
    pub pools: PoolsSeen,
    pub mounts: Vec<HugetlbMount>,
}

impl DomainObserver {
    pub fn new(root: &Root, memory: MemoryObserver) -> DomainObserver {
        DomainObserver { root: root.clone(), memory }
    }

    /// Observes the virtual machines; a node without libvirt has none.
    ///
    /// # Errors
    /// When a folder of libvirt, the pools or the mounts cannot be read. A file that cannot be read is told of its virtual
    /// machine.
    pub async fn look(&self) -> Result<NodeDomains, Fault> {
        let observer = self.clone();
        blocking(move || observer.look_blocking()).await?
    }

    fn look_blocking(&self) -> Result<NodeDomains, Fault> {
        let mut domains = DomainsSeen::new();
        for (name, domain) in self.read_all(DEFINED)? {
            domains.entry(name).or_default().defined = Some(domain);
        }
        for (name, domain) in self.read_all(RUNNING)? {
            domains.entry(name).or_default().running = Some(domain);
        }
        let (pools, mounts) = (self.memory.pools()?, self.memory.mounts()?);
        Ok(NodeDomains { domains, pools, mounts })
    }

    fn read_all(&self, folder: &str) -> Result<Vec<(String, ReadDomain)>, HostError> {
        let default = self.memory.default_size();
        let files = entries(&self.root.path(folder))?.into_iter();
        let files =
            files.filter_map(|(name, path)| Some((name.strip_suffix(".xml")?.to_string(), path)));
        let read = |(name, path): (String, PathBuf)| {
            let xml = read_table_text(&path).map_err(|e| chain(&e));
            (name, xml.and_then(|xml| Domain::parse(&xml, default).map_err(|e| e.to_string())))
        };
        Ok(files.take(MOST_FILES).map(read).collect())
    }
}

/// Kernel's default size of hugepages, under the folder `root`; `None` if it has none.
pub fn default_page_size(root: &Path) -> Option<PageSize> {
    facts::default_page_size(&Root::new(root))
}

/// Pid of the QEMU of the virtual machine `name`, from libvirt's own file; `None` if there is none.
pub fn machine_pid(root: &Path, name: &str) -> Option<u32> {
    if name.contains('/') {
        return None;
    }
    let file = Root::new(root).path(format!("/run/libvirt/qemu/{name}.pid"));
    read_text(&file).ok()?.trim().parse().ok()
}
