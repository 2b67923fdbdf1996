//! Bearer tokens (RFC 6750) that callers present.
//!
//! Only digests are kept, so that neither a dump of the agent's memory nor its log can reveal a token.

use std::fmt;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::errors::Problem;
use crate::model::access::{Credential, Denied, PresentedToken, Role};

/// Minimum length of a token, in characters: a shorter one can be guessed.
const FEWEST_CHARACTERS: usize = 16;
const MOST_TOKENS: usize = 100;

/// Accepted tokens: of each, its SHA-256 digest and the name and role that it gives.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens(Vec<([u8; 32], Credential)>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Parses the `text` of a token file: one token per line, each with the role `admin`. Empty lines and lines that
    /// begin with `#` are skipped. Without a token in the file, no token is accepted.
    ///
    /// # Errors
    /// Description of the fault, with the number of a faulty line, but never its content, which may be a token.
    pub fn read(text: &str) -> Result<Tokens, String> {
        let mut digests = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let token = line.trim();
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            // RFC 6750, 2.1: characters that a header can carry.
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
            if !token.bytes().all(plain) {
                return Err(format!(
                    "line {number} has a character that no token can have: letters, digits and -._~+/= are taken"
                ));
            }
            if token.len() < FEWEST_CHARACTERS {
                return Err(format!(
                    "the token in line {number} has fewer than {FEWEST_CHARACTERS} characters and could be guessed: \
                     make one with `openssl rand -hex 32`"
                ));
            }
            let name = format!("token in line {number} of access.tokens_file").into();
            digests.push((digest(token), Credential { name, role: Role::Admin }));
        }
        match digests.len() {
            0..=MOST_TOKENS => Ok(Tokens(digests)),
            more => Err(format!("it has {more} tokens, and {MOST_TOKENS} are taken at most")),
        }
    }

    pub fn add(&mut self, digest: [u8; 32], named: Credential) {
        self.0.push((digest, named));
    }

    /// Finds the accepted token whose text is `token`. The duration reveals nothing of the accepted tokens, because
    /// `token` is hashed first and then compared with all digests.
    fn find(&self, token: &str) -> Option<&Credential> {
        let shown = digest(token);
        self.0.iter().fold(None, |found, (known, named)| {
            let same = (*known == shown).then_some(named);
            found.or(same)
        })
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// `true` if `path` is served without a token: `/healthz` and `/readyz`.
pub(super) fn is_open_to_all(path: &str) -> bool {
    matches!(path.trim_end_matches('/'), "/healthz" | "/readyz")
}

/// Looks up the token in the header `Authorization`. More than one such header counts as an unknown token.
pub(super) fn presented<'a>(tokens: &'a Tokens, headers: &HeaderMap) -> PresentedToken<'a> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let Some(first) = shown.next() else { return PresentedToken::Nothing };
    let token = first.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token.and_then(|token| tokens.find(token)) {
        Some(named) if shown.next().is_none() => PresentedToken::Token(named),
        _ => PresentedToken::Unknown,
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let mut response = Problem::of(self.fault()).into_response();
        if matches!(self, Denied::TokenMissing | Denied::TokenWrong) {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_line_and_an_error_does_not_repeat_it() {
        let tokens =
            Tokens::read("# of the controller\n 0123456789abcdef \r\n\nfedcba9876543210==\n")
                .unwrap();
        assert_eq!(format!("{tokens:?}"), "2 tokens");
        let named = tokens.find("0123456789abcdef").unwrap();
        assert_eq!(named.role, Role::Admin);
        assert_eq!(named.name.as_ref(), "token in line 2 of access.tokens_file");
        assert!(tokens.find("fedcba9876543210==").is_some());
        for none in ["0123456789abcdeF", "", "# of the controller"] {
            assert!(tokens.find(none).is_none(), "{none}");
        }
        for (text, expected) in [
            ("\nsecret-secret\n", "line 2 has fewer than 16"),
            ("secret secret secret\n", "line 1 has a character"),
            ("secretsecretsecretß\n", "line 1 has a character"),
        ] {
            let error = Tokens::read(text).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        let many = "0123456789abcdef\n".repeat(MOST_TOKENS + 1);
        assert!(Tokens::read(&many).unwrap_err().contains("101 tokens"));
    }

    #[test]
    fn a_file_without_a_token_lets_nobody_call() {
        assert!(Tokens::read("# 0123456789abcdef\n").unwrap().find("0123456789abcdef").is_none());
    }

    #[test]
    fn a_request_shows_one_token_as_the_scheme_says() {
        let tokens = Tokens::read("0123456789abcdef").unwrap();
        let presented_token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            match presented(&tokens, &headers) {
                PresentedToken::Nothing => "nothing",
                PresentedToken::Unknown => "unknown",
                PresentedToken::Token(_) => "token",
            }
        };
        let right = "Bearer 0123456789abcdef";
        for taken in [right, "bearer 0123456789abcdef", "BEARER  0123456789abcdef "] {
            assert_eq!(presented_token(&[taken]), "token", "{taken}");
        }
        assert_eq!(presented_token(&[]), "nothing");
        for wrong in
            ["", "Bearer", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer x"]
        {
            assert_eq!(presented_token(&[wrong]), "unknown", "{wrong}");
        }
        assert_eq!(presented_token(&[right, right]), "unknown", "which one would count?");
    }

    #[test]
    fn only_signs_of_life_are_open_to_all() {
        for path in ["/healthz", "/readyz", "/healthz/"] {
            assert!(is_open_to_all(path), "{path}");
        }
        for path in ["/", "/metrics", "/v1/node", "/healthz/x", "/host/echo", "//healthz"] {
            assert!(!is_open_to_all(path), "{path}");
        }
    }
}
