//! Observation of what a target needs of the machine: files, CPUs, free pages.

use std::collections::BTreeMap;

use super::blocking;
use crate::host::cgroup_parent::CgroupParent;
use crate::host::engine_process::engine_process;
use crate::host::leftovers::left_pages;
use crate::host::pools::{PoolFiles, hugepages_of};
use crate::host::{
    HostError, Root, cpu_users, cpus, cpuset, daemon_json, mounts, own_image, socket_place,
};
use crate::model::cpu::{Cpu, CpuUse};
use crate::model::engine_options::{EngineOptions, config_file};
use crate::model::fault::Fault;
use crate::model::mounts::HugetlbMount;
use crate::model::policy::EnginePolicy;
use crate::model::pools::Pool;
use crate::model::target::TargetSpec;
use crate::model::units::{NumaNode, PageSize};

/// Facts read from files.
pub(super) struct FileFacts {
    pub(super) built_in_image: String,
    pub(super) has_client_conf: bool,
    pub(super) huge_dir: Option<String>,
    pub(super) cpus: Vec<Cpu>,
    pub(super) socket_obstacle: Option<String>,
    pub(super) socket_doubt: Option<String>,
    pub(super) has_volume_sockets: bool,
}

/// Pages of 2 MiB that a target may take.
#[derive(Default)]
pub(super) struct PagesForTarget {
    pub(super) free_pages: BTreeMap<NumaNode, u64>,
    pub(super) returning_pages: u64,
}

/// Observes the users of the CPUs except the target's own process `own`: a target gives its CPUs back before it is
/// recreated.
pub(super) async fn cpu_use(
    root: &Root,
    engine: &EnginePolicy,
    own: Option<u32>,
) -> Result<CpuUse, Fault> {
    let (root, engine) = (root.clone(), engine.clone());
    let look = move || CpuUse {
        containers: cpuset::of_containers(&root, &cgroup_parent(&root, &engine)),
        holders: cpu_users::holders(&root, own),
        ..CpuUse::default()
    };
    blocking(look).await
}

/// Group of the engine's containers, by the options of the running engine.
fn cgroup_parent(root: &Root, policy: &EnginePolicy) -> CgroupParent {
    let args = engine_process(root, policy).map(|process| process.args).unwrap_or_default();
    let file = daemon_json::read(root, &config_file(&args, &policy.daemon_json));
    CgroupParent::new(None, &EngineOptions::new(&args, &file))
}

/// Counts free pages of 2 MiB, unless the target takes none (`wanted` is 0). A pool that cannot be read is no reason to
/// refuse the target.
pub(super) async fn pages_for_target(
    root: &Root,
    wanted: u64,
    huge_dir: Option<String>,
    own: Option<u32>,
) -> PagesForTarget {
    let root = root.clone();
    let look = move || -> Result<PagesForTarget, HostError> {
        let small = |pool: &Pool| pool.key.size == PageSize::MIB_2;
        let pools = PoolFiles::find(&root)?.read_all()?.into_iter().filter(small);
        let mut free_pages: BTreeMap<NumaNode, u64> =
            pools.map(|pool| (pool.key.node, pool.free)).collect();
        // The pages of the process `own` come back before its successor takes any.
        for (node, pages) in own.map(|pid| hugepages_of(&root, pid)).unwrap_or_default() {
            *free_pages.entry(node).or_default() += pages;
        }
        // `left_pages` scans all processes, so it is called only if no node has enough free pages.
        let returning_pages = match free_pages.values().all(|free| *free < wanted) {
            true => huge_dir.map_or(Ok(0), |folder| left_pages(&root, &folder))?,
            false => 0,
        };
        Ok(PagesForTarget { free_pages, returning_pages })
    };
    match wanted {
        0 => PagesForTarget::default(),
        _ => blocking(look).await.ok().and_then(Result::ok).unwrap_or_default(),
    }
}

/// Reads facts on the target's needs from files.
pub(super) async fn file_facts(
    root: &Root,
    spec: &TargetSpec,
    socket_uid: u32,
) -> Result<FileFacts, Fault> {
    let (root, conf) = (root.clone(), spec.client_conf.clone());
    let (folder, control) = (spec.socket_dir.clone(), spec.control_sock.clone());
    blocking(move || {
        let has_volume_sockets = socket_place::has_volumes(&root, folder.as_str());
        let mounts = mounts::hugetlb_mounts(&root)?;
        let usable = |mount: &&HugetlbMount| mount.is_good_for(PageSize::MIB_2);
        Ok(FileFacts {
            built_in_image: own_image::reference().unwrap_or_default(),
            has_client_conf: conf.is_some_and(|path| root.path(path.as_str()).is_file()),
            huge_dir: mounts.iter().find(usable).map(|mount| mount.path.clone()),
            cpus: cpus::cpus(&root)?,
            socket_obstacle: socket_place::obstacle(&root, folder.as_str(), control.as_str()),
            socket_doubt: socket_place::doubt(&root, folder.as_str(), socket_uid),
            has_volume_sockets,
        })
    })
    .await?
}
