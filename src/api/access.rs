//! Bearer tokens (RFC 6750): who has one may call.
//!
//! Only digests are kept, so that no dump of the agent's memory and no word of its log can have a token.

use crate::model::code::Code;
use std::fmt;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::errors::Problem;

/// What a token has at least, in characters: fewer can be guessed.
const FEWEST_CHARACTERS: usize = 16;
/// Tokens of one agent.
const MOST_TOKENS: usize = 100;

/// The tokens that are taken.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens(Vec<[u8; 32]>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Reads a file of tokens: one a line; empty lines and those that begin with `#` are none. With no token
    /// in it, nobody may call.
    ///
    /// # Errors
    /// What is wrong, with the line and never with what stands there.
    pub fn read(text: &str) -> Result<Tokens, String> {
        let mut digests = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let token = line.trim();
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            // RFC 6750, 2.1: what a header can carry.
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
            digests.push(digest(token));
        }
        match digests.len() {
            0..=MOST_TOKENS => Ok(Tokens(digests)),
            more => Err(format!("it has {more} tokens, and {MOST_TOKENS} are taken at most")),
        }
    }

    /// Whether this is one of them. How long that takes says nothing of what they are, for only digests
    /// are compared, and all of them.
    fn has(&self, token: &str) -> bool {
        let shown = digest(token);
        self.0.iter().fold(false, |found, known| found | (*known == shown))
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether a path is served without a token: those by which somebody sees whether the agent lives.
pub(super) fn is_open_to_all(path: &str) -> bool {
    matches!(path.trim_end_matches('/'), "/healthz" | "/readyz")
}

/// Why a request with these headers is not served.
pub(super) fn refusal(tokens: &Tokens, headers: &HeaderMap) -> Option<Refusal> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let Some(first) = shown.next() else { return Some(Refusal::Missing) };
    let token = first.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token {
        Some(token) if shown.next().is_none() && tokens.has(token) => None,
        _ => Some(Refusal::Wrong),
    }
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It shows nothing.
    Missing,
    /// What it shows is no token that is taken.
    Wrong,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, text) = match self {
            Refusal::Missing => {
                (Code::TokenMissing, "this agent wants a token: Authorization: Bearer <token>")
            }
            Refusal::Wrong => (
                Code::TokenWrong,
                "what the header Authorization shows is no token of this agent (access.tokens_file)",
            ),
        };
        let mut response = Problem::new(code, text).into_response();
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_line_and_what_cannot_be_one_is_told_without_it() {
        let tokens =
            Tokens::read("# of the controller\n 0123456789abcdef \r\n\nfedcba9876543210==\n")
                .unwrap();
        assert_eq!(format!("{tokens:?}"), "2 tokens");
        assert!(tokens.has("0123456789abcdef") && tokens.has("fedcba9876543210=="));
        assert!(
            !tokens.has("0123456789abcdeF")
                && !tokens.has("")
                && !tokens.has("# of the controller")
        );
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
        assert!(!Tokens::read("# 0123456789abcdef\n").unwrap().has("0123456789abcdef"));
    }

    #[test]
    fn a_request_shows_one_token_as_the_scheme_says() {
        let tokens = Tokens::read("0123456789abcdef").unwrap();
        let judged = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            refusal(&tokens, &headers)
        };
        let right = "Bearer 0123456789abcdef";
        for taken in [right, "bearer 0123456789abcdef", "BEARER  0123456789abcdef "] {
            assert_eq!(judged(&[taken]), None, "{taken}");
        }
        assert_eq!(judged(&[]), Some(Refusal::Missing));
        for wrong in
            ["", "Bearer", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer x"]
        {
            assert_eq!(judged(&[wrong]), Some(Refusal::Wrong), "{wrong}");
        }
        assert_eq!(judged(&[right, right]), Some(Refusal::Wrong), "which one would count?");
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
