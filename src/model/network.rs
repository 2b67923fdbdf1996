//! Networks of addresses, as an operator writes them: `10.0.0.0/8`, `fd00::/8`, or one address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Route to a network of IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRoute {
    pub interface: String,
    /// Network to which it leads.
    pub to: Network,
    pub gateway: Option<Ipv4Addr>,
}

/// Network of this machine, as far as the engine's networks can disturb it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeNetwork {
    pub routes: Vec<NodeRoute>,
    pub name_servers: Vec<IpAddr>,
    /// Other addresses that the node has to reach, each with its use.
    pub needed: Vec<(String, IpAddr)>,
}

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl Network {
    /// `true` if `address` belongs to the network. An IPv4 address in IPv6 form (`::ffff:a.b.c.d`) counts as IPv4.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.bits) == self.first
    }
}

impl Network {
    /// Network of `address` with that many bits; `None` if an address has fewer.
    pub fn around(address: IpAddr, bits: u8) -> Option<Network> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then(|| Network { first: masked(address, bits), bits })
    }

    /// Network of `address` with a mask, whose set bits come first.
    pub fn with_mask(address: Ipv4Addr, mask: Ipv4Addr) -> Option<Network> {
        let bits = mask.to_bits().leading_ones();
        let is_mask = bits + mask.to_bits().trailing_zeros() >= 32;
        is_mask.then(|| Network::around(address.into(), u8::try_from(bits).ok()?)).flatten()
    }

    /// `true` if this network is a part of `other`, and not the whole.
    pub fn is_part_of(&self, other: &Network) -> bool {
        self.bits > other.bits && other.has(self.first)
    }

    /// First address of the network.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// First address of a host in a network of IPv4.
    pub fn first_host(&self) -> Option<IpAddr> {
        match self.first {
            IpAddr::V4(first) => Some(IpAddr::V4(first.to_bits().checked_add(1)?.into())),
            IpAddr::V6(_) => None,
        }
    }

    /// Address of the network, if the network contains only one.
    pub fn only(&self) -> Option<IpAddr> {
        let all = if self.first.is_ipv4() { 32 } else { 128 };
        (self.bits == all).then_some(self.first)
    }
}

/// Clears all but the first `bits` bits of `address`.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or_default();
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or_default();
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = |why: &str| format!("'{text}' is no network such as 10.0.0.0/8: {why}");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| wrong("no address"))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let plain = |bits: &&str| bits.len() <= 3 && bits.bytes().all(|b| b.is_ascii_digit());
        let bits = match bits {
            None => most,
            Some(bits) => Some(bits)
                .filter(plain)
                .and_then(|bits| bits.parse().ok())
                .filter(|bits| *bits <= most)
                .ok_or_else(|| wrong("no number of bits"))?,
        };
        if address.to_canonical() != address {
            return Err(wrong("write an address of IPv4 as such"));
        }
        if masked(address, bits) != address {
            return Err(wrong("it has bits set behind its mask"));
        }
        Ok(Network { first: address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().has(address.parse().unwrap())
    }

    #[test]
    fn an_address_belongs_to_a_network_by_its_first_bits_and_its_family() {
        assert!(has("10.0.0.0/8", "10.255.0.1") && !has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("192.0.2.7", "192.0.2.7") && !has("192.0.2.7", "192.0.2.8"));
        assert!(has("0.0.0.0/0", "198.51.100.1") && !has("0.0.0.0/0", "2001:db8::1"));
        assert!(has("::/0", "2001:db8::1") && !has("::/0", "198.51.100.1"));
        assert!(has("fd00::/8", "fdff::1") && !has("fd00::/8", "fe00::1"));
        assert!(has("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(has("2001:db8::1/128", "2001:db8::1") && !has("2001:db8::1", "2001:db8::2"));
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "no address"),
            ("controller", "no address"),
            ("10.0.0.0/33", "number of bits"),
            ("10.0.0.0/-1", "number of bits"),
            ("10.0.0.0/+8", "number of bits"),
            ("10.0.0.0/", "number of bits"),
            ("10.0.0.1/8", "behind its mask"),
            ("::ffff:10.0.0.0/104", "as such"),
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!("fd00::/8".parse::<Network>().unwrap().to_string(), "fd00::/8");
        assert_eq!("192.0.2.7".parse::<Network>().unwrap().to_string(), "192.0.2.7/32");
    }
}
