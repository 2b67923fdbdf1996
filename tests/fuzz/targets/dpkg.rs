//! dpkg's records of what is installed half-way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_agent::host::{Root, dpkg};
use vhost_agent_fuzz::Tree;

fuzz_target!(|input: &[u8]| {
    let tree = Tree::of(input);
    let root = Root::new(tree.path());
    let anew = dpkg::wanted_anew(&root);
    assert!(anew.windows(2).all(|pair| pair[0] < pair[1]), "each once");
    // They become arguments of the package manager.
    for name in anew {
        assert!(!name.is_empty() && !name.starts_with('-'), "{name}");
        assert!(!name.contains(|c: char| c.is_whitespace() || c.is_control()), "{name}");
    }
    let _ = dpkg::half_installed(&root, &[vec!["docker.io".into(), "containerd".into()]]);
});
