//! TLS and tokens from their files: read at the start and reloaded when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::api::bearer_tokens::Tokens;
use crate::api::serve::{self, CertificatePatterns, Guards, Material, TlsGuard};
use crate::config::{Access, Settings, Tls};
use crate::host::unix_socket::{read_public, read_secret};
use crate::host::watch::PathWatch;
use crate::model::access::Credential;
use crate::model::code::Code;
use crate::model::fault::{Fault, chain};

/// Debounce interval: a renewal of certificates writes more than one file.
const BREATH: Duration = Duration::from_millis(300);
/// Interval of reading the files when no event reports a change.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Files of the guards.
#[derive(Debug, Clone)]
pub(super) struct GuardFiles {
    tls: Option<Tls>,
    tokens: Option<String>,
    /// Includes the tokens in the settings themselves.
    access: Access,
}

/// SHA-256 of the TLS files, to detect a change.
pub(super) type TlsDigest = [u8; 32];

impl GuardFiles {
    pub(super) fn of(settings: &Settings) -> GuardFiles {
        let tls = Some(&settings.tls).filter(|tls| !tls.certificate.is_empty()).cloned();
        let tokens = Some(&settings.access.tokens_file).filter(|path| !path.is_empty()).cloned();
        GuardFiles { tls, tokens, access: settings.access.clone() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tls.is_none() && self.tokens.is_none()
    }

    pub(super) async fn read(&self) -> GuardFilesRead {
        let files = self.clone();
        // The files may lie on a disk that hangs.
        let read = tokio::task::spawn_blocking(move || files.read_now()).await;
        read.unwrap_or_else(|e| {
            let broke = || Fault::new(Code::Internal, e.to_string());
            GuardFilesRead { tls: Err(broke()), tokens: Err(broke()) }
        })
    }

    pub(super) fn read_now(&self) -> GuardFilesRead {
        let tls = self.tls.as_ref().map(|tls| self.read_tls(tls)).transpose();
        GuardFilesRead { tls, tokens: self.read_tokens() }
    }

    fn read_tls(&self, tls: &Tls) -> Result<(Arc<TlsGuard>, TlsDigest), Fault> {
        let optional = |path: &str| Some(path).filter(|path| !path.is_empty()).map(read_public);
        let (chain_pem, key) = (read_public(&tls.certificate)?, read_secret(&tls.key)?);
        let client_ca = optional(&tls.client_ca).transpose()?;
        let client_crl = optional(&tls.client_crl).transpose()?;
        let material = Material { chain: chain_pem, key, client_ca, client_crl };
        let rules = self.access.certificate.iter().filter_map(|rule| {
            let (subject, san) = (rule.subject.clone(), rule.san.clone());
            rule.role.map(|role| CertificatePatterns { subject, san, role })
        });
        let guard = serve::tls_guard(&material, rules.collect());
        let guard = guard.map_err(|e| Fault::new(Code::TlsUnusable, chain(&e)))?;
        Ok((Arc::new(guard), digest(&material)))
    }

    /// Reads the tokens of the file and of the settings; `None` if there are neither.
    fn read_tokens(&self) -> Result<Option<Tokens>, Fault> {
        let mut tokens = self.tokens.as_deref().map(read_tokens).transpose()?;
        for rule in &self.access.token {
            if let Some(digest) = rule.digest() {
                let name = format!("token {}", rule.name).into();
                tokens.get_or_insert_default().add(digest, Credential { name, role: rule.role });
            }
        }
        Ok(tokens)
    }

    fn folders(&self) -> Vec<PathBuf> {
        let files = self
            .tls
            .iter()
            .flat_map(|tls| [&tls.certificate, &tls.key, &tls.client_ca, &tls.client_crl]);
        let all = files.chain(&self.tokens).filter_map(|path| Path::new(path).parent());
        let mut folders: Vec<PathBuf> = all.map(Path::to_owned).collect();
        folders.sort();
        folders.dedup();
        folders.retain(|folder| !folder.as_os_str().is_empty());
        folders
    }

    /// Reloads the files when they change, on SIGHUP, and at an interval. Unusable files change nothing.
    pub(super) async fn keep(
        self,
        now: watch::Sender<Guards>,
        mut tls: Option<TlsDigest>,
        mut hangup: Signal,
    ) {
        let watches: Vec<PathWatch> = self
            .folders()
            .iter()
            .filter_map(|folder| {
                let watch = PathWatch::new(folder);
                if let Err(e) = &watch {
                    tracing::warn!(
                        error = %chain(e),
                        "changed certificates and tokens in {} are noticed after up to a minute: {}",
                        folder.display(),
                        chain(e)
                    );
                }
                watch.ok()
            })
            .collect();
        let (mut unusable, mut overdue): (Option<String>, Option<String>) = (None, None);
        loop {
            // Also at first: a change before the watch began is observed now.
            let read = self.read().await;
            let mut guards = now.borrow().clone();
            let before = guards.tokens.clone();
            let mut why = Vec::new();
            match read.tls {
                Ok(Some((_, digest))) if Some(digest) == tls => {}
                Ok(Some((config, digest))) => {
                    tracing::info!(
                        "the TLS files changed and were reloaded (tls.certificate is {}): new connections use them",
                        self.tls.as_ref().map_or("unset", |files| files.certificate.as_str())
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
                tracing::info!(
                    tokens = ?guards.tokens,
                    "the tokens changed and were reloaded (access.tokens_file is {})",
                    self.tokens.as_deref().unwrap_or("unset")
                );
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
            let warning = now.borrow().tls.as_ref().and_then(|tls| tls.warning(SystemTime::now()));
            if let Some(warning) =
                warning.as_ref().filter(|warning| overdue.as_ref() != Some(warning))
            {
                tracing::warn!("{warning}");
            }
            overdue = warning;
            tokio::select! {
                // All are cancel-safe: events and signals that were not received stay.
                () = any(&watches) => {}
                _ = hangup.recv() => {}
                // A folder that was moved away, or a link above it, sends no event.
                () = sleep(LOOK_AGAIN) => {}
            }
            sleep(BREATH).await;
        }
    }
}

/// Results of reading the files, each by itself: an unusable one does not hold up another.
pub(super) struct GuardFilesRead {
    pub(super) tls: Result<Option<(Arc<TlsGuard>, TlsDigest)>, Fault>,
    pub(super) tokens: Result<Option<Tokens>, Fault>,
}

fn read_tokens(path: &str) -> Result<Tokens, Fault> {
    let unusable = |why| Fault::new(Code::TokensUnusable, format!("{path}: {why}"));
    let text =
        String::from_utf8(read_secret(path)?).map_err(|_| unusable("it is no text".to_string()))?;
    Tokens::read(&text).map_err(unusable)
}

fn digest(material: &Material) -> [u8; 32] {
    let mut hash = Sha256::new();
    let (ca, crl) = (material.client_ca.as_ref(), material.client_crl.as_ref());
    let files = [Some(&material.chain), Some(&material.key), ca, crl];
    for file in files.into_iter().flatten() {
        hash.update(file.len().to_le_bytes());
        hash.update(file);
    }
    hash.finalize().into()
}

/// Waits for an event in one of the folders.
async fn any(watches: &[PathWatch]) {
    let each = watches.iter().map(|watch| Box::pin(watch.changed()));
    let each: Vec<_> = each.collect();
    if each.is_empty() {
        return std::future::pending().await;
    }
    let (first, ..) = futures_util::future::select_all(each).await;
    if first.is_err() {
        // A queue that cannot be read would make this a busy loop.
        sleep(Duration::from_secs(60)).await;
    }
}
