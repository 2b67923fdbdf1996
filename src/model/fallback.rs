//! Address of the legacy agent: `http://host:port`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use url::Host;

use super::url::{HttpUrl, HttpUrlError};

/// Address of the legacy agent, which gets every request that this agent does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FallbackAddress {
    host: Host,
    port: u16,
}

impl FallbackAddress {
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host in the form that a resolver takes: a name, or an address without brackets.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        }
    }

    /// `true` if an agent that listens at `listen` would be its own fallback.
    pub fn is(&self, listen: SocketAddr) -> bool {
        let own = listen.ip().to_canonical();
        let loops = match self.address() {
            None => self.is_localhost() && (own.is_unspecified() || own.is_loopback()),
            Some(address) if address.is_loopback() || address.is_unspecified() => {
                // Any loopback address counts: whoever writes 127.0.0.2 with the same port hardly means another agent.
                own.is_unspecified() || own.is_loopback()
            }
            Some(address) => address == own,
        };
        loops && self.port == listen.port()
    }

    fn address(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some((*address).into()),
            Host::Ipv6(address) => Some(IpAddr::from(*address).to_canonical()),
        }
    }

    fn is_localhost(&self) -> bool {
        matches!(&self.host, Host::Domain(name) if name == "localhost" || name.ends_with(".localhost"))
    }
}

impl FromStr for FallbackAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<FallbackAddress, String> {
        let wrong =
            |why: &str| format!("'{text}' is no address such as http://127.0.0.1:7071: {why}");
        let url: HttpUrl = text.parse().map_err(|e| match e {
            HttpUrlError::Scheme => wrong("it must begin with http://"),
            other => wrong(&other.to_string()),
        })?;
        let url = url.url();
        if url.scheme() != "http" {
            return Err(wrong("it must begin with http://"));
        }
        if text.contains('@') {
            return Err(wrong("it may name no user"));
        }
        if url.path() != "/" || text.contains(['?', '#', '\\']) {
            return Err(wrong("nothing may stand behind the port"));
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(wrong("it names no host"));
        };
        if port == 0 {
            return Err(wrong("nobody listens on port 0"));
        }
        Ok(FallbackAddress { host: host.to_owned(), port })
    }
}

impl fmt::Display for FallbackAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> FallbackAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_a_host_and_a_port_and_nothing_else() {
        for (text, host, written) in [
            ("http://127.0.0.1:7071", "127.0.0.1", "http://127.0.0.1:7071"),
            ("http://[::1]:7071/", "::1", "http://[::1]:7071"),
            ("http://kvmagent.example", "kvmagent.example", "http://kvmagent.example:80"),
        ] {
            assert_eq!(
                (address(text).host().as_str(), address(text).to_string().as_str()),
                (host, written)
            );
        }
        for (text, why) in [
            ("", "must begin with http://"),
            ("127.0.0.1:7071", "must begin with http://"),
            ("localhost:7071", "must begin with http://"),
            ("https://127.0.0.1:7071", "must begin with http://"),
            ("http://", "empty host"),
            ("http://a:0", "port 0"),
            ("http://a:70000", "invalid port"),
            ("http://a:7071/kvm", "behind the port"),
            ("http://a:7071?x=1", "behind the port"),
            ("http://a:7071#x", "behind the port"),
            ("http://u:p@a:7071", "no user"),
            ("http://@a:7071", "no user"),
            (" http://a:7071", "blanks"),
        ] {
            let error = text.parse::<FallbackAddress>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn an_agent_is_not_its_own_fallback() {
        let is = |text: &str, listen: &str| address(text).is(listen.parse().unwrap());
        for text in [
            "http://127.0.0.1:7070",
            "http://localhost:7070",
            "http://[::1]:7070",
            "http://0.0.0.0:7070",
        ] {
            for listen in ["[::]:7070", "0.0.0.0:7070", "127.0.0.1:7070", "[::1]:7070"] {
                assert!(is(text, listen), "{text} {listen}");
            }
            assert!(!is(text, "[::]:7071") && !is(text, "10.0.0.5:7070"), "{text}");
        }
        assert!(is("http://10.0.0.5:7070", "10.0.0.5:7070"));
        assert!(is("http://[::ffff:10.0.0.5]:7070", "10.0.0.5:7070"));
        assert!(!is("http://10.0.0.6:7070", "10.0.0.5:7070"));
    }
}
