//! Check of the role that a route requires of its caller, before its handler runs. The roles are in the route tables,
//! in `api` and `api::v1`; a few handlers check further.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::future::Either;
use tower::{Layer, Service};

use super::errors::Problem;
use crate::model::access::{Principal, Role};
use crate::model::code::Code;
use crate::model::fault::Fault;

/// Layer of routes that require a role.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequiredRole(Role);

/// Layer that requires `role` of the callers of its routes.
pub(super) fn wants(role: Role) -> RequiredRole {
    RequiredRole(role)
}

/// Checks that the caller of `request` has `role`. A request that no listener has authorized has no caller and is
/// refused.
///
/// # Errors
/// `role-insufficient`; `internal` if the request has no caller.
pub(super) fn authorize(request: &Request, role: Role) -> Result<(), Fault> {
    let principal = request.extensions().get::<Principal>();
    let nobody = || Fault::new(Code::Internal, "the caller was not authorized: report this");
    principal.ok_or_else(nobody)?.may(role)
}

impl<S> Layer<S> for RequiredRole {
    type Service = Judging<S>;

    fn layer(&self, inner: S) -> Judging<S> {
        Judging { inner, role: self.0 }
    }
}

/// Service that checks its callers.
#[derive(Debug, Clone)]
pub(super) struct Judging<S> {
    inner: S,
    role: Role,
}

impl<S> Service<Request> for Judging<S>
where
    S: Service<Request, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match authorize(&request, self.role) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(fault) => Either::Right(ready(Ok(Problem::of(fault).into_response()))),
        }
    }
}
