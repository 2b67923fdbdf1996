//! Requests for the volumes of a target: activate, deactivate, resize, observe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::super::now;
use super::super::volume_statuses::VolumeObservation;
use super::super::worker::Worker;
use super::calls::view;
use super::{ObservedVolumes, Pass, place_of};
use crate::agent::apply::volumes::Unanswered;
use crate::agent::observe::volumes::VolumesLocation;
use crate::docker::Containers;
use crate::model::bounds::{Paths, authorize_volume, paths_of_volume};
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::path::CleanPath;
use crate::model::target::TargetSpec;
use crate::model::volume::{
    Backing, VolumeKey, VolumeName, VolumeSpec, VolumeSpecs, VolumeState, VolumeView,
};
use crate::plan::volumes::{
    holds_another, may_resize, one_writer_each, take_away, used_by_another,
};

impl<C: Containers> Worker<C> {
    /// Desired volumes of the target that a call names; none if the call names another control socket than the desired
    /// one.
    fn wanted_in(&self, target: &TargetSpec) -> Arc<VolumeSpecs> {
        let wanted = self.parts.desired.get(self.name());
        match wanted.is_some_and(|wanted| wanted.control_sock != target.control_sock) {
            true => Arc::default(),
            false => self.parts.desired.volumes(self.name()),
        }
    }

    /// Makes volumes desired, tries to make them serve, and returns their status.
    ///
    /// `undo` marks a call of the controller, which cannot set whether a volume is read-only or has CPUs of its own. A
    /// known volume keeps these two settings.
    pub(in crate::targets) async fn activate(
        &mut self,
        mut volumes: Vec<VolumeSpec>,
        undo: bool,
    ) -> Result<Vec<VolumeView>, Fault> {
        let Some(target) = self.parts.desired.get(self.name()) else {
            let text = format!("no target {} is wanted: deploy it first", self.name());
            return Err(Fault::new(Code::TargetUnknown, text));
        };
        let before = self.parts.desired.volumes(self.name());
        for spec in volumes.iter_mut().filter(|_| undo) {
            if let Some(known) = before.get(&spec.name) {
                (spec.read_only, spec.cpumask) = (known.read_only, known.cpumask.clone());
            }
        }
        let validated = volumes.into_iter().map(|spec| spec.validate(&target.socket_dir));
        let volumes: Vec<VolumeSpec> = validated.collect::<Result<_, _>>()?;
        self.authorize_bounds(&volumes, &before).await?;
        no_conflict(&volumes, &before)?;
        let new = volumes.iter().filter(|spec| before.get(&spec.name) != Some(*spec));
        self.one_writer_each(&new.cloned().collect::<Vec<_>>()).await?;
        self.parts.desired.want_volumes(self.name(), &volumes).await?;
        self.reconcile_volumes_if_due().await;
        let done = match self.is_in_place() {
            true => self.pass(volumes.clone(), Pass::ASKED).await,
            false => Err(self.not_serving()),
        };
        if let Err(fault) = &done {
            self.not_looked_at(&volumes, fault);
        }
        self.passed = None;
        let views = volumes.iter().map(|spec| {
            let mut view =
                self.read_statuses(|statuses| view(self.name(), spec, statuses.statuses()));
            // Earlier observations say nothing of a target that cannot be asked now.
            if let Err(fault) = &done
                && view.status.state != VolumeState::Pending
            {
                view.status.state = VolumeState::Degraded;
                view.status.reason = fault.text.clone();
                view.status.since = crate::targets::now();
            }
            view
        });
        let views: Vec<VolumeView> = views.collect();
        let is_made = |view: &VolumeView| {
            matches!(view.status.state, VolumeState::Serving | VolumeState::Stuck)
        };
        if undo && let Some(failed) = views.iter().find(|view| !is_made(view)) {
            let fault = Fault::new(Code::VolumeNotServing, failed.status.reason.clone());
            let new = volumes.iter().filter(|spec| !before.contains_key(&spec.name));
            let new: Vec<VolumeSpec> = new.cloned().collect();
            return Err(match done {
                Ok(passed) => self.undo(new, &passed.before, fault).await,
                Err(fault) => self.undo(new, &ObservedVolumes::new(), fault).await,
            });
        }
        Ok(views)
    }

    /// Refuses new or changed volumes whose files, with links followed, are outside of the bounds for callers.
    async fn authorize_bounds(
        &self,
        volumes: &[VolumeSpec],
        known: &VolumeSpecs,
    ) -> Result<(), Fault> {
        let settings = &self.parts.policy.target;
        let is_new = |spec: &&VolumeSpec| known.get(&spec.name) != Some(*spec);
        let new = || volumes.iter().filter(is_new);
        let paths: Vec<CleanPath> = new().flat_map(|it| paths_of_volume(it, settings)).collect();
        let links = self.parts.volume_observer.links(paths).await;
        let paths = Paths::Followed(&links);
        new().try_for_each(|spec| authorize_volume(spec, known.get(&spec.name), settings, paths))
    }

    /// Refuses volumes that write to the same file as another volume, even by another path.
    async fn one_writer_each(&self, new: &[VolumeSpec]) -> Result<(), Fault> {
        let desired = self.parts.desired.watch().borrow().clone();
        let paths = |spec: &VolumeSpec| spec.writes_to().map(str::to_string);
        let identities = match new.iter().any(|spec| paths(spec).is_some()) {
            true => {
                let others = desired.volumes.values().flat_map(|volumes| volumes.values());
                let all = others.chain(new).filter_map(paths).collect();
                self.parts.volume_observer.identities(all).await
            }
            false => BTreeMap::new(),
        };
        let is_one = |one: &str, other: &str| {
            one == other
                || identities.get(one).is_some_and(|known| Some(known) == identities.get(other))
        };
        one_writer_each(self.name(), new, &desired, is_one)
    }

    fn not_serving(&self) -> Fault {
        let why =
            self.status.health().map_or("it was not looked at yet".to_string(), |it| it.reason);
        let text = format!("the target {} does not serve yet: {why}", self.name());
        Fault::new(Code::TargetNotServing, text)
    }

    /// Notes that the target did not answer: these volumes keep their status, and new ones are pending.
    fn not_looked_at(&mut self, volumes: &[VolumeSpec], fault: &Fault) {
        let Some(place) = self.place() else { return };
        let look = VolumeObservation {
            now: Instant::now().into_std(),
            at: now(),
            sockets: &place.sockets,
            stuck_after: self.parts.policy.volumes.stuck_after,
            remade: None,
        };
        let wanted = self.parts.desired.volumes(self.name());
        self.status.change(|known| {
            known.volumes.keep(&wanted, &look);
            for spec in volumes {
                known.volumes.waits(&spec.name, &fault.text, &look);
            }
            known.next_pass = Some(Instant::now());
        });
    }

    /// Takes away the `volumes` of a failed activation, and forgets them. Returns `fault`, to which a failure of that
    /// is added. Parts that existed `before` the activation stay. A volume that could not be taken away stays desired:
    /// a virtual machine may be connected by now.
    async fn undo(
        &mut self,
        volumes: Vec<VolumeSpec>,
        before: &ObservedVolumes,
        mut fault: Fault,
    ) -> Fault {
        let looked_at = |spec: &&VolumeSpec| before.contains_key(&spec.name);
        let made: Vec<VolumeSpec> = volumes.iter().filter(looked_at).cloned().collect();
        let mut kept = BTreeMap::new();
        if let Some(place) = self.place().filter(|_| !made.is_empty()) {
            let removed = self.remove(&place, &made, before).await;
            let lives = self.status.health().is_some_and(|health| health.pid.is_some());
            kept = match removed {
                Ok(kept) => kept,
                // The target has ended, and its volumes with it.
                Err(left) if left.code == Code::TargetAbsent && !lives => BTreeMap::new(),
                Err(left) => made.iter().map(|spec| (spec.name.clone(), left.clone())).collect(),
            };
        }
        let gone = volumes.iter().map(|spec| &spec.name).filter(|name| !kept.contains_key(*name));
        let gone: Vec<VolumeName> = gone.cloned().collect();
        let forgotten = self.parts.desired.forget_volumes(self.name(), &gone).await;
        if let Some(left) = kept.into_values().next().or(forgotten.err()) {
            fault.text += &format!(
                "; what was made of it could not be taken away again and stays wanted, so deactivate it: {left}"
            );
        } else if made.len() < volumes.len() {
            fault.text += "; nobody could look whether something was made of it: activate it again";
        }
        self.forgotten();
        fault
    }

    /// Takes volumes away, and makes them no longer desired. Those that could not be taken away stay desired.
    pub(in crate::targets) async fn deactivate(
        &mut self,
        target: &TargetSpec,
        keys: &[VolumeKey],
    ) -> Result<(), Fault> {
        let (place, wanted) = (place_of(target), self.wanted_in(target));
        let volumes: Vec<VolumeSpec> = keys.iter().filter_map(|key| find(&wanted, key)).collect();
        let kept = match self.remove(&place, &volumes, &ObservedVolumes::new()).await {
            // The target has ended, and its volumes with it.
            Err(fault) if fault.code == Code::TargetAbsent && !self.lives(target) => {
                BTreeMap::new()
            }
            kept => kept?,
        };
        let gone = volumes.iter().map(|spec| &spec.name).filter(|name| !kept.contains_key(*name));
        let gone: Vec<VolumeName> =
            gone.filter(|name| wanted.contains_key(*name)).cloned().collect();
        self.parts.desired.forget_volumes(self.name(), &gone).await?;
        self.forgotten();
        self.passed = None;
        let Some((first, mut fault)) = kept.iter().next().map(|(name, it)| (name, it.clone()))
        else {
            return Ok(());
        };
        let more = match kept.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        fault.text = format!("{first}{more} is not taken away: {}", fault.text);
        Err(fault)
    }

    /// `true` if the target that a call names is known to have a process.
    fn lives(&mut self, target: &TargetSpec) -> bool {
        let wanted = self.parts.desired.get(self.name());
        let same = wanted.is_none_or(|wanted| wanted.control_sock == target.control_sock);
        same && self.status.health().is_some_and(|health| health.pid.is_some())
    }

    /// Takes volumes out of the target, except parts that existed `before`. Returns the volumes that stay, with the
    /// reasons.
    ///
    /// # Errors
    /// When the target does not answer; some volumes may be taken out then.
    async fn remove(
        &mut self,
        place: &VolumesLocation,
        volumes: &[VolumeSpec],
        before: &ObservedVolumes,
    ) -> Result<BTreeMap<VolumeName, Fault>, Fault> {
        if volumes.is_empty() {
            return Ok(BTreeMap::new());
        }
        let parts = self.parts.clone();
        let look = parts.volume_observer.look_around(place, volumes);
        let seen = self.unless_stuck(look).await??;
        let (mut plans, mut kept) = (Vec::new(), BTreeMap::new());
        let wanted = parts.desired.volumes(self.name());
        for spec in volumes {
            let mut known = before.get(&spec.name).cloned().unwrap_or_default();
            // A bdev that has the volume's name, and holds something else, is not removed.
            if seen.get(&spec.name).is_some_and(|seen| holds_another(spec, seen)) {
                known.bdev = known.bdev.or_else(|| seen.get(&spec.name)?.bdev.clone());
            }
            if let Some(used) = seen.get(&spec.name).and_then(used_by_another) {
                // A volume that was never the agent's is not reported gone while it is there.
                if !wanted.contains_key(&spec.name) {
                    kept.insert(spec.name.clone(), used);
                    continue;
                }
                tracing::warn!(
                    target_name = %self.name(), volume = %spec.name, bdev = %spec.bdev,
                    "volume {} is removed, but its bdev {} is kept: {used}", spec.name, spec.bdev
                );
            }
            match seen.get(&spec.name).map_or(Ok(Vec::new()), |seen| take_away(seen, &known)) {
                Ok(steps) if steps.is_empty() => {}
                Ok(steps) => plans.push((spec.clone(), steps)),
                Err(fault) => drop(kept.insert(spec.name.clone(), fault)),
            }
        }
        let none = Unanswered::default();
        let applied = parts.volume_applier.apply(place, plans, &none);
        kept.extend(self.unless_stuck(applied).await?);
        Ok(kept)
    }

    /// Removes volumes that are no longer desired from the ledger.
    fn forgotten(&self) {
        let wanted = self.parts.desired.volumes(self.name());
        self.status.change(|known| known.volumes.drop_unwanted(&wanted));
    }

    pub(in crate::targets) async fn resize(
        &mut self,
        target: &TargetSpec,
        key: &VolumeKey,
        size_mib: u64,
    ) -> Result<VolumeView, Fault> {
        let place = place_of(target);
        let Some(spec) = find(&self.wanted_in(target), key) else {
            return Err(Fault::new(Code::VolumeUnknown, "no such volume is wanted"));
        };
        let parts = self.parts.clone();
        let look = parts.volume_observer.look(&place, std::slice::from_ref(&spec));
        let seen = self.unless_stuck(look).await??.remove(&spec.name).unwrap_or_default();
        may_resize(&spec, &seen, size_mib)?;
        let sized = parts.volume_applier.resize(&place, &spec, size_mib);
        self.unless_stuck(sized).await??;
        if let Some(resized) = resized(&spec, size_mib) {
            // If the spec holds the size, the volume is made with the new size from now on.
            self.parts.desired.want_volumes(self.name(), &[resized]).await?;
        }
        Ok(self.read_statuses(|statuses| view(self.name(), &spec, statuses.statuses())))
    }

    /// Observes the volumes for a caller, unless the last pass is younger than `max_age`. Volumes that are not as
    /// desired are reconciled by that, too.
    pub(in crate::targets) async fn look_at_volumes(&mut self) {
        let max_age = self.parts.policy.health.max_age;
        if self.is_in_place() && self.passed.is_none_or(|at| at.elapsed() >= max_age) {
            self.status.change(|known| known.next_pass = Some(Instant::now()));
            self.reconcile_volumes_if_due().await;
        }
    }
}

/// Volume that `key` names: with its desired spec, or with an assumed one if it is not desired.
fn find(wanted: &VolumeSpecs, key: &VolumeKey) -> Option<VolumeSpec> {
    // Volumes that somebody else made before this agent came are ZBS's.
    let unknown = |name: &VolumeName, bdev: &VolumeName| VolumeSpec {
        name: name.clone(),
        bdev: bdev.clone(),
        backing: Backing::Zbs { path: String::new() },
        read_only: false,
        cpumask: None,
    };
    match key {
        VolumeKey::Name(name) => wanted.get(name).cloned(),
        VolumeKey::Bdev(bdev) => {
            let of_bdev = wanted.values().find(|spec| spec.bdev == *bdev).cloned();
            Some(of_bdev.unwrap_or_else(|| unknown(bdev, bdev)))
        }
        VolumeKey::Both { name, bdev } => {
            Some(wanted.get(name).cloned().unwrap_or_else(|| unknown(name, bdev)))
        }
    }
}

/// Spec of a resized volume, if the spec holds its size.
fn resized(spec: &VolumeSpec, size_mib: u64) -> Option<VolumeSpec> {
    let Backing::Raw { params, .. } = &spec.backing else { return None };
    let block = params.get("block_size").and_then(serde_json::Value::as_u64).unwrap_or(512);
    let mut resized = spec.clone();
    if let Backing::Raw { params, .. } = &mut resized.backing {
        let blocks = params.get_mut("num_blocks")?;
        *blocks = (size_mib.saturating_mul(1 << 20) / block.max(1)).into();
    }
    Some(resized)
}

/// Refuses to turn a volume into another one, or to make a bdev twice.
fn no_conflict(new: &[VolumeSpec], wanted: &VolumeSpecs) -> Result<(), Fault> {
    let mut names = BTreeSet::new();
    let mut of_bdev: BTreeMap<&VolumeName, &VolumeSpec> =
        wanted.values().map(|spec| (&spec.bdev, spec)).collect();
    for spec in new {
        if !names.insert(&spec.name) {
            let text = format!("{} is named twice", spec.name);
            return Err(Fault::new(Code::InvalidBody, text));
        }
        let same = wanted.get(&spec.name);
        if same.is_some_and(|it| it.bdev != spec.bdev || it.backing != spec.backing) {
            return Err(Fault::new(
                Code::VolumeConflict,
                format!(
                    "a volume {} is wanted already and is kept in something else: deactivate that one \
                     first, or use another name",
                    spec.name
                ),
            ));
        }
        let other = of_bdev.insert(&spec.bdev, spec).filter(|other| other.name != spec.name);
        if let Some(other) = other {
            let text = format!(
                "the bdev {} of {} is the volume {}'s already: use another name",
                spec.bdev, spec.name, other.name
            );
            return Err(Fault::new(Code::BdevBelongsToAnother, text));
        }
    }
    Ok(())
}
