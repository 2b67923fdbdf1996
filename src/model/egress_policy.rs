//! Egress policy: addresses that a URL supplied by a caller may lead to. Pure; names are resolved in `outgoing`, and
//! each address is authorized here.
//!
//! ```text
//! EgressPolicy (the setting) + caller ──▶ Reach ──each address──▶ connected to, or RefusedAddress with the reason
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::caller::Caller;
use super::network::Network;
use super::url::HttpUrl;

/// Value of the header `Via` in every request of an agent (RFC 9110, 7.6.3). Agents refuse requests with it, for no
/// agent calls another. Otherwise a URL that a caller supplied could lead to the agent itself, which counts as root
/// there, or to the agent of another node.
pub const VIA_AGENT: &str = "1.1 vhost-agent";

/// Allowed destinations of callbacks, reports and progress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EgressPolicy {
    /// Any address except link-local, multicast and cloud metadata. Loopback is allowed only to a caller on this node.
    #[default]
    Any,
    /// Only the address of the caller or of the connected controller.
    Callers,
    /// Only addresses in these networks, special ones and loopback included.
    To(Arc<[Network]>),
}

impl Serialize for EgressPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            EgressPolicy::Any => serializer.serialize_str("any"),
            EgressPolicy::Callers => serializer.serialize_str("callers"),
            EgressPolicy::To(networks) => serializer.collect_seq(networks.iter()),
        }
    }
}

impl<'de> Deserialize<'de> for EgressPolicy {
    // By hand, for the error of an untagged enum would only say that nothing fits.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EgressPolicy, D::Error> {
        struct ParsedOutgoing;
        impl<'de> Visitor<'de> for ParsedOutgoing {
            type Value = EgressPolicy;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"any\", \"callers\" or a list of networks such as [\"10.0.0.0/8\"]")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<EgressPolicy, E> {
                match text {
                    "any" => Ok(EgressPolicy::Any),
                    "callers" => Ok(EgressPolicy::Callers),
                    _ => Err(E::custom(format!(
                        "'{text}' is neither \"any\" nor \"callers\"; networks stand in a list: [\"10.0.0.0/8\"]"
                    ))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<EgressPolicy, A::Error> {
                let mut networks = Vec::new();
                while let Some(network) = seq.next_element::<Network>()? {
                    networks.push(network);
                }
                if networks.is_empty() {
                    return Err(A::Error::custom(
                        "the list names no network: nobody could be called back",
                    ));
                }
                Ok(EgressPolicy::To(networks.into()))
            }
        }
        deserializer.deserialize_any(ParsedOutgoing)
    }
}

impl EgressPolicy {
    /// Addresses to which a URL from `caller` may lead. `caller` is `None` if the origin of the URL is unknown;
    /// `controller` is the one that connected last.
    pub fn reach(&self, caller: Option<Caller>, controller: Option<Caller>) -> Reach {
        let local = |who: Option<Caller>| who.is_some_and(Caller::is_local);
        match self {
            EgressPolicy::Any => Reach::Common { loopback: local(caller) },
            EgressPolicy::Callers => {
                let address = |who: Option<Caller>| match who {
                    Some(Caller::At(address)) => Some(address),
                    Some(Caller::Here) | None => None,
                };
                let only = [caller, controller].into_iter().filter_map(address).collect();
                Reach::Callers { loopback: local(caller), only }
            }
            EgressPolicy::To(networks) => Reach::Within(networks.clone()),
        }
    }
}

/// Addresses that one request may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Any address: the operator named it.
    Anywhere,
    /// URL of an image: any address except link-local, multicast and cloud metadata. Loopback only with `loopback`.
    Images {
        /// Set if loopback is allowed, because the allowed URL names it.
        loopback: bool,
    },
    /// Any address except link-local, multicast and cloud metadata. Loopback only with `loopback`.
    Common {
        /// Set if loopback is allowed, because the caller is on this node.
        loopback: bool,
    },
    /// Addresses of the caller and of the controller.
    Callers {
        /// Set if loopback is allowed, because the caller is on this node.
        loopback: bool,
        /// Addresses of the caller and of the controller; a caller over the Unix socket has none.
        only: Vec<IpAddr>,
    },
    /// Addresses in these networks.
    Within(Arc<[Network]>),
}

impl Reach {
    /// Checks `address` before a connection to it.
    ///
    /// # Errors
    /// A refused address, with the reason.
    pub fn authorize(&self, address: IpAddr) -> Result<(), RefusedAddress> {
        let address = address.to_canonical();
        let refused = |why| Err(RefusedAddress { address, why });
        match self {
            Reach::Anywhere => Ok(()),
            Reach::Images { loopback } => match own(address) {
                None => Ok(()),
                Some(Own::Loopback) if *loopback => Ok(()),
                Some(Own::Loopback) => refused(Why::Never("the node's own loopback")),
                Some(Own::Special(what)) => refused(Why::Never(what)),
            },
            Reach::Common { loopback } => match own(address) {
                None => Ok(()),
                Some(Own::Loopback) if *loopback => Ok(()),
                Some(Own::Loopback) => refused(Why::Loopback),
                Some(Own::Special(what)) => refused(Why::Special(what)),
            },
            Reach::Callers { loopback: true, .. } if own(address) == Some(Own::Loopback) => Ok(()),
            // A controller on this node does not open loopback to a caller from elsewhere.
            Reach::Callers { only, .. } if only.contains(&address) && !address.is_loopback() => {
                Ok(())
            }
            Reach::Callers { .. } => refused(Why::NoCaller),
            Reach::Within(networks) if networks.iter().any(|network| network.has(address)) => {
                Ok(())
            }
            Reach::Within(_) => refused(Why::NotListed),
        }
    }

    /// Authorizes the host of a URL if it is an address; names are authorized when they are resolved.
    ///
    /// # Errors
    /// As [`Reach::authorize`].
    pub fn authorize_literal(&self, url: &str) -> Result<(), RefusedAddress> {
        let address = url.parse::<HttpUrl>().ok().and_then(|url| url.address());
        address.map_or(Ok(()), |address| self.authorize(address))
    }
}

/// Address that is not called, with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{address} is not called: {why}")]
pub struct RefusedAddress {
    address: IpAddr,
    why: Why,
}

/// Reason not to call an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Loopback,
    Special(&'static str),
    Never(&'static str),
    NoCaller,
    NotListed,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Loopback => f.write_str(
                "it is the node's own loopback, and the word came from elsewhere (outgoing.to can list it)",
            ),
            Why::Special(what) => write!(f, "it is {what} (outgoing.to can list it)"),
            Why::Never(what) => write!(f, "it is {what}"),
            Why::NoCaller => f.write_str(
                "it is neither who called nor the controller that is connected (outgoing.to is \"callers\")",
            ),
            Why::NotListed => f.write_str("it is in none of the networks that outgoing.to lists"),
        }
    }
}

/// Kind of an address that a URL of a caller from elsewhere must not lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    Loopback,
    Special(&'static str),
}

/// Metadata services of clouds, most of which do not authenticate their callers. Most are at 169.254.169.254, which is
/// link-local; these are not: 100.100.100.200 Alibaba (cloud-init's documentation of its data source), 168.63.129.16
/// Azure's wire server (coreos/afterburn), 192.0.0.192 Oracle (its guide "Retrieve Predefined Instance Metadata").
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// Metadata services over IPv6: fd00:ec2::254 Amazon (EC2 guide, "Retrieve instance metadata") and fd00:ec2::23 the
/// credentials of its containers, fd20:ce::254 Google, fd00:42::42 Scaleway.
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];
const METADATA: &str = "where a cloud tells its machines about themselves";
const LINK_LOCAL: &str = "link-local";
const MULTICAST: &str = "a multicast address";
const UNSPECIFIED: &str = "no address of a machine";

fn own(address: IpAddr) -> Option<Own> {
    match address {
        IpAddr::V4(address) => own_v4(address),
        IpAddr::V6(address) => own_v6(address),
    }
}

fn own_v4(address: Ipv4Addr) -> Option<Own> {
    match address.octets() {
        [127, ..] => Some(Own::Loopback),
        // All of 0.0.0.0/8 is "this network" (RFC 791, 3.2); Linux takes 0.0.0.0 for the machine itself.
        [0, ..] | [255, 255, 255, 255] => Some(Own::Special(UNSPECIFIED)),
        [169, 254, ..] => Some(Own::Special(LINK_LOCAL)),
        [224..=239, ..] => Some(Own::Special(MULTICAST)),
        _ => METADATA_V4.contains(&address).then_some(Own::Special(METADATA)),
    }
}

fn own_v6(address: Ipv6Addr) -> Option<Own> {
    if address.is_loopback() {
        return Some(Own::Loopback);
    }
    if address.is_unspecified() {
        return Some(Own::Special(UNSPECIFIED));
    }
    if let Some(inner) = embedded(address) {
        return own_v4(inner);
    }
    match address.segments()[0] {
        0xfe80..=0xfebf => Some(Own::Special(LINK_LOCAL)),
        0xff00..=0xffff => Some(Own::Special(MULTICAST)),
        _ => METADATA_V6.contains(&address).then_some(Own::Special(METADATA)),
    }
}

/// IPv4 address that an IPv6 address stands for: mapped and compatible (RFC 4291, 2.5.5), translated (RFC 2765, 2.1),
/// behind a NAT64 (RFC 6052, 2.1; RFC 8215), over 6to4 (RFC 3056, 2).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "egress_policy_tests.rs"]
mod tests;
