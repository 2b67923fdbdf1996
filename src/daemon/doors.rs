//! The doors with what stands before them: the listeners, and TLS and tokens as their files say now.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::rustls::ServerConfig;

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
/// How often the files are looked at when nothing tells that they have changed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
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
        let read = files.read().await;
        let (config, tls_digest) = read.tls.context("cannot serve")?.unzip();
        let guards = Guards { tls: config, tokens: read.tokens.context("cannot serve")? };
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
type TlsDigest = [u8; 32];

impl Files {
    fn of(settings: &Settings) -> Files {
        let tls = Some(&settings.tls).filter(|tls| !tls.certificate.is_empty()).cloned();
        let tokens = Some(&settings.access.tokens_file).filter(|path| !path.is_empty()).cloned();
        Files { tls, tokens }
    }

    fn is_empty(&self) -> bool {
        self.tls.is_none() && self.tokens.is_none()
    }

    async fn read(&self) -> Read {
        let files = self.clone();
        // The files may lie on a disk that hangs.
        let read = tokio::task::spawn_blocking(move || files.read_now()).await;
        read.unwrap_or_else(|e| {
            let broke = || Fault::new("internal", e.to_string());
            Read { tls: Err(broke()), tokens: Err(broke()) }
        })
    }

    fn read_now(&self) -> Read {
        let tls = self.tls.as_ref().map(read_tls).transpose();
        Read { tls, tokens: self.tokens.as_deref().map(read_tokens).transpose() }
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

    /// Reads the files anew when they change, SIGHUP asks for it, and now and then. What cannot be used then
    /// changes nothing.
    async fn keep(
        self,
        now: watch::Sender<Guards>,
        mut tls: Option<TlsDigest>,
        mut hangup: Signal,
    ) {
        let watches: Vec<Watch> = self
            .folders()
            .iter()
            .filter_map(|folder| {
                let watch = Watch::new(folder);
                if let Err(e) = &watch {
                    tracing::warn!(error = %chain(e), "new certificates and tokens are seen within a minute only");
                }
                watch.ok()
            })
            .collect();
        let mut unusable: Option<String> = None;
        loop {
            // Also at first: what changed before it was watched is seen now.
            let read = self.read().await;
            let mut guards = now.borrow().clone();
            let before = guards.tokens.clone();
            let mut why = Vec::new();
            match read.tls {
                Ok(Some((_, digest))) if Some(digest) == tls => {}
                Ok(Some((config, digest))) => {
                    tracing::info!(
                        "the certificates were read anew: who comes from now on sees them"
                    );
                    (guards.tls, tls) = (Some(config), Some(digest));
                }
                Ok(None) => {}
                Err(fault) => why.push(fault.text),
            }
            match read.tokens {
                Ok(tokens) => guards.tokens = tokens,
                Err(fault) => why.push(fault.text),
            }
            if guards.tokens != before {
                tracing::info!(tokens = ?guards.tokens, "the tokens were read anew");
            }
            now.send_if_modified(|old| {
                let changed = !old.is_as(&guards);
                *old = guards;
                changed
            });
            let why = Some(why.join("; ")).filter(|why| !why.is_empty());
            if let Some(why) = why.as_ref().filter(|why| unusable.as_ref() != Some(why)) {
                tracing::error!(
                    "certificates or tokens have changed and cannot be used, so those from before stay in force: {why}"
                );
            }
            unusable = why;
            tokio::select! {
                // All are cancel-safe: events and signals that were not heard stay.
                () = any(&watches) => {}
                _ = hangup.recv() => {}
                // A folder that was moved away, or a link above it, tells nobody.
                () = sleep(LOOK_AGAIN) => {}
            }
            sleep(BREATH).await;
        }
    }
}

/// What the files came to, each by itself: one that cannot be used holds up no other.
struct Read {
    tls: Result<Option<(Arc<ServerConfig>, TlsDigest)>, Fault>,
    tokens: Result<Option<Tokens>, Fault>,
}

fn read_tls(tls: &Tls) -> Result<(Arc<ServerConfig>, TlsDigest), Fault> {
    let client_ca = Some(&tls.client_ca).filter(|path| !path.is_empty());
    let client_ca = client_ca.map(|path| read_public(path)).transpose()?;
    let (chain_pem, key) = (read_public(&tls.certificate)?, read_secret(&tls.key)?);
    let material = Material { chain: chain_pem, key, client_ca };
    let config = serve::tls_config(&material);
    let config = config.map_err(|e| Fault::new("tls-unusable", chain(&e)))?;
    Ok((config, digest(&material)))
}

fn read_tokens(path: &str) -> Result<Tokens, Fault> {
    let unusable = |why| Fault::new("tokens-unusable", format!("{path}: {why}"));
    let text =
        String::from_utf8(read_secret(path)?).map_err(|_| unusable("it is no text".to_string()))?;
    Tokens::read(&text).map_err(unusable)
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
