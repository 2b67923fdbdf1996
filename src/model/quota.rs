//! Quota of one client. Of each shared resource (connections, slots, tasks, results, attempts), one client gets at most
//! three quarters, so that there is always room for others.
//!
//! The node itself, which calls over the Unix socket, has no quota, because the mode of the socket restricts its users.
//! A loopback address has one like any other address: everybody on the node can call from it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::caller::Caller;

/// Client to which a quota applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QuotaClient {
    /// The node itself, over the Unix socket.
    Node,
    V4(Ipv4Addr),
    /// IPv6 network of 64 bits, because a machine can take any address in its own network (RFC 4291, 2.5.4).
    V6(Ipv6Addr),
    /// Callers whose identity was not recorded.
    Unknown,
}

impl QuotaClient {
    /// Number out of `all` that the client may have at one time: all for the node itself, else three quarters, rounded
    /// up.
    pub fn quota(self, all: usize) -> usize {
        match self {
            QuotaClient::Node => all,
            QuotaClient::V4(_) | QuotaClient::V6(_) | QuotaClient::Unknown => all - all / 4,
        }
    }
}

impl From<Caller> for QuotaClient {
    fn from(caller: Caller) -> QuotaClient {
        match caller {
            Caller::Here => QuotaClient::Node,
            Caller::At(IpAddr::V4(address)) => QuotaClient::V4(address),
            Caller::At(IpAddr::V6(address)) => {
                QuotaClient::V6((address.to_bits() & (u128::MAX << 64)).into())
            }
        }
    }
}

impl From<Option<Caller>> for QuotaClient {
    fn from(caller: Option<Caller>) -> QuotaClient {
        caller.map_or(QuotaClient::Unknown, QuotaClient::from)
    }
}

impl fmt::Display for QuotaClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuotaClient::Node => f.write_str("this node itself"),
            QuotaClient::V4(address) => address.fmt(f),
            QuotaClient::V6(network) => write!(f, "{network}/64"),
            QuotaClient::Unknown => f.write_str("a caller that is not known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(caller: &str) -> QuotaClient {
        caller.parse::<Caller>().unwrap().into()
    }

    #[test]
    fn clients_are_addresses_networks_of_ipv6_and_the_unix_socket() {
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff::9"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("127.0.0.1"), client("local"));
        assert_ne!(QuotaClient::from(None), client("local"));
        assert_eq!(client("fd00::9").to_string(), "fd00::/64");
    }

    #[test]
    fn one_client_leaves_a_quarter_and_a_bound_of_one_is_one() {
        let quota = |all| client("127.0.0.1").quota(all);
        assert_eq!([1, 2, 3, 4, 8, 3072].map(quota), [1, 2, 3, 3, 6, 2304]);
        assert_eq!(client("local").quota(4), 4);
    }
}
