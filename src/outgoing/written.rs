//! Addresses encoded in an authority: `name@0a000001.0a000002:8080`.
//!
//! The host part holds the allowed addresses, in hex. With `https`, the user part holds the name that the certificate
//! must match. Connections are pooled by this authority; it is never sent.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

/// Maximum number of addresses in an authority; no more are ever tried.
const MOST: usize = 16;

/// Replaces the host of `uri` by `addresses`; `None` if the result is no valid URI.
pub(super) fn uri(uri: &Uri, addresses: &[IpAddr]) -> Option<Uri> {
    let hex = |address: &IpAddr| match address {
        IpAddr::V4(address) => format!("{:08x}", address.to_bits()),
        IpAddr::V6(address) => format!("{:032x}", address.to_bits()),
    };
    let mut authority = addresses.iter().take(MOST).map(hex).collect::<Vec<_>>().join(".");
    if let Some(port) = uri.port_u16() {
        authority = format!("{authority}:{port}");
    }
    let name = uri.host().filter(|host| !host.starts_with('[') && host.parse::<IpAddr>().is_err());
    if let Some(name) = name.filter(|_| uri.scheme_str() == Some("https")) {
        authority = format!("{name}@{authority}");
    }
    let mut parts = uri.clone().into_parts();
    parts.authority = Some(authority.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Decodes the addresses in `host`, the host part of such an authority.
fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    let read = |hex: &str| match hex.len() {
        8 => u32::from_str_radix(hex, 16).ok().map(|bits| IpAddr::V4(bits.into())),
        32 => u128::from_str_radix(hex, 16).ok().map(|bits| IpAddr::V6(bits.into())),
        _ => None,
    };
    let read: Option<Vec<IpAddr>> = host.split('.').map(read).collect();
    read.ok_or_else(|| io::Error::other(format!("'{host}' was not authorized")))
}

/// Resolver that gives the connector the addresses in the host part, and resolves no names.
#[derive(Debug, Clone, Copy)]
pub(super) struct WrittenResolver;

impl Service<Name> for WrittenResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        // The port is 0 here; the connector sets it.
        let found = addresses(name.as_str()).map(|addresses| {
            let with_port = |address| SocketAddr::new(address, 0);
            addresses.into_iter().map(with_port).collect::<Vec<_>>().into_iter()
        });
        std::future::ready(found)
    }
}

/// URI whose host is the name or address that the certificate must match, from `uri` with encoded addresses.
pub(super) fn named(uri: &Uri) -> Result<Uri, Box<dyn Error + Send + Sync>> {
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let name = match authority.rsplit_once('@') {
        Some((name, _)) => name.to_string(),
        None => match addresses(uri.host().unwrap_or_default())?.first() {
            Some(IpAddr::V6(address)) => format!("[{address}]"),
            Some(IpAddr::V4(address)) => address.to_string(),
            None => return Err("there is no address".into()),
        },
    };
    Ok(Uri::builder().scheme("https").authority(name).path_and_query("/").build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_called_and_the_name_is_kept_for_the_certificate() {
        let all: Vec<IpAddr> = ["10.0.0.1", "fd00::1"].map(|a| a.parse().unwrap()).into();
        for (from, expected, name) in [
            (
                "https://controller.example:8443/a?b",
                "https://controller.example@0a000001.fd000000000000000000000000000001:8443/a?b",
                "controller.example",
            ),
            ("https://user:word@c/a", "https://c@0a000001.fd000000000000000000000000000001/a", "c"),
            (
                "http://user:word@c:80/",
                "http://0a000001.fd000000000000000000000000000001:80/",
                "10.0.0.1",
            ),
        ] {
            let written = uri(&from.parse().unwrap(), &all).unwrap();
            assert_eq!(written.to_string(), expected);
            assert_eq!(addresses(written.host().unwrap()).unwrap(), all);
            assert_eq!(named(&written).unwrap().host(), Some(name));
        }
        let v6 = uri(&"https://[fd00::1]/".parse().unwrap(), &all[1..]).unwrap();
        assert_eq!(named(&v6).unwrap().host(), Some("[fd00::1]"));
    }

    #[test]
    fn a_host_that_was_not_judged_is_not_called() {
        for host in ["localhost", "", "0a00000", "0a000001.", "7f.1", "zz000001"] {
            assert!(addresses(host).is_err(), "{host}");
        }
    }
}
