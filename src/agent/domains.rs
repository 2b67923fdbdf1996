//! Virtual machines that libvirt knows, with the findings on their next start; concurrent callers share one observation.

use std::sync::Arc;
use std::time::Duration;

use super::memory::Published;
use super::observe::libvirt::DomainObserver;
use super::pools::Pools;
use super::shared_runs::SharedRuns;
use crate::model::code::Code;
use crate::model::domain::DomainStatus;
use crate::model::fault::Fault;
use crate::plan::domains::{Supply, statuses};

/// Time for an observation: libvirt's files may be on a disk that hangs.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// Handle of the observer of virtual machines.
#[derive(Debug, Clone)]
pub struct Domains {
    observer: DomainObserver,
    pools: Pools,
    runs: Arc<SharedRuns<(), Arc<Vec<DomainStatus>>>>,
}

impl Domains {
    pub fn new(observer: DomainObserver, pools: Pools) -> Domains {
        Domains { observer, pools, runs: Arc::new(SharedRuns::new(1, LOOK_TIME)) }
    }

    /// Virtual machines with a vhost-user disk or hugepages, by name.
    ///
    /// # Errors
    /// `node-busy` if the observation takes too long, and its own faults.
    pub async fn list(&self) -> Result<Arc<Vec<DomainStatus>>, Fault> {
        let (observer, records) = (self.observer.clone(), self.pools.records());
        let look = async move { look(observer, records).await.map(Arc::new) };
        self.runs.share((), LOOK_TIME, look).await.unwrap_or_else(|_| {
            let text = format!(
                "libvirt's definitions of virtual machines were not read within {LOOK_TIME:?}: the disk with /etc/libvirt hangs \
                 perhaps"
            );
            Err(Fault::new(Code::NodeBusy, text))
        })
    }
}

async fn look(observer: DomainObserver, records: Published) -> Result<Vec<DomainStatus>, Fault> {
    let seen = observer.look().await?;
    let reservations = records.ledger.reservations.iter();
    let supply = Supply {
        pools: seen.pools.without(&records.kept_free()),
        mounts: seen.mounts,
        reservations: reservations.map(|it| it.name.to_string()).collect(),
    };
    Ok(statuses(seen.domains, &supply))
}
