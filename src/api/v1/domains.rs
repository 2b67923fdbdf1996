//! `GET /v1/domains`: virtual machines that libvirt knows.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::super::errors::Problem;
use super::SharedV1;
use super::reservations::MemoryBody;
use crate::model::domain::DomainStatus;
use crate::model::fault::Finding;
use crate::model::guest::Reconnect;

/// Virtual machine in wire form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainView {
    pub name: String,
    /// `None` if its definition cannot be read.
    pub uuid: Option<String>,
    /// Pid of its QEMU, if it runs.
    pub pid: Option<u32>,
    /// Hugepages that it takes at its next start.
    pub memory: Vec<MemoryBody>,
    /// vhost-user disks of its definition.
    pub disks: Vec<DiskView>,
    /// Findings on its next start.
    pub findings: Vec<Finding>,
}

/// vhost-user disk in wire form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskView {
    pub socket_path: String,
    pub reconnect_seconds: Reconnect,
}

/// Virtual machines of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainsView {
    pub domains: Vec<DomainView>,
}

impl From<&DomainStatus> for DomainView {
    fn from(status: &DomainStatus) -> DomainView {
        let domain = status.domain.as_ref();
        let disks = domain.into_iter().flat_map(|it| &it.vhost_user_disks).map(|disk| DiskView {
            socket_path: disk.socket.clone(),
            reconnect_seconds: disk.reconnect,
        });
        DomainView {
            name: status.name.clone(),
            uuid: domain.map(|it| it.uuid.clone()),
            pid: status.pid,
            memory: domain.into_iter().flat_map(|it| &it.hugepages).map(MemoryBody::from).collect(),
            disks: disks.collect(),
            findings: status.findings.clone(),
        }
    }
}

/// Lists virtual machines with a vhost-user disk or hugepages.
pub async fn list(State(api): State<SharedV1>) -> Result<Json<DomainsView>, Problem> {
    let statuses = api.domains.list().await.map_err(Problem::of)?;
    Ok(Json(DomainsView { domains: statuses.iter().map(DomainView::from).collect() }))
}
