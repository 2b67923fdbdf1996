//! HTTP URLs: validation, and display without secrets.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use url::{Host, Url};

/// URL that begins with `http://` or `https://` and names a host. `Display` leaves out the parts that can be secret.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpUrl(Url);

/// Reason why a text is no [`HttpUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpUrlError {
    /// White space or a control character.
    #[error("it holds blanks or control characters")]
    Blanks,
    #[error(transparent)]
    Malformed(url::ParseError),
    /// Scheme other than `http` and `https`.
    #[error("it must begin with http:// or https://")]
    Scheme,
    /// User name or password in the URL.
    #[error("it holds a user's name: name an address that needs none")]
    User,
}

impl HttpUrl {
    /// Whole URL, secrets included.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Parsed URL, secrets included.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Address that the URL names as its host; `None` if that is a name.
    pub fn address(&self) -> Option<IpAddr> {
        match self.0.host()? {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        }
    }

    /// Parses a URL. A URL with a user name or password is refused, because the agent would not send them.
    ///
    /// # Errors
    /// [`HttpUrlError`].
    pub fn without_user(text: &str) -> Result<HttpUrl, HttpUrlError> {
        let url: HttpUrl = text.parse()?;
        match url.0.username().is_empty() && url.0.password().is_none() {
            true => Ok(url),
            false => Err(HttpUrlError::User),
        }
    }
}

impl FromStr for HttpUrl {
    type Err = HttpUrlError;

    fn from_str(text: &str) -> Result<HttpUrl, HttpUrlError> {
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(HttpUrlError::Blanks);
        }
        let url = Url::parse(text).map_err(|e| match e {
            url::ParseError::RelativeUrlWithoutBase => HttpUrlError::Scheme,
            other => HttpUrlError::Malformed(other),
        })?;
        // With these schemes, the parser accepts only URLs that name a host.
        if !["http", "https"].contains(&url.scheme()) {
            return Err(HttpUrlError::Scheme);
        }
        Ok(HttpUrl(url))
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_secrets(&self.0))
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<HttpUrl> for String {
    fn from(url: HttpUrl) -> String {
        url.0.into()
    }
}

/// Formats a URL for logs, errors and replies. User name, password and fragment are left out and a query becomes `…`,
/// because they can grant access.
pub fn without_secrets(url: &Url) -> String {
    let mut shown = url.clone();
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_fragment(None);
    if shown.query().is_some() {
        shown.set_query(Some("…"));
        return shown.as_str().replace("%E2%80%A6", "…");
    }
    shown.into()
}

/// Formats a text that should be a URL, as [`without_secrets`] does. A text that is no URL is not shown at all.
pub fn text_without_secrets(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) => without_secrets(&url),
        Err(_) if text.is_empty() => String::new(),
        Err(_) => "an address that cannot be read".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_web_have_a_scheme_and_a_host() {
        for url in ["http://10.0.0.1:8080/zstack/callback", "HTTPS://[fd00::1]/x?a=b", "http://h"] {
            assert!(HttpUrl::without_user(url).is_ok(), "{url}");
        }
        let named: HttpUrl = "http://user:secret@c/x".parse().unwrap();
        assert_eq!(format!("{named} {named:?}"), "http://c/x http://c/x");
        for (text, part) in [
            ("", "must begin with http://"),
            ("10.0.0.1/x", "must begin with http://"),
            ("ftp://c/x", "http://"),
            ("http://", "empty host"),
            ("http:///", "empty host"),
            ("http:// c/x", "blanks"),
            ("http://c/#a\nb", "blanks"),
            ("http://c/\u{85}", "control characters"),
            ("http://c/x\u{7f}", "control characters"),
            ("http://u@c/x", "a user's name"),
            ("http://:p@c/x", "a user's name"),
        ] {
            let error = HttpUrl::without_user(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn nothing_that_gives_access_is_shown() {
        for (text, shown) in [
            ("http://c:8080/x", "http://c:8080/x"),
            ("http://user:secret@c/x?token=secret#secret", "http://c/x?…"),
            ("", ""),
            ("http://[secret", "an address that cannot be read"),
        ] {
            assert_eq!(text_without_secrets(text), shown);
        }
    }
}
