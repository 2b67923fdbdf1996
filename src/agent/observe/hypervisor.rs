//! Which libvirt and QEMU are installed: the controller asks when it connects.

use std::time::Duration;

use tokio::sync::{OnceCell, mpsc};

use crate::host::Root;
use crate::host::process::find_executable;
use crate::host::spawn::{Invocation, Spawner};

/// How long a program may take to tell its version.
const ANSWER: Duration = Duration::from_secs(2);

/// The versions, asked for once: a program is run for each.
#[derive(Debug)]
pub struct Hypervisor<S> {
    root: Root,
    spawner: S,
    versions: OnceCell<Versions>,
}

/// Versions of what is installed; empty where nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    /// libvirt's.
    pub libvirt: String,
    /// QEMU's.
    pub qemu: String,
}

impl<S: Spawner> Hypervisor<S> {
    /// Nothing is asked yet.
    pub fn new(root: &Root, spawner: S) -> Hypervisor<S> {
        Hypervisor { root: root.clone(), spawner, versions: OnceCell::new() }
    }

    /// The versions.
    pub async fn versions(&self) -> Versions {
        let ask = async || {
            let libvirt = self.version(&["libvirtd", "virtqemud"]);
            let qemu =
                self.version(&["qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm", "kvm"]);
            let (libvirt, qemu) = tokio::join!(libvirt, qemu);
            Versions { libvirt, qemu }
        };
        self.versions.get_or_init(ask).await.clone()
    }

    async fn version(&self, programs: &[&str]) -> String {
        let found = programs.iter().find_map(|name| find_executable(&self.root, name));
        let Some(program) = found else { return String::new() };
        let invocation = Invocation { program, args: vec!["--version".into()], env: Vec::new() };
        let (lines, _) = mpsc::channel(1);
        match self.spawner.run(invocation, ANSWER, lines).await {
            Ok(end) if end.code == Some(0) => version_in(&end.output),
            _ => String::new(),
        }
    }
}

/// The first word that looks like a version: digits with dots.
fn version_in(output: &str) -> String {
    output
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .unwrap_or_default()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn versions_are_found_in_what_the_programs_print() {
        let qemu = "QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022";
        assert_eq!(version_in(qemu), "7.2.17");
        assert_eq!(version_in("libvirtd (libvirt) 9.0.0\n"), "9.0.0");
        assert_eq!(version_in("nothing here"), "");
    }
}
