//! The agent's own files, as a crash, a full disk or a hand may have left them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_agent::cli::state::items::{StateItem, look};
use vhost_agent::controller::identity::Identities;
use vhost_agent::controller::outbox::reread;
use vhost_agent::host::partial::Notes;
use vhost_agent::model::ledger::Ledger;
use vhost_agent::model::pools::PoolsSeen;
use vhost_agent::plan::retry::Failures;
use vhost_agent::store::{Durability, Store};
use vhost_agent::targets::desired::DesiredTargets;
use vhost_agent_fuzz::{Tree, files, is_one_part};

fuzz_target!(|input: &[u8]| {
    let tree = Tree::of(input);
    files(input).for_each(|(_, bytes)| alone(bytes));
    let store = Store::open(tree.path(), tree.path().join("run")).expect("a folder");
    // A file may lie where a folder has to be: that is told, and the agent does not start.
    let Ok(kept) = look(&store, StateItem::admit) else { return };
    for (name, item) in &kept.items {
        assert!(name.split('/').all(is_one_part) && item.name() == *name);
        assert_eq!(StateItem::read(name, &item.value()).as_ref(), Ok(item));
        assert_eq!(StateItem::admit(name, &item.value()).as_ref(), Ok(item));
        let _ = item.shown();
    }
    let Ok(wanted) = DesiredTargets::open(store.clone(), &Default::default()) else { return };
    let wanted = wanted.watch().borrow().clone();
    for name in wanted.targets.keys() {
        assert!(tree.path().join(format!("targets/{name}.json")).is_file());
    }
    for (target, volumes) in &wanted.volumes {
        for name in volumes.keys() {
            assert!(tree.path().join(format!("volumes/{target}/{name}.json")).is_file());
        }
    }
    let _ = Identities::open(store.clone());
    // What could not be used was set aside, and is not met again.
    let again = DesiredTargets::open(store, &Default::default()).expect("the disk does not fail");
    assert_eq!(*again.watch().borrow(), wanted);
});

/// Files that are read one by one.
fn alone(bytes: &[u8]) {
    if let Ok([as_it_is, broken_off]) = reread(bytes) {
        let [again, _] = reread(&as_it_is).expect("what is written is read");
        assert_eq!(again, as_it_is);
        assert!(reread(&broken_off).is_ok());
    }
    if let Ok(mut ledger) = serde_json::from_slice::<Ledger>(bytes) {
        ledger.reconcile(&PoolsSeen::default());
        let _ = (ledger.by_pool(), ledger.sizes(), ledger.finding());
    }
    if let Ok(failures) = serde_json::from_slice::<Failures>(bytes) {
        let written = serde_json::to_vec(&failures).expect("it can be written");
        assert_eq!(serde_json::from_slice(&written).ok(), Some(failures));
    }
    let _ = serde_json::from_slice::<Notes>(bytes);
    let _ = Durability::Disk;
}
