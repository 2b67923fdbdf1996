//! Where one name leads, for those who ask for it with each request.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long an answer is used: a look-up may cost more than the request it is for.
const KEPT: Duration = Duration::from_secs(5);

/// A host and a port.
#[derive(Debug)]
pub struct Name {
    host: String,
    port: u16,
    found: Arc<Mutex<Option<Found>>>,
}

#[derive(Debug)]
struct Found {
    at: Instant,
    addresses: Vec<SocketAddr>,
}

impl Name {
    /// A name, or an address without brackets, and a port.
    pub fn new(host: String, port: u16) -> Name {
        Name { host, port, found: Arc::default() }
    }

    /// Its addresses. One look-up is under way at a time, also when whoever asked has given up: getaddrinfo(3)
    /// cannot be cut short, and one for each request would take all threads while a name server is silent.
    ///
    /// # Errors
    /// When the name leads nowhere.
    pub async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
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
        let mut found = self.found.clone().lock_owned().await;
        if let Some(known) = found.as_ref().filter(|known| known.at.elapsed() < KEPT) {
            return Ok(known.addresses.clone());
        }
        let looked = tokio::task::spawn_blocking(move || {
            let addresses = look()?;
            *found = Some(Found { at: Instant::now(), addresses: addresses.clone() });
            Ok(addresses)
        });
        looked.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn an_address_needs_no_look_and_a_name_one_for_all_who_ask() {
        let name = Name::new("::1".to_string(), 7);
        let never = || panic!("an address is not looked up");
        assert_eq!(name.looked_up(never).await.unwrap(), ["[::1]:7".parse().unwrap()]);
        let name = Name::new("n".to_string(), 7);
        let looks = Arc::new(AtomicUsize::new(0));
        let look = || {
            let looks = looks.clone();
            name.looked_up(move || {
                looks.fetch_add(1, Ordering::Relaxed);
                Ok(vec!["10.0.0.5:7".parse().unwrap()])
            })
        };
        for found in join_all((0..20).map(|_| look())).await {
            assert_eq!(found.unwrap(), ["10.0.0.5:7".parse().unwrap()]);
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
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
        // What failed is not kept.
        let again = name.looked_up(|| Ok(vec!["10.0.0.6:7".parse().unwrap()]));
        assert_eq!(again.await.unwrap(), ["10.0.0.6:7".parse().unwrap()]);
    }
}
