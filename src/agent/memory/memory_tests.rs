//! What becomes of pages that others take, on a machine of plain files: a pool has what was written to it last.
#![allow(clippy::disallowed_methods)] // the tests put files in place

use super::*;
use crate::host::Root;
use crate::model::pools::{PoolKey, pages_list};
use crate::model::units::NumaNode;
use crate::store::Durability;

const POOL: &str = "sys/devices/system/node/node0/hugepages/hugepages-2048kB";
const COMPACT: &str = "sys/devices/system/node/node0/compact";
const KEY: PoolKey = PoolKey { size: PageSize::MIB_2, node: NumaNode(0) };

struct Machine {
    root: tempfile::TempDir,
    work: MemoryWork,
}

impl Machine {
    /// A pool with `others` pages of somebody else, and so many that are reserved for the agent.
    fn with(others: u64, reserved: u64) -> Machine {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/sys/kernel/random/boot_id", "the-boot\n");
        write("proc/meminfo", "MemTotal: 99999999 kB\nMemAvailable: 99999999 kB\n");
        for name in ["nr_hugepages", "free_hugepages", "surplus_hugepages"] {
            write(&format!("{POOL}/{name}"), "0\n");
        }
        write(&format!("{POOL}/nr_hugepages"), &format!("{others}\n"));
        write(COMPACT, "");
        let store = Store::open(root.path().join("state"), root.path().join("run")).unwrap();
        let reservations = pages_list(&PagesByPool::from([(KEY, reserved)]));
        store.write(RESERVATIONS, &reservations, Durability::Disk).unwrap();
        let at = Root::new(root.path());
        let work = MemoryWork::new(
            MemoryObserver::new(&at).unwrap(),
            MemoryApplier::new(&at, MountPolicy::default()).unwrap(),
            PoolPolicy { retake: true, ..PoolPolicy::default() },
            MountPolicy::default(),
            store,
            ProgressSink::default(),
        );
        Machine { root, work: work.unwrap() }
    }

    /// A machine whose boot gave 60 pages of 100 that are reserved.
    fn short() -> Machine {
        let mut machine = Machine::with(0, 100);
        // The played kernel makes no surplus pages persistent.
        machine.set("surplus_hugepages", 40);
        assert_eq!(machine.work.restore().errors[0].code, Code::PagesShort);
        machine.set("surplus_hugepages", 0);
        machine.set("nr_hugepages", 60);
        machine
    }

    /// Whether the memory was compacted since that was asked last.
    fn was_compacted(&self) -> bool {
        let knob = self.root.path().join(COMPACT);
        let written = std::fs::read_to_string(&knob).unwrap();
        std::fs::write(knob, "").unwrap();
        !written.is_empty()
    }

    fn order(dry_run: bool) -> MemoryOrder {
        MemoryOrder {
            work: WorkId::next(),
            goal: PoolGoal::Free(Vec::new()),
            mounts: Vec::new(),
            keep_partial: false,
            dry_run,
            cancelled: Arc::default(),
        }
    }

    /// The pages of the agent's and the lost ones, as an agent would find them that came next.
    fn written(&self) -> (u64, u64) {
        let run = self.root.path();
        let store = Store::open(run.join("state"), run.join("run")).unwrap();
        let records = PageRecords::open(store, "the-boot".into(), PagesByPool::new()).unwrap();
        (records.ledger().grown(KEY), records.ledger().lost().get(&KEY).copied().unwrap_or(0))
    }

    fn set(&self, counter: &str, pages: u64) {
        std::fs::write(self.root.path().join(POOL).join(counter), format!("{pages}\n")).unwrap();
    }

    fn total(&self) -> u64 {
        let knob = std::fs::read_to_string(self.root.path().join(POOL).join("nr_hugepages"));
        knob.unwrap().trim().parse().unwrap()
    }

    fn restore(&mut self) {
        assert_eq!(self.work.restore().errors, []);
    }

    /// Looks twice: at a change, and at a pool that stays as it is.
    fn look(&mut self) {
        assert_eq!((self.work.look().errors, self.work.look().errors), (vec![], vec![]));
    }

    /// Pages that are reported as lost.
    fn lost(&self) -> String {
        let finding = self.work.publishes().borrow().ledger.finding();
        let text = finding.map_or(String::new(), |finding| finding.text);
        text.split(['(', ')']).nth(1).unwrap_or_default().to_string()
    }

    fn wanted(&self) -> u64 {
        self.work.publishes().borrow().wanted.get(&KEY).copied().unwrap_or(0)
    }

    fn give_back(&mut self, keep: u64) {
        let report = self.work.reclaim(ReclaimOrder { keep, ..ReclaimOrder::default() });
        assert_eq!(report.errors, []);
    }
}

#[test]
fn a_give_back_gives_up_only_the_lost_pages_that_it_would_not_keep() {
    let mut machine = Machine::with(10, 100);
    machine.restore();
    machine.set("nr_hugepages", 10);
    machine.work.look();
    assert_eq!((machine.lost().as_str(), machine.wanted()), ("100 of node0/2M", 100));
    machine.give_back(200);
    assert_eq!((machine.lost().as_str(), machine.wanted()), ("100 of node0/2M", 100));
    machine.set("free_hugepages", 5);
    machine.give_back(65);
    assert_eq!((machine.lost().as_str(), machine.wanted()), ("60 of node0/2M", 60));
    machine.give_back(0);
    assert_eq!((machine.lost().as_str(), machine.wanted()), ("", 0));
}

#[test]
fn a_give_back_keeps_what_a_restore_could_not_take() {
    let mut machine = Machine::with(0, 100);
    machine.give_back(512);
    assert_eq!(machine.wanted(), 100);
    machine.give_back(0);
    assert_eq!(machine.wanted(), 0);
}

#[test]
fn a_give_back_keeps_what_others_have_put_back_for_the_next_boot() {
    let mut machine = Machine::with(10, 100);
    machine.restore();
    machine.set("nr_hugepages", 0);
    machine.work.look();
    machine.set("nr_hugepages", 4096);
    machine.look();
    machine.give_back(60);
    assert_eq!((machine.lost().as_str(), machine.wanted(), machine.total()), ("", 60, 4096));
}

#[test]
fn pages_that_others_put_back_are_not_taken_on_top() {
    let mut machine = Machine::with(10, 100);
    machine.restore();
    assert_eq!(machine.total(), 110);
    for (taken, put, lost) in [(10, 110, ""), (0, 4096, ""), (60, 110, "")] {
        machine.set("nr_hugepages", taken);
        machine.work.look();
        assert_ne!(machine.lost(), "", "{taken}");
        machine.set("nr_hugepages", put);
        machine.look();
        machine.restore();
        assert_eq!((machine.total(), machine.lost().as_str()), (put, lost));
    }
    machine.give_back(0);
    assert_eq!(machine.total(), 110, "they are not the agent's");
}

#[test]
fn of_pages_that_others_put_back_in_part_the_rest_is_taken_again() {
    let mut machine = Machine::with(10, 100);
    machine.restore();
    machine.set("nr_hugepages", 0);
    machine.work.look();
    machine.set("nr_hugepages", 70);
    machine.look();
    assert_eq!((machine.total(), machine.lost().as_str()), (110, ""));
    machine.look();
    machine.restore();
    assert_eq!((machine.total(), machine.wanted()), (110, 100));
    machine.set("nr_hugepages", 0);
    machine.look();
    assert_eq!(machine.total(), 100, "what is lost is taken again, and no page of others");
}

#[test]
fn what_the_boot_came_short_of_stays_wanted_when_others_put_pages_back() {
    let mut machine = Machine::short();
    machine.set("nr_hugepages", 0);
    machine.work.look();
    machine.set("nr_hugepages", 10);
    machine.work.look();
    machine.restore();
    assert_eq!(machine.total(), 100);
}

#[test]
fn released_pages_are_never_reported_as_lost() {
    let mut machine = Machine::with(150, 50);
    machine.restore();
    machine.set("nr_hugepages", 170);
    machine.work.look();
    machine.set("free_hugepages", 20);
    let published = machine.work.publishes();
    let (tells, watched) = channel();
    let most = std::thread::spawn(move || {
        let mut most = 0;
        while published.has_changed().is_ok() {
            most = most.max(published.borrow().ledger.lost().values().sum());
            let _ = tells.send(());
        }
        most
    });
    watched.recv().unwrap();
    machine.give_back(0);
    assert_eq!((machine.total(), machine.lost().as_str(), machine.wanted()), (150, "", 0));
    drop(machine);
    assert_eq!(most.join().unwrap(), 30);
}

#[test]
fn a_loss_that_another_order_notices_is_written_down() {
    for dry_run in [true, false] {
        let mut machine = Machine::with(10, 100);
        machine.restore();
        machine.work.catch_up();
        machine.set("nr_hugepages", 10);
        let order = Machine::order(dry_run);
        assert_eq!(machine.work.plan_at_once(&order), None, "it takes a write to a file");
        assert_eq!(machine.work.prepare(&order).errors, []);
        machine.work.catch_up();
        machine.set("nr_hugepages", 110);
        assert_eq!(machine.written(), (0, 100), "dry run: {dry_run}");
    }
}

#[test]
fn a_loss_that_another_order_notices_is_taken_again_only_once_the_pools_stay() {
    let mut machine = Machine::with(10, 100);
    machine.restore();
    machine.look();
    machine.set("nr_hugepages", 10);
    machine.work.prepare(&Machine::order(false));
    machine.work.look();
    assert_eq!(machine.total(), 10);
    machine.work.look();
    assert_eq!(machine.total(), 110);
}

#[test]
fn lost_pages_that_cannot_be_had_are_tried_again_only_when_the_pools_changed() {
    let mut machine = Machine::with(10, 100);
    machine.restore();
    machine.set("surplus_hugepages", 40);
    for lowered in [50, 60] {
        machine.set("nr_hugepages", lowered);
        machine.work.look();
        assert!(!machine.was_compacted());
        assert_eq!(machine.work.look().errors[0].code, Code::PagesShort);
        assert!(machine.was_compacted());
        machine.work.catch_up();
        machine.look();
        assert!(!machine.was_compacted(), "it was in vain");
        assert_ne!(machine.lost(), "");
    }
}

#[test]
fn a_look_takes_again_what_was_lost_and_not_what_the_boot_came_short_of() {
    let mut machine = Machine::short();
    machine.set("nr_hugepages", 0);
    machine.look();
    assert_eq!((machine.total(), machine.lost().as_str(), machine.wanted()), (60, "", 100));
    machine.restore();
    assert_eq!(machine.total(), 100);
}

#[test]
fn lost_pages_that_could_not_be_had_are_taken_again_when_they_go_once_more() {
    let mut machine = Machine::with(10, 100);
    machine.restore();
    machine.set("surplus_hugepages", 40);
    machine.set("nr_hugepages", 50);
    machine.work.look();
    assert_eq!(machine.work.look().errors[0].code, Code::PagesShort);
    let left = machine.total();
    machine.set("surplus_hugepages", 0);
    machine.set("nr_hugepages", left - 40);
    machine.look();
    assert_eq!(machine.total(), left - 40, "the same pools");
    machine.restore();
    assert_eq!(machine.total(), 110);
    machine.set("nr_hugepages", left - 40);
    machine.work.look();
    assert_eq!(machine.total(), left - 40);
    machine.work.look();
    assert_eq!(machine.total(), 110);
}

#[test]
fn mount_for_guests_that_fails_is_a_finding_and_the_needed_one_is_tried() {
    let mut machine = Machine::with(10, 0);
    let write = |path: &str, text: &str| {
        let path = machine.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("proc/self/mountinfo", "");
    write("proc/meminfo", "MemTotal: 99999999 kB\nHugepagesize: 1048576 kB\n");
    // No folder can be made below a file.
    write("file", "");
    let [path_1g, path_2m] = ["/file/1g", "/file/2m"].map(str::to_string);
    machine.work.mount = MountPolicy { path_1g, path_2m, ..MountPolicy::default() };
    let mut report = PartReport::default();
    let needed = machine.work.mount(PageSize::MIB_2, false, &mut report).unwrap_err();
    assert!(needed.text.contains("/file/2m"), "{needed}");
    let [finding] = report.findings.as_slice() else { panic!("{report:?}") };
    assert_eq!(finding.code, Code::DefaultPagesUnmounted);
    assert!(
        finding.text.contains("/file/1g") && finding.text.contains("pages of 2M"),
        "{finding:?}"
    );
    assert_eq!(report.steps.len(), 2, "{report:?}");
}
