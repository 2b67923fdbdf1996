//! `vhost-agent deploy` and `destroy`.

use anyhow::Result;
use clap::{Args, ValueEnum};
use hyper::Method;

use super::agent_client::{Agent, NodeRoot};
use super::render::{ProgressBars, print_prepare};
use super::{Output, Usage, exit};
use crate::api::v1::targets::TargetBody;
use crate::config::Settings;
use crate::model::cgroup::CgroupParent;
use crate::model::path::CleanPath;
use crate::model::prepare::PrepareReport;
use crate::model::target::{TargetKind, TargetName, TargetSpec};

/// Kind of target.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    /// ZBS's vhost
    Zbs,
    /// SPDK's vhost
    Spdk,
    /// The agent's own, in an image that it builds itself
    BuiltIn,
}

/// Name and spec of a target.
#[derive(Debug, Args)]
pub(super) struct DeployArgs {
    /// Name of the target and of its container
    #[arg(default_value = "zbs-vhost")]
    name: TargetName,
    /// Kind of target [default: the setting target.kind]
    #[arg(long, value_name = "KIND")]
    kind: Option<KindArg>,
    /// Image of the container
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// Tar file that holds the image
    #[arg(long, value_name = "FILE")]
    image_tar: Option<CleanPath>,
    /// URL of such a tar file, http or https
    #[arg(long, value_name = "URL")]
    image_url: Option<String>,
    /// SHA-256 of that file, in hex
    #[arg(long, value_name = "DIGEST")]
    image_sha256: Option<String>,
    /// CPUs of the target, such as [6,7], 6-7 or 0xc0
    #[arg(long, value_name = "LIST", conflicts_with = "core_count")]
    cores: Option<String>,
    /// Number of CPUs, chosen by topology
    #[arg(long, value_name = "N")]
    core_count: Option<u32>,
    /// Folder of the vhost sockets
    #[arg(long, value_name = "DIR")]
    socket_dir: Option<CleanPath>,
    /// Path of the control socket
    #[arg(long, value_name = "FILE")]
    control_sock: Option<CleanPath>,
    /// Hugepages of the target, in MiB [default: the setting target.memory_mib, or the need of its volumes]
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Cgroup parent of the container, such as zstone.vhost.slice [default: the setting target.cgroup_parent]
    #[arg(long, value_name = "NAME")]
    cgroup_parent: Option<CgroupParent>,
    /// Replace an existing target that differs
    #[arg(long)]
    recreate: bool,
    /// Proceed with virtual machines connected: their disks stop meanwhile
    #[arg(long)]
    force: bool,
    /// Show what would be done; changes nothing
    #[arg(long)]
    dry_run: bool,
}

impl DeployArgs {
    fn body(&self) -> TargetBody {
        let kind = self.kind.map(|kind| match kind {
            KindArg::Zbs => TargetKind::Zbs,
            KindArg::Spdk => TargetKind::Spdk,
            KindArg::BuiltIn => TargetKind::BuiltIn,
        });
        TargetBody {
            kind,
            image: self.image.clone(),
            image_tar: self.image_tar.clone(),
            image_url: self.image_url.clone(),
            image_sha256: self.image_sha256.clone(),
            cores: self.cores.clone(),
            core_count: self.core_count,
            socket_dir: self.socket_dir.clone(),
            control_sock: self.control_sock.clone(),
            client_conf: None,
            memory_mib: self.memory_mib,
            cgroup_parent: self.cgroup_parent.clone(),
        }
    }
}

/// Action on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Deploy,
    Destroy,
}

impl DeployArgs {
    /// `true` if only the plan is requested.
    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Refuses an impossible spec before anything is done for it. Permission to name its values is checked by the
    /// agent, which knows the desired state.
    pub(super) fn validate(&self, settings: &Settings) -> Result<(), Usage> {
        self.spec(settings).map(drop)
    }

    /// Spec of a new target.
    pub(super) fn spec(&self, settings: &Settings) -> Result<TargetSpec, Usage> {
        let spec = self.body().into_spec(self.name.clone(), &settings.target);
        spec.map_err(|fault| Usage(fault.text))
    }

    pub(super) fn name(&self) -> &TargetName {
        &self.name
    }

    /// Chooses the built-in target if no image is configured or named; returns a note of the choice, if one was made.
    /// One core is enough then, which a small machine has too.
    pub(super) fn or_built_in(&mut self, settings: &Settings) -> Option<String> {
        let defaults = &settings.target;
        let said = self.kind.is_some()
            || self.image.is_some()
            || self.image_tar.is_some()
            || self.image_url.is_some();
        if said || defaults.image().is_some() || defaults.kind == TargetKind::BuiltIn {
            return None;
        }
        self.kind = Some(KindArg::BuiltIn);
        let mut text =
            "no image is configured (target.image) or named (--image): the built-in target \
                        is taken"
                .to_string();
        if self.cores.is_none() && self.core_count.is_none() {
            self.core_count = Some(1);
            text += ", with one core (--core-count)";
        }
        Some(text)
    }

    /// Sends the request to the agent.
    pub(super) async fn carried_out(
        &self,
        verb: Verb,
        agent: &Agent,
        bars: &ProgressBars,
    ) -> Result<PrepareReport> {
        let DeployArgs { name, dry_run, recreate, force, .. } = self;
        let path = format!("/v1/targets/{name}?dryRun={dry_run}&recreate={recreate}&force={force}");
        let method = match verb {
            Verb::Deploy => Method::PUT,
            Verb::Destroy => Method::DELETE,
        };
        let body = self.body();
        agent.report(method, &path, &body, |progress| bars.show(progress)).await
    }
}

pub(super) async fn run(
    place: NodeRoot,
    args: DeployArgs,
    verb: Verb,
    output: Output,
) -> Result<u8> {
    args.validate(&place.settings)?;
    let bars = ProgressBars::new(output, args.dry_run);
    let agent = if args.dry_run { place.looker().await? } else { place.owner().await? };
    let report = args.carried_out(verb, &agent, &bars).await?;
    bars.clear();
    print_prepare(&report, output)?;
    Ok(exit::of(report.outcome))
}
