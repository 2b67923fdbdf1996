//! The doors with what stands before them: the listeners, and TLS and tokens as their files say now.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::api::Routers;
use crate::api::access::Tokens;
use crate::api::serve::{self, Door, Guards, Listener, Material, listen};
use crate::config::{Settings, Tls};
use crate::host::Root;
use crate::host::door::{DoorSocket, listen_at, read_public, read_secret};
use crate::host::own_process::raise_open_files;
use crate::host::watch::Watch;
use crate::model::fault::{Fault, chain};
use crate::model::node::Exposure;

/// Whoever renews certificates writes more than one file: they are read when it is quiet again.
const BREATH: Duration = Duration::from_millis(300);
/// Descriptors that are kept for the agent's own work, by doors.
const DESCRIPTORS_PER_DOOR: usize = 4;

/// What listens, before anything is served.
pub(super) struct Listeners {
    main: Listener,
    admin: Option<Listener>,
    here: Option<Listener>,
    /// Takes the path of the socket away when the agent ends.
    pub(super) socket: Option<DoorSocket>,
    /// Where the main one is.
    pub(super) address: std::net::SocketAddr,
    /// Whether the main one speaks TLS.
    pub(super) tls: bool,
    guards: watch::Receiver<Guards>,
}

impl Listeners {
    /// Listens wherever the settings say, and reads the guards' files, now and when they change.
    pub(super) async fn open(settings: &Settings, root: &Path) -> Result<Listeners> {
        let files = Files::of(settings);
        let (guards, tls_digest) = files.clone().read().await.context("cannot serve")?;
        let tls = guards.tls.is_some();
        let (now, watched) = watch::channel(guards);
        if !files.is_empty() {
            let hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
            tokio::spawn(files.keep(now, tls_digest, hangup));
        } else {
            // A terminal that hangs up, or an operator who expects something to be read anew, ends no agent.
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
                let (gid, mode) = (settings.access.socket_gid, settings.access.socket_mode.0);
                let (listener, socket) = listen_at(&path, gid, mode)?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                (Some(Listener::Unix(listener)), Some(socket))
            }
        };
        let main = Listener::Tcp(main);
        Ok(Listeners { main, admin, here, socket, address, tls, guards: watched })
    }

    /// Where `/healthz` and `/metrics` are alone, when that is not the main address.
    pub(super) fn admin_address(&self) -> Option<std::net::SocketAddr> {
        match &self.admin {
            Some(Listener::Tcp(listener)) => listener.local_addr().ok(),
            _ => None,
        }
    }

    /// The doors, each with its router.
    pub(super) fn doors(self, settings: &Settings, routers: Routers) -> Vec<Door> {
        let unguarded = || watch::channel(Guards::default()).1;
        let inner =
            |listener, router| Door { listener, router, allow: Vec::new(), guards: unguarded() };
        let main = Door {
            listener: self.main,
            router: routers.main,
            allow: settings.access.allow.clone(),
            guards: self.guards,
        };
        let admin = self.admin.map(|listener| inner(listener, routers.admin));
        let here = self.here.map(|listener| inner(listener, routers.here));
        std::iter::once(main).chain(admin).chain(here).collect()
    }
}

/// Where the node's own socket is: by default in a folder of the machine that the agent looks at, which is
/// not this one under another `--root`.
pub fn socket_path(settings: &Settings, root: &Path) -> Option<PathBuf> {
    let path = settings.access.socket.as_str();
    match path {
        "" => None,
        usual if usual == Settings::default().access.socket => Some(Root::new(root).path(usual)),
        other => Some(PathBuf::from(other)),
    }
}

/// Connections at one time, of each door: no more than there are descriptors for.
pub(super) fn connections(settings: &Settings) -> usize {
    let wanted = settings.http.max_connections;
    let files = usize::try_from(raise_open_files()).unwrap_or(usize::MAX);
    let most = (files / DESCRIPTORS_PER_DOOR).max(1);
    if wanted > most {
        tracing::warn!(
            wanted,
            most,
            "this process may open {files} files only: fewer connections are taken (http.max_connections, \
             LimitNOFILE, ulimit -n)"
        );
    }
    wanted.min(most)
}

/// What somebody who looks at the node is told of who may call.
pub(super) fn exposure(settings: &Settings, listeners: &Listeners, root: &Path) -> Exposure {
    let tls = &settings.tls;
    Exposure {
        listen: listeners.address.to_string(),
        tls: listeners.tls,
        client_certificates: !tls.client_ca.is_empty(),
        tokens: !settings.access.tokens_file.is_empty(),
        allow: settings.access.allow.clone(),
        admin_listen: listeners.admin_address().map(|address| address.to_string()),
        socket: socket_path(settings, root).map(|path| path.display().to_string()),
        loopback: listeners.address.ip().is_loopback(),
    }
}

/// The files of the guards.
#[derive(Debug, Clone)]
struct Files {
    tls: Option<Tls>,
    tokens: Option<String>,
}

/// By what it is seen whether the files of TLS have changed.
type TlsDigest = Option<[u8; 32]>;

impl Files {
    fn of(settings: &Settings) -> Files {
        let tls = Some(&settings.tls).filter(|tls| !tls.certificate.is_empty()).cloned();
        let tokens = Some(&settings.access.tokens_file).filter(|path| !path.is_empty()).cloned();
        Files { tls, tokens }
    }

    fn is_empty(&self) -> bool {
        self.tls.is_none() && self.tokens.is_none()
    }

    async fn read(self) -> Result<(Guards, TlsDigest), Fault> {
        // The files may lie on a disk that hangs.
        let read = tokio::task::spawn_blocking(move || self.read_now()).await;
        read.unwrap_or_else(|e| Err(Fault::new("internal", e.to_string())))
    }

    fn read_now(&self) -> Result<(Guards, TlsDigest), Fault> {
        let (mut guards, mut seen) = (Guards::default(), None);
        if let Some(tls) = &self.tls {
            let client_ca = Some(&tls.client_ca).filter(|path| !path.is_empty());
            let client_ca = client_ca.map(|path| read_public(path)).transpose()?;
            let (chain_pem, key) = (read_public(&tls.certificate)?, read_secret(&tls.key)?);
            let material = Material { chain: chain_pem, key, client_ca };
            let config = serve::tls_config(&material);
            guards.tls = Some(config.map_err(|e| Fault::new("tls-unusable", chain(&e)))?);
            seen = Some(digest(&material));
        }
        if let Some(path) = &self.tokens {
            let unusable = |why| Fault::new("tokens-unusable", format!("{path}: {why}"));
            let text = String::from_utf8(read_secret(path)?)
                .map_err(|_| unusable("it is no text".to_string()))?;
            guards.tokens = Some(Tokens::read(&text).map_err(unusable)?);
        }
        Ok((guards, seen))
    }

    fn folders(&self) -> Vec<PathBuf> {
        let tls = self.tls.iter().flat_map(|tls| [&tls.certificate, &tls.key, &tls.client_ca]);
        let all = tls.chain(&self.tokens).filter_map(|path| Path::new(path).parent());
        let mut folders: Vec<PathBuf> = all.map(Path::to_owned).collect();
        folders.sort();
        folders.dedup();
        folders.retain(|folder| !folder.as_os_str().is_empty());
        folders
    }

    /// Reads the files anew when they change, or SIGHUP asks for it. What cannot be used then changes nothing.
    async fn keep(self, now: watch::Sender<Guards>, mut tls: TlsDigest, mut hangup: Signal) {
        let watches: Vec<Watch> = self
            .folders()
            .iter()
            .filter_map(|folder| {
                let watch = Watch::new(folder);
                if let Err(e) = &watch {
                    tracing::warn!(
                        error = %chain(e),
                        "new certificates and tokens are only read when asked for (systemctl kill -s HUP vhost-agent)"
                    );
                }
                watch.ok()
            })
            .collect();
        loop {
            tokio::select! {
                // All are cancel-safe: events and signals that were not heard stay.
                () = any(&watches) => {}
                _ = hangup.recv() => {}
            }
            sleep(BREATH).await;
            match self.clone().read().await {
                Ok((mut guards, seen)) => {
                    let tokens_changed = guards.tokens != now.borrow().tokens;
                    if seen == tls {
                        guards.tls = now.borrow().tls.clone();
                    } else {
                        tracing::info!(
                            "the certificates were read anew: who comes from now on sees them"
                        );
                    }
                    if tokens_changed {
                        tracing::info!(tokens = ?guards.tokens, "the tokens were read anew");
                    }
                    if tokens_changed || seen != tls {
                        now.send_replace(guards);
                    }
                    tls = seen;
                }
                Err(fault) => tracing::error!(
                    code = %fault.code,
                    "certificates or tokens have changed and cannot be used, so those from before stay in force: {}",
                    fault.text
                ),
            }
        }
    }
}

fn digest(material: &Material) -> [u8; 32] {
    let mut hash = Sha256::new();
    let files = [Some(&material.chain), Some(&material.key), material.client_ca.as_ref()];
    for file in files.into_iter().flatten() {
        hash.update(file.len().to_le_bytes());
        hash.update(file);
    }
    hash.finalize().into()
}

/// Returns when something has happened in one of the folders.
async fn any(watches: &[Watch]) {
    let each = watches.iter().map(|watch| Box::pin(watch.changed()));
    let each: Vec<_> = each.collect();
    if each.is_empty() {
        return std::future::pending().await;
    }
    let (first, ..) = futures_util::future::select_all(each).await;
    if first.is_err() {
        // A queue that cannot be read would be asked for ever.
        sleep(Duration::from_secs(60)).await;
    }
}
