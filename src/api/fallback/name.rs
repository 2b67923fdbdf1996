//! Cached addresses of the legacy agent's host name. Each forwarded request needs them.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Age at which the result of a lookup is refreshed. Not every request looks up the name, because a lookup may take
/// longer than the request.
const KEPT: Duration = Duration::from_secs(5);

/// Host and port of the legacy agent, with the result of the last lookup.
#[derive(Debug)]
pub(super) struct Name {
    host: String,
    port: u16,
    last: Arc<Mutex<Option<Lookup>>>,
    /// Lock held by the lookup in progress.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Result of the last lookup.
#[derive(Debug, Clone)]
struct Lookup {
    ended: Instant,
    /// Addresses of the last successful lookup; empty if none has succeeded.
    addresses: Vec<SocketAddr>,
    /// Error of the lookup; `None` if it succeeded, or if there are `addresses` of an earlier one.
    failed: Option<(io::ErrorKind, String)>,
}

impl Name {
    /// Creates a name, without a lookup. `host` is a host name, or an IP address without brackets.
    pub(super) fn new(host: String, port: u16) -> Name {
        Name { host, port, last: Arc::default(), turn: Arc::default() }
    }

    /// Looks up the addresses. Addresses that were found are used until a later lookup finds others.
    ///
    /// One lookup runs at a time, even if its caller no longer waits for it. getaddrinfo(3) cannot be cancelled, and
    /// one lookup per request would take all threads while a name server does not answer.
    ///
    /// # Errors
    /// When the name cannot be resolved.
    pub(super) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let to = (self.host.clone(), self.port);
        self.looked_up(move || to.to_socket_addrs().map(Iterator::collect)).await
    }

    async fn looked_up(
        &self,
        look: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let asked = Instant::now();
        if let Some(known) = self.last().filter(|last| last.failed.is_none()) {
            if known.ended.elapsed() >= KEPT
                && let Ok(turn) = self.turn.clone().try_lock_owned()
            {
                drop(self.begin(turn, look));
            }
            return Ok(known.addresses);
        }
        let turn = self.turn.clone().lock_owned().await;
        // A waiting caller shares the result of the lookup that it waited for.
        let answered = self.last().filter(|last| last.ended >= asked);
        let last = match answered {
            Some(last) => last,
            None => self.begin(turn, look).await.map_err(io::Error::other)?,
        };
        match last.failed {
            None => Ok(last.addresses),
            Some((kind, text)) => Err(io::Error::new(kind, text)),
        }
    }

    fn last(&self) -> Option<Lookup> {
        lock(&self.last).clone()
    }

    fn begin(
        &self,
        turn: OwnedMutexGuard<()>,
        look: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> JoinHandle<Lookup> {
        let last = self.last.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let found = look();
            let mut last = lock(&last);
            let before = last.take().map(|look| look.addresses).unwrap_or_default();
            let failed = found.as_ref().err().filter(|_| before.is_empty());
            let failed = failed.map(|e| (e.kind(), e.to_string()));
            let addresses = found.unwrap_or(before);
            last.insert(Lookup { ended: Instant::now(), addresses, failed }).clone()
        })
    }
}

fn lock(last: &Mutex<Option<Lookup>>) -> MutexGuard<'_, Option<Lookup>> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    fn found(address: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![SocketAddr::new(address.parse().unwrap(), 7)])
    }

    #[tokio::test]
    async fn an_address_needs_no_look_and_a_name_one_for_all_who_ask_whatever_it_comes_to() {
        let name = Name::new("::1".to_string(), 7);
        let never = || panic!("an address is not looked up");
        assert_eq!(name.looked_up(never).await.unwrap(), found("::1").unwrap());
        for fails in [false, true] {
            let name = Name::new("n".to_string(), 7);
            let looks = Arc::new(AtomicUsize::new(0));
            let look = || {
                let looks = looks.clone();
                name.looked_up(move || {
                    looks.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(SOON);
                    if fails { Err(io::Error::other("no such name")) } else { found("10.0.0.5") }
                })
            };
            for outcome in join_all((0..20).map(|_| look())).await {
                match outcome {
                    Ok(addresses) => {
                        assert_eq!((fails, addresses), (false, found("10.0.0.5").unwrap()))
                    }
                    Err(e) => {
                        assert_eq!((fails, e.to_string()), (true, "no such name".to_string()))
                    }
                }
            }
            assert_eq!(looks.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_the_only_one_though_nobody_waits_for_it_any_more() {
        let name = Name::new("n".to_string(), 7);
        let (answer, hangs) = mpsc::channel::<()>();
        let hanging = name.looked_up(move || {
            let _ = hangs.recv();
            Err(io::ErrorKind::NotFound.into())
        });
        assert!(timeout(SOON, hanging).await.is_err());
        for _ in 0..3 {
            let other = name.looked_up(|| panic!("the first look is still under way"));
            assert!(timeout(SOON, other).await.is_err());
        }
        drop(answer);
        // A later caller does not get the failure of this lookup, which may still run for a moment.
        drop(name.turn.lock().await);
        let again = name.looked_up(|| found("10.0.0.6"));
        assert_eq!(again.await.unwrap(), found("10.0.0.6").unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_is_used_until_something_else_is() {
        let name = Name::new("n".to_string(), 7);
        assert!(name.looked_up(|| found("10.0.0.5")).await.is_ok());
        for (answer, known) in
            [(Err(io::ErrorKind::TimedOut.into()), "10.0.0.5"), (found("10.0.0.6"), "10.0.0.6")]
        {
            tokio::time::advance(KEPT).await;
            // The first caller after `KEPT` begins a lookup and does not wait for it.
            assert_eq!(name.looked_up(move || answer).await.unwrap(), found("10.0.0.5").unwrap());
            drop(name.turn.lock().await);
            let never = || panic!("it was looked up just now");
            assert_eq!(name.looked_up(never).await.unwrap(), found(known).unwrap());
        }
    }
}
