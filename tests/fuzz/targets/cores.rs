//! Lists of processors: those of calls and settings, the kernel's, and those that targets take.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_agent::builtin::Cores;
use vhost_agent::host::files::parse_list;
use vhost_agent::model::cpu::CoreList;

/// A longer list prints and reads as a short one does, and takes its time.
const LONG: usize = 300;

fuzz_target!(|text: &str| {
    if let Ok(cores) = text.parse::<CoreList>() {
        assert!(!cores.as_slice().is_empty() && is_set(cores.as_slice()));
        assert!(cores.as_slice().len() <= 8192);
    }
    if let Some(cores) =
        text.parse::<CoreList>().ok().filter(|cores| cores.as_slice().len() <= LONG)
    {
        assert_eq!(cores.to_string().parse(), Ok(cores.clone()));
        assert_eq!(cores.for_spdk().parse(), Ok(cores.clone()));
        assert_eq!(parse_list(&cores.to_string()).as_deref(), Ok(cores.as_slice()));
        // What is handed to a target is what the target takes it for.
        if let Ok(taken) = cores.for_spdk().parse::<Cores>() {
            let taken: Vec<u32> = taken.numbers().iter().map(|core| *core as u32).collect();
            assert_eq!(taken, cores.as_slice());
        }
    }
    if let Ok(cores) = text.parse::<Cores>() {
        assert!(!cores.numbers().is_empty() && is_set(cores.numbers()));
        if cores.numbers().iter().all(|core| *core < 128) {
            assert_eq!(cores.to_string().parse(), Ok(cores));
        }
    }
    if let Ok(list) = parse_list(text) {
        assert!(is_set(&list) && list.len() <= 65_536);
        if list.len() > LONG {
            return;
        }
        let printed: Vec<String> = list.iter().map(u32::to_string).collect();
        assert_eq!(parse_list(&printed.join(",")), Ok(list));
    }
});

fn is_set<T: PartialOrd>(numbers: &[T]) -> bool {
    numbers.windows(2).all(|pair| pair[0] < pair[1])
}
