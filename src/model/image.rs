//! Source of a target's image, as a request and the settings name it.

use crate::model::code::Code;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

use super::fault::Fault;
use super::url::HttpUrl;

/// Size limit of a URL in bytes. Longer URLs do not work everywhere.
const MOST_URL_BYTES: usize = 2048;

/// URL of an image's tar: `http` or `https`, without a user name or password.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageUrl(HttpUrl);

impl ImageUrl {
    /// Whole URL, query included.
    pub fn url(&self) -> &Url {
        self.0.url()
    }
}

impl FromStr for ImageUrl {
    type Err = Fault;

    fn from_str(text: &str) -> Result<ImageUrl, Fault> {
        let refused = |why: &str| {
            // Shown without the query and the part before `@`, which may hold secrets.
            let shown = text.split('?').next().and_then(|text| text.rsplit('@').next());
            let shown: String = shown.unwrap_or_default().chars().take(80).collect();
            Fault::new(Code::InvalidImageUrl, format!("'{shown}' is no address of an image: {why}"))
        };
        let too_long = "it is longer than 2048 bytes, which what is not ASCII takes three times";
        if text.len() > MOST_URL_BYTES {
            return Err(refused(too_long));
        }
        let url = HttpUrl::without_user(text).map_err(|why| refused(&why.to_string()))?;
        // The normalized form is stored, and parsed again at the next start, so it has to fit too.
        match url.as_str().len() > MOST_URL_BYTES {
            true => Err(refused(too_long)),
            false => Ok(ImageUrl(url)),
        }
    }
}

impl fmt::Display for ImageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ImageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for ImageUrl {
    type Error = Fault;

    fn try_from(text: String) -> Result<ImageUrl, Fault> {
        text.parse()
    }
}

impl From<ImageUrl> for String {
    fn from(url: ImageUrl) -> String {
        url.0.into()
    }
}

/// SHA-256 of a file, as 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageSha256(String);

impl ImageSha256 {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageSha256 {
    type Err = Fault;

    fn from_str(text: &str) -> Result<ImageSha256, Fault> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(ImageSha256(digits.to_ascii_lowercase()));
        }
        let shown: String = text.chars().take(80).collect();
        let text =
            format!("'{shown}' is no SHA-256: it has 64 hex digits, as sha256sum prints them");
        Err(Fault::new(Code::InvalidImageSha256, text))
    }
}

impl TryFrom<String> for ImageSha256 {
    type Error = Fault;

    fn try_from(text: String) -> Result<ImageSha256, Fault> {
        text.parse()
    }
}

impl From<ImageSha256> for String {
    fn from(digest: ImageSha256) -> String {
        digest.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    pub url: ImageUrl,
    /// Expected digest, if known.
    pub sha256: Option<ImageSha256>,
}

/// Image of a target, and the URL from which its tar can be downloaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageRequest {
    /// Name of the image; `None` for the built-in one.
    pub image: Option<String>,
    /// URL of a tar that holds the image.
    pub url: Option<ImageUrl>,
    /// SHA-256 of the tar at `url`.
    pub sha256: Option<ImageSha256>,
}

impl ImageRequest {
    /// Completes the request by the defaults in `usual`. The default URL applies only to the default image, and the
    /// default digest only to the default URL.
    ///
    /// # Errors
    /// A digest without an address.
    pub fn or(self, usual: ImageRequest) -> Result<ImageRequest, Fault> {
        let usual_image = self.image.is_none() || self.image == usual.image;
        let url = self.url.or_else(|| usual.url.clone().filter(|_| usual_image));
        if self.sha256.is_some() && url.is_none() {
            let text = "imageSha256 is the digest of what imageUrl names: give that too";
            return Err(Fault::new(Code::InvalidImageSha256, text));
        }
        let usual_url = url.is_some() && url == usual.url;
        let sha256 = self.sha256.or_else(|| usual.sha256.filter(|_| usual_url));
        Ok(ImageRequest { image: self.image.or(usual.image), url, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_http_or_https_and_hold_no_secrets() {
        for url in ["http://10.0.0.1:8080/a/vhost.tar", "https://[fd00::1]/x.tar.gz?sig=1"] {
            assert_eq!(String::from(url.parse::<ImageUrl>().unwrap()), url);
        }
        let long = format!("http://a/{}", "x".repeat(2048));
        for url in [
            "",
            "vhost.tar",
            "/srv/vhost.tar",
            "ftp://a/b",
            "file:///etc/shadow",
            "http://",
            "http://a/b c",
            "http://a/\nb",
            "http://user:word@a/b",
            "http://user@a/b",
            long.as_str(),
        ] {
            let fault = url.parse::<ImageUrl>().unwrap_err();
            assert_eq!(fault.code, Code::InvalidImageUrl, "{url}");
            assert!(!fault.text.contains("word"), "{fault}");
        }
        let signed: ImageUrl = "https://store/x.tar?token=abc".parse().unwrap();
        assert_eq!(format!("{signed} {signed:?}"), "https://store/x.tar?… https://store/x.tar?…");
    }

    #[test]
    fn an_address_is_not_longer_than_it_may_be_when_it_is_read_again() {
        let of = |letters: usize| format!("http://a/{}", "ä".repeat(letters));
        let kept = String::from(of(339).parse::<ImageUrl>().unwrap());
        assert!(kept.parse::<ImageUrl>().is_ok(), "{} bytes", kept.len());
        assert_eq!(of(340).parse::<ImageUrl>().unwrap_err().code, Code::InvalidImageUrl);
    }

    #[test]
    fn a_digest_has_64_hex_digits() {
        let digits = "Ab".repeat(32);
        for text in [digits.clone(), format!("sha256:{digits}")] {
            assert_eq!(text.parse::<ImageSha256>().unwrap().as_str(), "ab".repeat(32));
        }
        for text in ["", "ab", &"g".repeat(64), &format!("sha1:{digits}")] {
            assert_eq!(text.parse::<ImageSha256>().unwrap_err().code, Code::InvalidImageSha256);
        }
    }

    #[test]
    fn the_settings_address_goes_with_the_settings_image() {
        let digest = |digit: &str| digit.repeat(64);
        let request =
            |image: Option<&str>, url: Option<&str>, sha256: Option<String>| ImageRequest {
                image: image.map(str::to_string),
                url: url.map(|url| url.parse().unwrap()),
                sha256: sha256.map(|digest| digest.parse().unwrap()),
            };
        let usual = request(Some("zbs:1"), Some("http://a/usual.tar"), Some(digest("1")));
        let request = |image: Option<&str>, url: Option<&str>, sha256: Option<String>| {
            let request = request(image, url, sha256).or(usual.clone())?;
            let digest = request.sha256.map(String::from);
            Ok::<_, Fault>((request.image, request.url.map(String::from), digest))
        };
        let of = |image: &str, url: Option<&str>, sha256: Option<String>| {
            (Some(image.to_string()), url.map(str::to_string), sha256)
        };
        let usual_url = Some("http://a/usual.tar");
        assert_eq!(request(None, None, None).unwrap(), of("zbs:1", usual_url, Some(digest("1"))));
        assert_eq!(request(Some("zbs:1"), None, None).unwrap().1.as_deref(), usual_url);
        assert_eq!(request(Some("zbs:2"), None, None).unwrap(), of("zbs:2", None, None));
        let other = Some("http://a/other.tar");
        assert_eq!(request(None, other, None).unwrap(), of("zbs:1", other, None));
        assert_eq!(request(None, None, Some(digest("2"))).unwrap().2, Some(digest("2")));
        assert_eq!(
            request(Some("zbs:2"), None, Some(digest("2"))).unwrap_err().code,
            Code::InvalidImageSha256
        );
    }
}
