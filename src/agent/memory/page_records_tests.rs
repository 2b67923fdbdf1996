use super::*;
use crate::model::units::NumaNode;

fn key(node: u32) -> PoolKey {
    PoolKey { size: PageSize::MIB_2, node: NumaNode(node) }
}

fn open(dir: &tempfile::TempDir, boot: &str) -> PageRecords {
    let store = Store::open(dir.path(), dir.path()).unwrap();
    PageRecords::open(store, boot.to_string(), PagesByPool::new()).unwrap()
}

fn pool(node: u32, total: u64) -> Pool {
    Pool { key: key(node), total, free: 0, surplus: 0 }
}

fn resized(node: u32, from: u64, to: u64) -> Resized {
    Resized { before: pool(node, from), after: pool(node, to) }
}

#[test]
fn a_restore_that_came_out_short_does_not_make_the_node_forget() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = open(&dir, "first");
    records.grew(&resized(1, 0, 1024)).unwrap();
    records.remember().unwrap();
    let mut records = open(&dir, "second");
    assert_eq!(records.ledger().grown(key(1)), 0);
    records.grew(&resized(1, 0, 300)).unwrap();
    records.grew(&resized(0, 0, 1)).unwrap();
    records.remember().unwrap();
    let records = open(&dir, "third");
    assert_eq!(*records.reservations(), PagesByPool::from([(key(0), 1), (key(1), 1024)]));
}

#[test]
fn a_growth_that_a_crash_kept_from_being_remembered_is_remembered_later() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir, "boot").grew(&resized(0, 0, 7)).unwrap();
    let mut records = open(&dir, "boot");
    assert!(!records.publishes().borrow().remembered);
    records.remember().unwrap();
    assert!(records.publishes().borrow().remembered);
    assert_eq!(*open(&dir, "next").reservations(), PagesByPool::from([(key(0), 7)]));
}

#[test]
fn a_growth_that_got_all_its_pages_is_known_after_a_crash_before_and_after_the_file_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = open(&dir, "boot");
    records.begin(Intent { pool: key(0), from: 5, to: 105, temporary: false }).unwrap();
    records.grew(&resized(0, 5, 105)).unwrap();
    assert_eq!(records.publishes().borrow().ledger.grown(key(0)), 100);
    let seen = PoolsSeen { pools: vec![pool(0, 105)], ..PoolsSeen::default() };
    let mut crashed = open(&dir, "boot");
    crashed.reconcile(&seen);
    assert_eq!(crashed.ledger().grown(key(0)), 100);
    records.catch_up();
    let written = open(&dir, "boot");
    assert_eq!((written.ledger().grown(key(0)), written.ledger().intent), (100, None));
}

#[test]
fn pages_of_a_growth_that_was_cut_off_half_way_are_nobodys() {
    for (there, left) in [(640, 0), (1335, 695), (1530, 0), (1600, 890), (512, 0)] {
        assert_eq!(unclaimed(640, 1530, there), left, "{there}");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut records = open(&dir, "boot");
    records.begin(Intent { pool: key(0), from: 640, to: 1530, temporary: false }).unwrap();
    let mut next = open(&dir, "boot");
    next.reconcile(&PoolsSeen { pools: vec![pool(0, 1335)], ..PoolsSeen::default() });
    assert_eq!((next.ledger().grown(key(0)), next.ledger().intent), (0, None));
}

#[test]
fn a_growth_that_came_out_short_is_in_the_file_before_its_caller_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = open(&dir, "boot");
    records.begin(Intent { pool: key(0), from: 0, to: 100, temporary: false }).unwrap();
    records.grew(&resized(0, 0, 60)).unwrap();
    assert_eq!(open(&dir, "boot").ledger().grown(key(0)), 60);
}

#[test]
fn lost_pages_are_known_to_the_next_agent_until_they_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = open(&dir, "boot");
    records.grew(&resized(0, 0, 100)).unwrap();
    records.remember().unwrap();
    let seen = PoolsSeen { pools: vec![pool(0, 40)], ..PoolsSeen::default() };
    assert_eq!(records.catch_up_with(&seen), Ok(()));
    let mut records = open(&dir, "boot");
    assert_eq!((records.ledger().grown(key(0)), records.ledger().lost()[&key(0)]), (40, 60));
    assert_eq!(records.reservations()[&key(0)], 100, "the next boot takes them");
    records.lower(|key| key.node == NumaNode(1), &PagesByPool::new()).unwrap();
    assert_eq!(records.ledger().lost().len(), 1, "of another pool");
    records.lower(|key| key.node == NumaNode(0), &PagesByPool::new()).unwrap();
    let records = open(&dir, "boot");
    assert_eq!((records.ledger().lost().len(), records.reservations()[&key(0)]), (0, 40));
}

#[test]
fn giving_back_lowers_what_the_next_boot_takes() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = open(&dir, "boot");
    records.grew(&resized(0, 0, 100)).unwrap();
    records.grew(&resized(1, 0, 100)).unwrap();
    records.remember().unwrap();
    records.gave_back(&resized(0, 100, 40), false).unwrap();
    records.gave_back(&resized(1, 100, 40), false).unwrap();
    records.lower(|key| key.node == NumaNode(0), &PagesByPool::new()).unwrap();
    let wanted = PagesByPool::from([(key(0), 40), (key(1), 100)]);
    assert_eq!(*open(&dir, "next").reservations(), wanted);
}

#[test]
fn pages_that_somebody_took_away_are_not_counted_twice_when_they_are_grown_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = open(&dir, "boot");
    // 5000 pages of somebody else are there too.
    records.grew(&resized(0, 5000, 6024)).unwrap();
    records.reconcile(&PoolsSeen { pools: vec![pool(0, 5000)], ..PoolsSeen::default() });
    records.grew(&resized(0, 5000, 6024)).unwrap();
    assert_eq!(records.ledger().grown(key(0)), 1024);
}
