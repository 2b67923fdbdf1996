//! The document that `state import` reads, which may come from anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_agent::cli::state::document::{Document, import};
use vhost_agent::cli::state::items::{StateItem, look};
use vhost_agent::store::Store;
use vhost_agent_fuzz::{Tree, is_one_part};

fuzz_target!(|bytes: &[u8]| {
    let Ok(document) = Document::read(bytes) else { return };
    let written = serde_json::to_vec(&document).expect("it can be written");
    let _ = Document::read(&written).expect("what is exported can be imported");
    let Ok(items) = document.items() else { return };
    assert_eq!(items.len(), document.count());
    for (name, item) in &items {
        assert!(name.split('/').all(is_one_part) && item.name() == *name, "{name}");
    }
    // Each import is a few syncs; a handful of items shows what many would.
    if items.len() > 4 {
        return;
    }
    let tree = Tree::empty();
    let store = Store::open(tree.path().join("state"), tree.path().join("run")).expect("a folder");
    let imported = import(&store, &items, false).expect("nothing is in the way");
    assert_eq!(imported.written.len(), items.len());
    let kept = look(&store, StateItem::admit).expect("the disk does not fail");
    assert!(kept.unusable.is_empty(), "{:?}", kept.unusable);
    assert!(kept.items.keys().eq(items.keys()));
    let again = import(&store, &kept.items, false).expect("it is the same");
    assert_eq!(again.same.len(), items.len());
});
