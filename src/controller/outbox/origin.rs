//! Whose place a call takes, and of which kind it is: each kind has bounds of its own, and nobody alone may
//! fill one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::caller::Caller;

/// Where a call comes from, as far as the bounds look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// Whether it can change the node; a flood of those that only look takes no place of these.
    pub(super) changes: bool,
    /// Whose it is.
    pub(super) party: Party,
}

/// Who shares one share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    /// Whoever calls on this node itself.
    Node,
    /// An address.
    V4(Ipv4Addr),
    /// A network of 64 bits: a machine can take any address in its own (RFC 4291, 2.5.4).
    V6(Ipv6Addr),
    /// Callers of whom it was not noted who they are.
    Unknown,
}

impl Origin {
    /// The origin of a call.
    pub(super) fn new(changes: bool, caller: Option<Caller>) -> Origin {
        let party = match caller {
            None => Party::Unknown,
            Some(caller) if caller.is_local() => Party::Node,
            Some(Caller::At(IpAddr::V4(address))) => Party::V4(address),
            Some(Caller::At(IpAddr::V6(address))) => {
                Party::V6((address.to_bits() & (u128::MAX << 64)).into())
            }
            Some(Caller::Here) => Party::Node,
        };
        Origin { changes, party }
    }

    /// Its kind, as a refusal has it.
    pub(super) fn kind(self) -> &'static str {
        if self.changes { "calls that change the node" } else { "calls that only look" }
    }
}

/// What one party may have of a bound: three quarters, rounded up, so that others find room and a bound of one
/// is one.
pub(super) fn share(bound: usize) -> usize {
    (bound * 3).div_ceil(4)
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Party::Node => f.write_str("this node itself"),
            Party::V4(address) => address.fmt(f),
            Party::V6(network) => write!(f, "{network}/64"),
            Party::Unknown => f.write_str("a caller that is not known"),
        }
    }
}
