//! `/v1/reservations`: pages that are kept free for guests that are about to start or to arrive.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::super::audit::{AuditedCall, AuditedChange, Subject};
use super::super::body;
use super::super::errors::Problem;
use super::SharedV1;
use super::pools::{page_size, size_fields};
use super::prepare::{nodes_of, placement};
use crate::model::access::Principal;
use crate::model::code::Code;
use crate::model::pools::{PoolPages, PoolWant};
use crate::model::reservation::{
    Reservation, ReservationName, ReservationRequest, ReservationState,
};

/// Upper bound on the entries in `memory`: a guest has few NUMA nodes and page sizes.
const MOST_ENTRIES: usize = 64;
/// Lease of a request that names none, in seconds.
const LEASE_SECONDS: u32 = 300;
/// Longest lease, in seconds: a day.
const MOST_LEASE_SECONDS: u32 = 86_400;

/// Pages of one size for a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryBody {
    /// Size of a page, in MiB; this or `size_kib` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// Size of a page, in KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_kib: Option<u64>,
    pub pages: u64,
    /// NUMA nodes that supply the pages, in any split; any node if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<u32>>,
}

impl From<&PoolWant> for MemoryBody {
    fn from(want: &PoolWant) -> MemoryBody {
        let (size_mib, size_kib) = size_fields(want.size);
        MemoryBody { size_mib, size_kib, pages: want.pages, nodes: nodes_of(&want.placement) }
    }
}

/// Request to reserve pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReservationBody {
    pub name: String,
    #[serde(deserialize_with = "body::objects")]
    pub memory: Option<Vec<MemoryBody>>,
    /// Duration of the lease; 300 if omitted.
    #[serde(default)]
    pub lease_seconds: Option<u32>,
    /// Set if the guest arrives by migration.
    #[serde(default)]
    pub arrival: bool,
}

impl TryFrom<ReservationBody> for ReservationRequest {
    type Error = Problem;

    fn try_from(body: ReservationBody) -> Result<ReservationRequest, Problem> {
        let lease_seconds = body.lease_seconds.unwrap_or(LEASE_SECONDS);
        if !(1..=MOST_LEASE_SECONDS).contains(&lease_seconds) {
            let text =
                format!("leaseSeconds {lease_seconds} is not between 1 and {MOST_LEASE_SECONDS}");
            return Err(invalid(text));
        }
        let memory = body.memory.unwrap_or_default();
        if !(1..=MOST_ENTRIES).contains(&memory.len()) {
            return Err(invalid(format!("memory must have between 1 and {MOST_ENTRIES} entries")));
        }
        let wants = memory.into_iter().map(want);
        Ok(ReservationRequest {
            name: body.name.parse().map_err(Problem::of)?,
            wants: wants.collect::<Result<_, _>>()?,
            lease_seconds,
            arrival: body.arrival,
        })
    }
}

fn want(entry: MemoryBody) -> Result<PoolWant, Problem> {
    let Some(size) = page_size(entry.size_mib, entry.size_kib)? else {
        return Err(invalid("an entry of memory names no page size: sizeMib or sizeKib"));
    };
    if entry.pages == 0 {
        return Err(invalid("an entry of memory has 0 pages"));
    }
    let placement = placement(entry.nodes)?;
    Ok(PoolWant { size, pages: entry.pages, placement, move_shortfall: false })
}

fn invalid(text: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidReservation, text.into())
}

/// Reservation in wire form.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReservationView {
    name: ReservationName,
    /// Pages as requested.
    memory: Vec<MemoryBody>,
    /// Pages by pool.
    pools: Vec<PoolPages>,
    arrival: bool,
    /// `open` or `claimed`.
    state: &'static str,
    /// Process that has the pages, if it is known.
    pid: Option<u32>,
    /// End of the lease, in RFC 3339; `None` once a known process has the pages.
    expires_at: Option<String>,
}

impl From<Reservation> for ReservationView {
    fn from(it: Reservation) -> ReservationView {
        let holder = it.holder();
        ReservationView {
            memory: it.wants.iter().map(MemoryBody::from).collect(),
            state: match it.state {
                ReservationState::Open => "open",
                ReservationState::Claimed(_) => "claimed",
            },
            pid: holder.map(|holder| holder.pid),
            expires_at: holder.is_none().then_some(it.lease.until),
            name: it.name,
            pools: it.pages,
            arrival: it.arrival,
        }
    }
}

/// Reservations of the node.
#[derive(Debug, Serialize)]
struct Reservations {
    reservations: Vec<ReservationView>,
}

/// Reserves pages, or extends the lease of a reservation of the same pages.
pub async fn post(
    State(api): State<SharedV1>,
    by: Extension<Principal>,
    body: Body,
) -> Result<Response, Problem> {
    let bytes = body::read(body, api.http).await?;
    let request: ReservationRequest = body::parse::<ReservationBody>(&bytes)?.try_into()?;
    drop(bytes);
    let call = AuditedCall::begins(audited("reserve", by.0, &request.name), None);
    let made = api.pools.reserve(request).await;
    call.ends(made.as_ref().err());
    let (made, is_new) = made.map_err(Problem::of)?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(ReservationView::from(made))).into_response())
}

/// Lists the reservations.
pub async fn list(State(api): State<SharedV1>) -> Response {
    let all = api.pools.records().ledger.reservations.into_iter();
    Json(Reservations { reservations: all.map(ReservationView::from).collect() }).into_response()
}

/// Shows one reservation.
pub async fn get(
    State(api): State<SharedV1>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let name: ReservationName = name.parse().map_err(Problem::of)?;
    let found = api.pools.records().ledger.reservations.into_iter().find(|it| it.name == name);
    let unknown =
        || Problem::new(Code::ReservationUnknown, format!("there is no reservation {name}"));
    Ok(Json(ReservationView::from(found.ok_or_else(unknown)?)).into_response())
}

/// Process that has the pages of a reservation.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ClaimBody {
    /// Pid of the guest's process, after whose exit the pages are given back. Without one the reservation lasts until it
    /// is deleted or its lease ends.
    pid: Option<u32>,
}

/// Records that the guest of a reservation has its pages.
pub async fn claim(
    State(api): State<SharedV1>,
    Path(name): Path<String>,
    by: Extension<Principal>,
    body: Body,
) -> Result<Response, Problem> {
    let name: ReservationName = name.parse().map_err(Problem::of)?;
    let bytes = body::read(body, api.http).await?;
    let ClaimBody { pid } = body::parse(&bytes)?;
    let call = AuditedCall::begins(audited("claim", by.0, &name), None);
    let claimed = api.pools.claim(name, pid).await;
    call.ends(claimed.as_ref().err());
    Ok(Json(ReservationView::from(claimed.map_err(Problem::of)?)).into_response())
}

/// Releases a reservation; its pages are given back as far as the agent grew them and nobody needs them.
pub async fn delete(
    State(api): State<SharedV1>,
    Path(name): Path<String>,
    by: Extension<Principal>,
) -> Result<StatusCode, Problem> {
    let name: ReservationName = name.parse().map_err(Problem::of)?;
    let call = AuditedCall::begins(audited("release", by.0, &name), None);
    let released = api.pools.release(name).await;
    call.ends(released.as_ref().err());
    released.map(|_| StatusCode::NO_CONTENT).map_err(Problem::of)
}

/// Change of a reservation, for the audit log.
fn audited(route: &'static str, by: Principal, name: &ReservationName) -> AuditedChange {
    let of = Subject { request: Some(format!("reservation {name}")), ..Subject::default() };
    AuditedChange { of, ..AuditedChange::of(route, by) }
}
