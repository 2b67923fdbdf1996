//! The document that `state import` reads, which may come from anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_agent::cli::state::document::{Document, import};
use vhost_agent::cli::state::kept::{Thing, look};
use vhost_agent::store::Store;
use vhost_agent_fuzz::{Tree, is_one_part};

fuzz_target!(|bytes: &[u8]| {
    let Ok(document) = Document::read(bytes) else { return };
    let written = serde_json::to_vec(&document).expect("it can be written");
    let _ = Document::read(&written).expect("what is exported can be imported");
    let Ok(things) = document.things() else { return };
    assert_eq!(things.len(), document.count());
    for (name, thing) in &things {
        assert!(name.split('/').all(is_one_part) && thing.name() == *name, "{name}");
    }
    // Each import is a few syncs; a handful of things shows what many would.
    if things.len() > 4 {
        return;
    }
    let tree = Tree::empty();
    let store = Store::open(tree.path().join("state"), tree.path().join("run")).expect("a folder");
    let imported = import(&store, &things, false).expect("nothing is in the way");
    assert_eq!(imported.written.len(), things.len());
    let kept = look(&store, Thing::admit).expect("the disk does not fail");
    assert!(kept.unusable.is_empty(), "{:?}", kept.unusable);
    assert!(kept.things.keys().eq(things.keys()));
    let again = import(&store, &kept.things, false).expect("it is the same");
    assert_eq!(again.same.len(), things.len());
});
