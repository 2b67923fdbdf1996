//! Observation of what a target needs of the machine: files, CPUs, free pages.

use std::collections::BTreeMap;

use super::blocking;
use crate::host::engine_process::engine_process;
use crate::host::leftovers::left_pages;
use crate::host::numa::NumaFiles;
use crate::host::parent_group::ParentGroup;
use crate::host::pools::{PoolFiles, hugepages_of};
use crate::host::{
    HostError, Root, cpu_users, cpus, cpuset, daemon_json, hugetlb_limit, mounts, own_image,
    socket_place,
};
use crate::model::cgroup::CgroupParent;
use crate::model::cpu::{Cpu, CpuUse};
use crate::model::engine_options::{EngineOptions, config_file};
use crate::model::fault::Fault;
use crate::model::mounts::HugetlbMount;
use crate::model::policy::{EnginePolicy, TargetPolicy};
use crate::model::pools::{PageLimit, Pool};
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
    /// Control group in which the engine will make the container's.
    pub(super) parent_group: ParentGroup,
}

/// Pages of 2 MiB that a target may take.
#[derive(Default)]
pub(super) struct PagesForTarget {
    pub(super) free_pages: BTreeMap<NumaNode, u64>,
    pub(super) returning_pages: u64,
    pub(super) limit: Option<PageLimit>,
}

/// Observes the users of the CPUs except the target's own process `own`: a target gives its CPUs back before it is
/// recreated.
pub(super) async fn cpu_use(
    root: &Root,
    parent: &ParentGroup,
    own: Option<u32>,
) -> Result<CpuUse, Fault> {
    let (root, parent) = (root.clone(), parent.clone());
    let look = move || -> Result<CpuUse, Fault> {
        let memory = cpuset::memory_of_containers(&root, &parent);
        Ok(CpuUse {
            containers: cpuset::of_containers(&root, &parent),
            memory_nodes: NumaFiles::find(&root)?.memory(memory.as_ref()),
            holders: cpu_users::holders(&root, own),
            ..CpuUse::default()
        })
    };
    blocking(look).await?
}

/// Control group of a container with the setting `named`, else of the engine's containers by the options of the running
/// engine.
pub(super) fn parent_group(
    root: &Root,
    policy: &EnginePolicy,
    named: Option<&CgroupParent>,
) -> ParentGroup {
    let args = engine_process(root, policy).map(|process| process.args).unwrap_or_default();
    let file = daemon_json::read(root, &config_file(&args, &policy.daemon_json));
    ParentGroup::new(named.map(CgroupParent::as_str), &EngineOptions::new(&args, &file))
}

/// Counts free pages of 2 MiB, unless the target takes none (`wanted` is 0). A pool that cannot be read is no reason to
/// refuse the target.
pub(super) async fn pages_for_target(
    root: &Root,
    parent: &ParentGroup,
    wanted: u64,
    huge_dir: Option<String>,
    own: Option<u32>,
) -> PagesForTarget {
    let (root, parent) = (root.clone(), parent.clone());
    let look = move || -> Result<PagesForTarget, HostError> {
        let small = |pool: &Pool| pool.key.size == PageSize::MIB_2;
        let pools = PoolFiles::find(&root)?.read_all()?.into_iter().filter(small);
        let mut free_pages: BTreeMap<NumaNode, u64> =
            pools.map(|pool| (pool.key.node, pool.free)).collect();
        // The pages of the process `own` come back before its successor takes any.
        let own_pages = own.map(|pid| hugepages_of(&root, pid)).unwrap_or_default();
        let limit = hugetlb_limit::of_containers(&root, &parent, PageSize::MIB_2).map(|limit| {
            let used = limit.used.saturating_sub(own_pages.values().sum());
            PageLimit { used, ..limit }
        });
        for (node, pages) in own_pages {
            *free_pages.entry(node).or_default() += pages;
        }
        // `left_pages` scans all processes, so it is called only if no node has enough free pages, or the limit leaves
        // too few.
        let is_limited = limit.as_ref().is_some_and(|limit| limit.left() < wanted);
        let returning_pages = match is_limited || free_pages.values().all(|free| *free < wanted) {
            true => huge_dir.map_or(Ok(0), |folder| left_pages(&root, &folder))?,
            false => 0,
        };
        Ok(PagesForTarget { free_pages, returning_pages, limit })
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
    policy: &TargetPolicy,
) -> Result<FileFacts, Fault> {
    let (root, conf) = (root.clone(), spec.client_conf.clone());
    let (engine, socket_uid) = (policy.registries.engine.clone(), policy.target.socket_uid);
    let named = spec.cgroup_parent.clone();
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
            parent_group: parent_group(&root, &engine, named.as_ref()),
        })
    })
    .await?
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the test puts files in place
mod tests {
    use super::*;

    #[tokio::test]
    async fn pages_of_the_replaced_process_do_not_count_against_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let map =
            "7f00 default file=/dev/hugepages2m/map_0 huge dirty=3 N0=3 kernelpagesize_kB=2048\n";
        for (path, text) in [
            ("/proc/7/numa_maps", map),
            ("/sys/fs/cgroup/system.slice/hugetlb.2MB.max", "20971520\n"),
            ("/sys/fs/cgroup/system.slice/hugetlb.2MB.current", "8388608\n"),
        ] {
            let path = root.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let left = async |wanted, own| {
            pages_for_target(&root, &ParentGroup::Default, wanted, None, own)
                .await
                .limit
                .map(|limit| limit.left())
        };
        assert_eq!((left(9, None).await, left(9, Some(7)).await), (Some(6), Some(9)));
        assert_eq!(left(0, None).await, None, "a target that takes no certain number");
    }
}
