//! Callers: somebody on this node, or a peer at an address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Origin of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Caller {
    /// Caller over the Unix socket, which is on this node.
    Here,
    /// Peer's address; never an IPv4 address in IPv6 form.
    At(IpAddr),
}

impl Caller {
    /// `true` if the request comes from this node: over the Unix socket, or from a loopback address.
    pub fn is_local(self) -> bool {
        match self {
            Caller::Here => true,
            Caller::At(address) => address.is_loopback(),
        }
    }
}

impl From<IpAddr> for Caller {
    /// Converts an address; a listener for both families reports peers of IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
    fn from(address: IpAddr) -> Caller {
        Caller::At(address.to_canonical())
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Here => f.write_str("local"),
            Caller::At(address) => address.fmt(f),
        }
    }
}

impl FromStr for Caller {
    type Err = String;

    fn from_str(text: &str) -> Result<Caller, String> {
        if text == "local" {
            return Ok(Caller::Here);
        }
        let address = text.parse::<IpAddr>();
        address.map(Caller::from).map_err(|_| format!("'{text}' is no address, and not 'local'"))
    }
}

impl TryFrom<String> for Caller {
    type Error = String;

    fn try_from(text: String) -> Result<Caller, String> {
        text.parse()
    }
}

impl From<Caller> for String {
    fn from(caller: Caller) -> String {
        caller.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_written_and_read_and_an_address_of_ipv4_has_one_form() {
        for (text, local) in [
            ("local", true),
            ("127.0.0.9", true),
            ("::1", true),
            ("10.0.0.1", false),
            ("fe80::1", false),
        ] {
            let caller: Caller = text.parse().unwrap();
            assert_eq!((caller.to_string().as_str(), caller.is_local()), (text, local));
        }
        let mapped: Caller = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!((mapped.to_string().as_str(), mapped.is_local()), ("127.0.0.1", true));
        assert!("somebody".parse::<Caller>().is_err() && "".parse::<Caller>().is_err());
    }
}
