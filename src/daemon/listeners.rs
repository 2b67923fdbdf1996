//! Listeners, each with its router, access rules and guards.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::guards::GuardFiles;
use crate::api::Routers;
use crate::api::refusals::Refusals;
use crate::api::serve::{Endpoint, Guards, Inodes, KnowsPeers, Listener, PeerOwner, listen};
use crate::config::Settings;
use crate::host::Root;
use crate::host::own_process::raise_open_files;
use crate::host::peer::{self, OwnAddresses, SocketOwner};
use crate::host::unix_socket::{UnixListenerSocket, listen_at};
use crate::model::access::Rules;
use crate::model::network::Network;
use crate::model::node::Exposure;
use crate::model::policy::HttpPolicy;

/// Number of file descriptors for each connection that a listener may have; those left are for other listeners and the
/// agent's own work.
const DESCRIPTORS_PER_CONNECTION: usize = 4;

/// Bound listeners, before anything is served.
pub(super) struct Listeners {
    main: Listener,
    admin: Option<Listener>,
    here: Option<Listener>,
    /// Unix socket, whose path is removed on drop.
    pub(super) socket: Option<UnixListenerSocket>,
    /// Address of the main listener.
    pub(super) address: std::net::SocketAddr,
    /// Set if the main listener speaks TLS.
    pub(super) tls: bool,
    guards: watch::Receiver<Guards>,
}

impl Listeners {
    /// Binds all listeners of the settings and reads the guards' files, now and when they change.
    pub(super) async fn open(settings: &Settings, root: &Path) -> Result<Listeners> {
        let files = GuardFiles::of(settings);
        let read = files.read().await;
        let (config, tls_digest) = read.tls.context("cannot serve")?.unzip();
        let guards = Guards { tls: config, tokens: read.tokens.context("cannot serve")? };
        let tls = guards.tls.is_some();
        let (now, watched) = watch::channel(guards);
        if !files.is_empty() {
            let hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
            tokio::spawn(files.keep(now, tls_digest, hangup));
        } else {
            // A terminal that hangs up, or an operator who expects a reload, must not end the agent.
            let mut hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
            tokio::spawn(async move { while hangup.recv().await.is_some() {} });
        }
        let main = listen(settings.listen).with_context(|| {
            let address = settings.listen;
            format!("cannot listen on {address}: is another agent there? (listen, --listen)")
        })?;
        let address = main.local_addr()?;
        let admin = match settings.admin_listen.0 {
            None => None,
            Some(address) => Some(Listener::Tcp(listen(address).with_context(|| {
                format!("cannot listen on {address}: is it another's? (admin_listen)")
            })?)),
        };
        let (here, socket) = match socket_path(settings, root) {
            None => (None, None),
            Some(path) => {
                let (gid, mode) = (settings.access.socket_gid, settings.access.socket_mode);
                let (listener, socket) = listen_at(&path, gid, mode)?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                (Some(Listener::Unix(listener)), Some(socket))
            }
        };
        let main = Listener::Tcp(main);
        Ok(Listeners { main, admin, here, socket, address, tls, guards: watched })
    }

    /// Address for `/healthz` and `/metrics` alone, if it is not the main one.
    pub(super) fn admin_address(&self) -> Option<std::net::SocketAddr> {
        match &self.admin {
            Some(Listener::Tcp(listener)) => listener.local_addr().ok(),
            _ => None,
        }
    }

    /// Joins each listener with its router, rules and guards.
    pub(super) fn endpoints(
        self,
        settings: &Settings,
        routers: Routers,
        refusals: &Refusals,
    ) -> Vec<Endpoint> {
        let header_case = settings.fallback().is_some();
        let node: Arc<dyn KnowsPeers> = Arc::new(Peers(OwnAddresses::look()));
        let endpoint = |listener, router, rules, guards| {
            let (rules, refusals) = (Arc::new(rules), refusals.clone());
            Endpoint { listener, router, rules, guards, node: node.clone(), refusals, header_case }
        };
        let inner = |listener, router| {
            endpoint(listener, router, Rules::open(), watch::channel(Guards::default()).1)
        };
        let rules = settings.access.rules(&settings.tls);
        let main = endpoint(self.main, routers.main, rules, self.guards);
        let admin = self.admin.map(|listener| inner(listener, routers.admin));
        let here = self.here.map(|listener| inner(listener, routers.here));
        std::iter::once(main).chain(admin).chain(here).collect()
    }
}

/// Ownership of peers' connections, as the kernel reports it.
struct Peers(OwnAddresses);

impl KnowsPeers for Peers {
    fn whose(&self, peer: SocketAddr, own: SocketAddr) -> PeerOwner {
        // The kernel's lookup also covers an address that this machine got a moment ago. The list of own addresses
        // covers connections that the kernel does not know.
        match peer::owner(peer, own) {
            Ok(Some(SocketOwner { uid, inode })) => PeerOwner::Users(uid, inode),
            Ok(None) => PeerOwner::Nobodys,
            Err(_) if self.0.have(peer.ip()) => PeerOwner::Nobodys,
            Err(_) => PeerOwner::Elsewhere,
        }
    }

    fn are_held_here(&self, sockets: &Inodes) -> Inodes {
        peer::held_here(sockets)
    }
}

/// Path of the node's own socket: by default below `--root`, the observed machine, which may not be this one.
pub fn socket_path(settings: &Settings, root: &Path) -> Option<PathBuf> {
    let path = settings.access.socket.as_str();
    match path {
        "" => None,
        usual if usual == Settings::default().access.socket => Some(Root::new(root).path(usual)),
        other => Some(PathBuf::from(other)),
    }
}

/// Lowers the limit of concurrent connections per listener to what the descriptors allow.
pub(super) fn affordable(limits: HttpPolicy) -> HttpPolicy {
    let wanted = limits.max_connections;
    let files = usize::try_from(raise_open_files()).unwrap_or(usize::MAX);
    let most = (files / DESCRIPTORS_PER_CONNECTION).max(1);
    if wanted > most {
        tracing::warn!(
            wanted,
            most,
            "http.max_connections is {wanted}, but each listener accepts {most} only, because this process may open \
             {files} files: raise LimitNOFILE of its unit (ulimit -n)"
        );
    }
    HttpPolicy { max_connections: wanted.min(most), ..limits }
}

/// Exposure of the agent as the node's status shows it, with warnings.
pub(super) fn exposure(settings: &Settings, listeners: &Listeners, root: &Path) -> Exposure {
    let exposure = settings.exposure(listeners.address);
    let own = OwnAddresses::look();
    let named = exposure.allow.iter().filter_map(Network::only);
    let warnings = named.filter(|named| !named.is_loopback() && own.have(*named)).map(|named| {
        format!(
            "access.allow has {named}, an address of this node: any user of this node may do everything by it, as the \
             controller may that is on the node too; name tokens where that counts"
        )
    });
    let warnings = exposure.warnings.iter().cloned().chain(warnings).collect();
    Exposure {
        warnings,
        admin_listen: listeners.admin_address().map(|address| address.to_string()),
        socket: socket_path(settings, root).map(|path| path.display().to_string()),
        ..exposure
    }
}
