//! Activating volumes by one PUT of a list, until all of them serve, against the same requests pipelined raw
//! on the control socket in windows of 64, without and with a durable file for each volume, which has to be
//! there before the answer; and the same PUT once more, which finds everything in place.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use vhost_agent::store::Store;

use crate::agent::{Agent, EngineUse};
use crate::figures::{Samples, millis, print_aim, print_comparison, print_ratio};
use crate::target::{FOLDER, NAME, Raw, Target};

/// Volumes, and how often so many are activated.
const COUNTS: [(usize, usize); 3] = [(1, 15), (100, 11), (1000, 7)];
/// Memory of a target that has room for the largest number of volumes of 1 MiB.
pub(crate) const MEMORY_MIB: usize = 1100;
/// Requests on their way at the same time.
const WINDOW: usize = 64;
/// Where the volumes are.
pub(crate) const PATH: &str = "/v1/targets/agent-bench/volumes";

/// What volumes are kept in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind<'a> {
    Malloc,
    /// Files in that folder, which the target sees too.
    Aio(&'a Path),
}

impl Kind<'_> {
    fn name(self) -> &'static str {
        match self {
            Kind::Malloc => "malloc",
            Kind::Aio(_) => "aio",
        }
    }

    fn backing(self, volume: &str) -> Value {
        match self {
            Kind::Malloc => json!({"kind": "malloc", "sizeMib": 1, "blockSize": 512}),
            Kind::Aio(folder) => {
                json!({"kind": "aio", "path": folder.join(volume), "blockSize": 512})
            }
        }
    }

    /// What makes the bdev of a volume.
    fn creation(self, volume: &str) -> (&'static str, Value) {
        match self {
            Kind::Malloc => {
                let params = json!({"name": volume, "num_blocks": 2048, "block_size": 512});
                ("bdev_malloc_create", params)
            }
            Kind::Aio(folder) => {
                let filename = folder.join(volume);
                let params = json!({"name": volume, "filename": filename, "block_size": 512});
                ("bdev_aio_create", params)
            }
        }
    }
}

pub(crate) fn run(engine: EngineUse) -> Result<()> {
    println!("activating volumes by one PUT");
    if engine == EngineUse::LeftAlone {
        println!("  SKIPPED: it is measured with a real engine, and there is none to be had here");
        return Ok(());
    }
    let (agent, _) = Agent::start(engine)?;
    let mut target = Target::deploy_with(&agent, MEMORY_MIB)?;
    let files = files(COUNTS.iter().map(|(count, _)| *count).max().unwrap_or_default())?;
    for kind in [Kind::Malloc, Kind::Aio(files.path())] {
        let mut each = Vec::new();
        for (count, rounds) in COUNTS {
            let (figure, floor) = measure(&agent, &mut target, kind, count, rounds)?;
            each.push((figure.div_f64(count as f64), floor.div_f64(count as f64)));
        }
        if let [_, (few, few_floor), (many, many_floor)] = each.as_slice() {
            let (grown, floor) =
                (many.div_duration_f64(*few), many_floor.div_duration_f64(*few_floor));
            let figure = format!("{grown:.2} x one of 100, of the floor {floor:.2} x");
            let met = grown <= 1.2 * floor.max(1.0);
            print_aim("one of 1000 volumes takes", &figure, "within 20 % of the floor's", met);
        }
    }
    Ok(())
}

/// Files of 1 MiB that a target sees, named as the volumes.
fn files(count: usize) -> Result<TempDir> {
    let folder = tempfile::tempdir_in(FOLDER)?;
    for name in names(count) {
        File::create(folder.path().join(name))?.set_len(1 << 20)?;
    }
    Ok(folder)
}

fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("volume-{number}"))
}

/// Returns the middle durations of an activation and of its floor with files.
fn measure(
    agent: &Agent,
    target: &mut Target,
    kind: Kind<'_>,
    count: usize,
    rounds: usize,
) -> Result<(Duration, Duration)> {
    let mut http = agent.connect()?;
    let body = list(kind, count);
    let mut floor = Floor::new(kind, count)?;
    let (mut first, mut again, mut looks) = <(Samples, Samples, Samples)>::default();
    // In turn first and last: a file system gives away anew only later what was deleted just now, and
    // who comes last searches longer.
    for turn in 0..2 * rounds {
        // With its volumes.
        target.delete()?;
        target.put()?;
        if matches!(turn % 4, 0 | 3) {
            floor.once()?;
            continue;
        }
        for samples in [&mut first, &mut again] {
            all_serve(&samples.time(|| http.get_done("PUT", PATH, &body))?.body, count)?;
        }
        let mut raw = Raw::connect()?;
        looks
            .time(|| raw.call("bdev_get_bdevs").and_then(|()| raw.call("vhost_get_controllers")))?;
    }
    println!("  {count} {} volumes", kind.name());
    first.print("a PUT of all");
    let each = first.median().div_f64(count as f64);
    println!("  {:<34} {} of a volume", "", millis(each));
    floor.raw.print("floor: the same requests, raw");
    floor.both.print("floor: and the durable files");
    print_comparison("a PUT, without the files", &first, &floor.raw);
    print_ratio("a PUT", &first, &floor.both, 2.0);
    again.print("the same PUT again");
    looks.print("floor: two raw questions for all");
    print_comparison("the same PUT again", &again, &looks);
    Ok((first.median(), floor.both.median()))
}

/// The body of a PUT of so many volumes.
pub(crate) fn list(kind: Kind<'_>, count: usize) -> String {
    let volume = |name: String| json!({"name": name, "backing": kind.backing(&name)});
    json!({"volumes": names(count).map(volume).collect::<Vec<_>>()}).to_string()
}

/// Whether so many volumes are told to serve.
pub(crate) fn all_serve(body: &[u8], count: usize) -> Result<()> {
    let text = std::str::from_utf8(body)?;
    match text.matches(r#""state":"serving""#).count() {
        serving if serving == count => Ok(()),
        serving => {
            let shown: String = text.chars().take(1000).collect();
            bail!("{serving} of {count} volumes of {NAME} serve: {shown}")
        }
    }
}

/// Makes the volumes without the agent.
pub(crate) fn make_raw(kind: Kind<'_>, count: usize) -> Result<()> {
    Raw::connect()?.pipelined(&requests(kind, count), WINDOW)
}

/// The bdev of each volume and then its controller.
fn requests(kind: Kind<'_>, count: usize) -> Vec<String> {
    let request = |method: &str, params: Value| {
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string()
    };
    let of_one = |name: String| {
        let (method, params) = kind.creation(&name);
        let controller = json!({"ctrlr": name, "dev_name": name, "readonly": false});
        [request(method, params), request("vhost_create_blk_controller", controller)]
    };
    names(count).flat_map(of_one).collect()
}

/// What an activation cannot do without.
struct Floor {
    requests: Vec<String>,
    files: Vec<(String, Value)>,
    disk: Store,
    _state: TempDir,
    raw: Samples,
    both: Samples,
}

impl Floor {
    fn new(kind: Kind<'_>, count: usize) -> Result<Floor> {
        let state = tempfile::tempdir()?;
        let file = |name: String| {
            let spec = json!({"name": name, "bdev": name, "backing": kind.backing(&name), "readOnly": false});
            let entry = json!({"version": 1, "target": NAME, "spec": spec});
            (format!("volumes/{NAME}/{name}.json"), entry)
        };
        Ok(Floor {
            requests: requests(kind, count),
            files: names(count).map(file).collect(),
            disk: Store::open(state.path().join("disk"), state.path().join("run"))?,
            _state: state,
            raw: Samples::default(),
            both: Samples::default(),
        })
    }

    /// In a target that has no volumes.
    fn once(&mut self) -> Result<()> {
        let Floor { requests, files, disk, .. } = self;
        let began = std::time::Instant::now();
        Raw::connect()?.pipelined(requests, WINDOW)?;
        self.raw.push(began.elapsed());
        disk.write_all(files)?;
        self.both.push(began.elapsed());
        let names: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
        Ok(disk.remove_all(&names)?)
    }
}
