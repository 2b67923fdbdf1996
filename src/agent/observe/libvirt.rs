//! Facts for the hook that libvirt calls: the kernel's default page size, and the process of a virtual machine.

use std::path::Path;

use crate::host::files::read_text;
use crate::host::{Root, facts};
use crate::model::units::PageSize;

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
