//! Addresses of images that a caller may name, and the egress policy of their downloads.

use url::{Host, Url};

use crate::model::code::Code;
use crate::model::egress_policy::Reach;
use crate::model::fault::Fault;
use crate::model::image::ImageUrl;
use crate::model::policy::TargetSettings;

/// Authorizes the URL of an image. `target.image_url` and the URLs that `target.image_urls` lists are allowed.
pub(super) fn authorize(url: &ImageUrl, settings: &TargetSettings) -> Result<(), Fault> {
    if is_own(url.url(), settings) || is_listed(url.url(), settings) {
        return Ok(());
    }
    let text = format!(
        "imageUrl {url} is not allowed: it begins with no address that target.image_urls lists; name another, or have the \
         operator add it there"
    );
    Err(Fault::new(Code::ImageUrlNotAllowed, text))
}

/// Egress policy for the next request of a download that began at `began` and was redirected to `at`; `None` if the
/// download must not go to `at`.
///
/// A download may go to URLs that `target.image_urls` lists, and back to `began`, which was authorized when the request
/// named it. A download that began at `target.image_url` may follow the redirects of its server. Loopback is allowed
/// only if the authorized URL itself has a loopback host: the operator did not allow a name that merely resolves to
/// loopback.
pub fn image_reach(began: &Url, at: &Url, settings: &TargetSettings) -> Option<Reach> {
    let named = match at == began || is_listed(at, settings) {
        true => at,
        false => Some(began).filter(|began| is_own(began, settings))?,
    };
    Some(Reach::Images { loopback: is_loopback(named) })
}

fn is_own(url: &Url, settings: &TargetSettings) -> bool {
    settings.image_url.parse::<ImageUrl>().is_ok_and(|own| own.url() == url)
}

fn is_listed(url: &Url, settings: &TargetSettings) -> bool {
    let prefixes = settings.image_urls.iter().filter_map(|prefix| prefix.parse::<ImageUrl>().ok());
    prefixes.into_iter().any(|prefix| begins_with(url, prefix.url()))
}

fn begins_with(url: &Url, prefix: &Url) -> bool {
    let place = |url: &Url| {
        let host = url.host_str().map(str::to_string);
        (url.scheme().to_string(), host, url.port_or_known_default())
    };
    let has_user = !url.username().is_empty() || url.password().is_some();
    // A server may decode these as separators or dots, so that the path leaves the folder of the prefix.
    let path = url.path().to_ascii_lowercase();
    let is_veiled = ["%2f", "%5c", "%2e", "%00"].iter().any(|veiled| path.contains(veiled));
    let rest = url.path().strip_prefix(prefix.path().trim_end_matches('/'));
    let is_below = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    place(url) == place(prefix) && is_below && !is_veiled && !has_user
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

/// Fault of an entry of `target.image_urls`; `None` if it is valid.
pub fn image_url_problem(prefix: &str) -> Option<String> {
    let url = match prefix.parse::<ImageUrl>() {
        Ok(url) => url,
        Err(fault) => return Some(fault.text),
    };
    let more = url.url().query().is_some() || url.url().fragment().is_some();
    (more || !begins_with(url.url(), url.url()))
        .then(|| format!("'{prefix}' is no beginning of addresses: name scheme, host and folder, as in http://host:8080/static/x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(image_url: &str, image_urls: &[&str]) -> TargetSettings {
        TargetSettings {
            image_url: image_url.to_string(),
            image_urls: image_urls.iter().map(ToString::to_string).collect(),
            ..TargetSettings::default()
        }
    }

    fn is_allowed(url: &str, settings: &TargetSettings) -> bool {
        let Ok(url) = url.parse::<ImageUrl>() else { return false };
        let authorized = authorize(&url, settings);
        assert!(
            authorized.as_ref().err().is_none_or(|fault| fault.code == Code::ImageUrlNotAllowed)
        );
        authorized.is_ok()
    }

    #[test]
    fn an_address_has_the_place_of_a_listed_one_and_lies_in_its_folder() {
        let listed = settings("", &["http://10.0.0.1:8080/static/zbs-vhost/", "https://store"]);
        for url in [
            "http://10.0.0.1:8080/static/zbs-vhost",
            "http://10.0.0.1:8080/static/zbs-vhost/a.tar?sign=1",
            "http://10.0.0.1:8080/x/../static/zbs-vhost/a.tar",
            "HTTP://010.0.0.1:8080/static/zbs-vhost/a.tar".replace("010", "10").as_str(),
            "https://STORE:443/any/a.tar",
        ] {
            assert!(is_allowed(url, &listed), "{url}");
        }
        for url in [
            "http://10.0.0.1:8080/static/zbs-vhost-evil/a.tar",
            "http://10.0.0.1:8080/static/zbs-vhost.evil",
            "http://10.0.0.1:8080/static",
            "http://10.0.0.1:8080/static/zbs-vhost/../evil",
            "http://10.0.0.1:8080/static/zbs-vhost/%2e%2e/evil",
            "http://10.0.0.1:8080/static/zbs-vhost/..%2fevil",
            "http://10.0.0.1:8080/static/zbs-vhost/..%5Cevil",
            "http://10.0.0.1:8080/static/zbs-vhost\\..\\evil",
            "http://10.0.0.1:8081/static/zbs-vhost/a.tar",
            "http://10.0.0.1/static/zbs-vhost/a.tar",
            "https://10.0.0.1:8080/static/zbs-vhost/a.tar",
            "http://10.0.0.1:8080@evil/static/zbs-vhost/a.tar",
            "http://10.0.0.1:8080%2f@evil/static/zbs-vhost/a.tar",
            "http://evil#@10.0.0.1:8080/static/zbs-vhost/a.tar",
            "http://10.0.0.1.evil:8080/static/zbs-vhost/a.tar",
            "http://127.0.0.1:8080/static/zbs-vhost/a.tar",
            "http://2130706433:8080/static/zbs-vhost/a.tar",
            "http://store/a.tar",
            "https://store.evil/a.tar",
            "https://store:8443/a.tar",
            "https://store@evil/a.tar",
        ] {
            assert!(!is_allowed(url, &listed), "{url}");
        }
        // The same address in another form is the same.
        assert!(is_allowed("http://167772161:8080/static/zbs-vhost/a.tar", &listed));
        let own = settings("http://10.0.0.9/a.tar", &[]);
        assert!(
            is_allowed("http://10.0.0.9/a.tar", &own) && !is_allowed("http://10.0.0.9/b", &own)
        );
    }

    #[test]
    fn a_download_goes_on_only_where_it_may_begin() {
        let settings = settings("http://own/a.tar", &["http://127.0.0.1:1/x", "http://store/x"]);
        let reach = |began: &str, at: &str| {
            image_reach(&began.parse().unwrap(), &at.parse().unwrap(), &settings)
        };
        let (local, remote) =
            (Some(Reach::Images { loopback: true }), Some(Reach::Images { loopback: false }));
        assert_eq!(reach("http://store/x/a", "http://store/x/a"), remote);
        assert_eq!(reach("http://store/x/a", "http://store/x/b"), remote);
        assert_eq!(reach("http://store/x/a", "http://127.0.0.1:1/x/b"), local);
        assert_eq!(reach("http://127.0.0.1:1/x/a", "http://store/x/b"), remote);
        for evil in ["http://store/y", "http://127.0.0.1:2/x", "http://own/a.tar", "http://[::1]/"]
        {
            assert_eq!(reach("http://store/x/a", evil), None, "{evil}");
        }
        // Redirects from `target.image_url` are followed, but not to loopback.
        assert_eq!(reach("http://own/a.tar", "http://mirror/a.tar"), remote);
        assert_eq!(reach("http://own/a.tar", "http://127.0.0.1:9/"), remote);
        // A URL that is no longer listed is only good for itself.
        assert_eq!(reach("http://[::1]:5/a", "http://[::1]:5/a"), local);
        assert_eq!(reach("http://localhost/a", "http://localhost/a"), local);
        assert_eq!(reach("http://old/a", "http://old/b"), None);
    }

    #[test]
    fn entries_of_the_list_are_beginnings_of_addresses() {
        for prefix in ["http://a", "https://a:1/b/", "http://127.0.0.1/x"] {
            assert_eq!(image_url_problem(prefix), None, "{prefix}");
        }
        for prefix in [
            "",
            "a/b",
            "ftp://a",
            "http://u@a/b",
            "http://a/b?c",
            "http://a/%2e%2fb",
            "http://a/b#c",
        ] {
            assert!(image_url_problem(prefix).is_some(), "{prefix}");
        }
    }
}
