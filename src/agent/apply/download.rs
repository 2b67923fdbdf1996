//! Download of a tar into a file: resumable, bounded, and verified by its digest.
//!
//! The bytes pass from the connection through a short queue to a thread that writes and hashes them.

use std::path::PathBuf;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::LOCATION;
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use url::Url;

use super::super::observe::blocking;
use super::answer;
use crate::host::HostError;
use crate::host::partial::{Notes, Partial};
use crate::model::bounds::image_reach;
use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::image::{Download, ImageUrl};
use crate::model::policy::{TargetPolicy, TargetSettings};
use crate::model::url::without_secrets;
use crate::outgoing::{HttpClient, SendError};

/// Maximum of redirects, more than an address in use needs.
const MOST_REDIRECTS: usize = 5;
/// Maximum of received pieces that wait to be written to the disk.
const QUEUE: usize = 16;
/// Bytes received between two checks of free disk space: other programs fill the disk too, and a server may not tell
/// the file's size.
const LOOK_EACH: usize = 16 << 20;
/// Interval of progress lines.
const WORD: Duration = Duration::from_secs(1);

/// Failure of a download.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    #[error("{url} cannot be reached")]
    Unreachable { url: String, source: SendError },
    #[error("{url} answered {status}: see whether the address is right, and its server")]
    Status { url: String, status: StatusCode },
    #[error("{url} leads to '{to}', which is not followed: {why}")]
    Redirect { url: String, to: String, why: &'static str },
    #[error(
        "nothing came from {url} for {stall:?} (target.stall_timeout); {got} bytes are kept, and the next \
         call goes on there"
    )]
    Stalled { url: String, stall: Duration, got: u64 },
    #[error("{url} broke off; {got} bytes are kept, and the next call goes on there")]
    Broken { url: String, got: u64, source: Option<hyper::Error> },
    #[error(
        "what {url} gives has {bytes} bytes or more, and {most} are taken (target.image_max_mib)"
    )]
    TooLarge { url: String, bytes: u64, most: u64 },
    #[error(
        "there is no room at {path} for {needs} bytes more, only for {room} beside those that stay free \
         (target.image_keep_free_mib): free some there, or set state_dir to a disk that has it"
    )]
    NoRoom { path: String, needs: u64, room: u64 },
    #[error(
        "what {url} gives has the SHA-256 {is}, and {wanted} is wanted: it was removed; see which of them \
         is right"
    )]
    Digest { url: String, is: String, wanted: String },
    #[error(transparent)]
    File(#[from] HostError),
    #[error(transparent)]
    Thread(#[from] Fault),
}

/// Outcome of a request.
enum DownloadResponse {
    /// Complete file: nothing is missing.
    Whole(Partial, Url),
    /// Response that brings the missing part.
    Comes { partial: Partial, url: Url, response: Response<Incoming>, total: Option<u64> },
}

/// Downloader into a folder of the agent.
#[derive(Debug)]
pub(super) struct Downloader {
    client: HttpClient,
    folder: PathBuf,
    settings: TargetSettings,
    most_bytes: u64,
    keep_free: u64,
    stall_timeout: Duration,
}

impl Downloader {
    pub(super) fn new(policy: &TargetPolicy) -> Downloader {
        Downloader {
            client: HttpClient::default(),
            folder: policy.image_folder.clone(),
            settings: policy.target.clone(),
            most_bytes: policy.target.image_max_mib * 1024 * 1024,
            keep_free: policy.target.image_keep_free_mib * 1024 * 1024,
            stall_timeout: policy.target.stall_timeout,
        }
    }

    /// Downloads the whole file and returns it locked. After a failure the received part is kept for the next attempt,
    /// unless it is wrong, too large, or fills the disk.
    pub(super) async fn fetch(
        &self,
        download: &Download,
        line: &(impl Fn(String) + Send + Sync),
    ) -> Result<Partial, DownloadError> {
        let partial = self.open(&download.url).await?;
        let began_with = partial.length();
        let wanted = download.sha256.as_ref().map(|digest| digest.as_str());
        if began_with > 0 && wanted == Some(partial.sha256().as_str()) {
            return Ok(partial);
        }
        match self.attempt(partial, download, line).await {
            // The part that was kept may be of another file.
            Err(DownloadError::Digest { is, .. }) if began_with > 0 => {
                line(format!("begins anew: what was kept leads to the SHA-256 {is}"));
                let partial = self.open(&download.url).await?;
                self.attempt(partial, download, line).await
            }
            outcome => outcome,
        }
    }

    async fn open(&self, url: &ImageUrl) -> Result<Partial, DownloadError> {
        let digest = Sha256::digest(url.url().as_str().as_bytes());
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = self.folder.clone();
        Ok(blocking(move || Partial::open(&folder, &format!("{name}.part"))).await??)
    }

    async fn attempt(
        &self,
        partial: Partial,
        download: &Download,
        line: &(impl Fn(String) + Send + Sync),
    ) -> Result<Partial, DownloadError> {
        match self.ask(partial, download).await? {
            DownloadResponse::Whole(partial, url) => verified(partial, download, &url).await,
            DownloadResponse::Comes { partial, url, response, total } => {
                let shown = without_secrets(&url);
                self.validate_size(&partial, total, &shown)?;
                line(match partial.length() {
                    0 => format!("downloads {shown}"),
                    there => format!("goes on at byte {there} of {shown}"),
                });
                let partial = self.receive(partial, response, total, &shown, line).await?;
                verified(partial, download, &url).await
            }
        }
    }

    /// Requests the bytes that `partial` lacks. Discards the content of `partial` if the response does not continue it.
    async fn ask(
        &self,
        partial: Partial,
        download: &Download,
    ) -> Result<DownloadResponse, DownloadError> {
        // Without a validator, only a digest shows that the kept part and the rest are of one file.
        let blind = partial.notes().validator.is_none() && download.sha256.is_none();
        let mut partial = match blind {
            true => start_over(partial, Notes::default()).await?,
            false => partial,
        };
        let (mut url, mut response) = self.get(download.url.url(), &partial).await?;
        if answer::is_whole(&response, &partial) {
            return Ok(DownloadResponse::Whole(partial, url));
        }
        if partial.length() > 0 && answer::misses(&response, &partial) {
            partial = start_over(partial, Notes::default()).await?;
            (url, response) = self.get(download.url.url(), &partial).await?;
        }
        if answer::goes_on(&response, &partial) {
            let total = partial.notes().total.or_else(|| answer::total(&response));
            return Ok(DownloadResponse::Comes { partial, url, response, total });
        }
        if response.status() != StatusCode::OK {
            let (url, status) = (without_secrets(&url), response.status());
            return Err(DownloadError::Status { url, status });
        }
        let total = answer::length(&response);
        let notes = Notes { validator: answer::validator(&response), total };
        let partial = start_over(partial, notes).await?;
        Ok(DownloadResponse::Comes { partial, url, response, total })
    }

    /// Sends the request and follows redirects to a response.
    async fn get(
        &self,
        began: &Url,
        partial: &Partial,
    ) -> Result<(Url, Response<Incoming>), DownloadError> {
        let (mut from, mut url) = (String::new(), began.clone());
        for _ in 0..=MOST_REDIRECTS {
            let shown = without_secrets(&url);
            let Some(reach) = image_reach(began, &url, &self.settings) else {
                let why = "target.image_urls does not list it";
                return Err(DownloadError::Redirect { url: from, to: shown, why });
            };
            let sent = timeout(
                self.stall_timeout,
                self.client.send(answer::request(&url, partial), &reach),
            );
            let response = match sent.await {
                Ok(Ok(response)) => response,
                Ok(Err(source)) => return Err(DownloadError::Unreachable { url: shown, source }),
                Err(_) => {
                    let (stall, got) = (self.stall_timeout, partial.length());
                    return Err(DownloadError::Stalled { url: shown, stall, got });
                }
            };
            let leads_on = [301, 302, 303, 307, 308].contains(&response.status().as_u16());
            match response.headers().get(LOCATION).filter(|_| leads_on) {
                None => return Ok((url, response)),
                Some(to) => {
                    let to = String::from_utf8_lossy(to.as_bytes());
                    from = without_secrets(&url);
                    url = answer::next(&url, &to).map_err(|why| {
                        // The redirect's address may contain credentials.
                        let to = match url.join(&to) {
                            Ok(to) if to.has_host() => without_secrets(&to),
                            _ => "…".to_string(),
                        };
                        DownloadError::Redirect { url: without_secrets(&url), to, why }
                    })?;
                }
            }
        }
        let why = "it is one redirect after the other";
        Err(DownloadError::Redirect { url: without_secrets(&url), to: String::new(), why })
    }

    fn validate_size(
        &self,
        partial: &Partial,
        total: Option<u64>,
        url: &str,
    ) -> Result<(), DownloadError> {
        let (Some(bytes), most) = (total, self.most_bytes) else { return Ok(()) };
        if bytes > most {
            return Err(DownloadError::TooLarge { url: url.to_string(), bytes, most });
        }
        validate_room(partial, bytes.saturating_sub(partial.length()), self.keep_free)
    }

    /// Receives the body until the file is whole.
    async fn receive(
        &self,
        partial: Partial,
        response: Response<Incoming>,
        total: Option<u64>,
        url: &str,
        line: &(impl Fn(String) + Send + Sync),
    ) -> Result<Partial, DownloadError> {
        let (pieces, mut queue) = mpsc::channel::<Bytes>(QUEUE);
        let (mut got, keep_free) = (partial.length(), self.keep_free);
        let writer = tokio::task::spawn_blocking(move || {
            let mut partial = partial;
            let mut unseen = 0;
            while let Some(piece) = queue.blocking_recv() {
                let mut written = partial.append(&piece).map_err(DownloadError::from);
                unseen += piece.len();
                if unseen >= LOOK_EACH && written.is_ok() {
                    unseen = 0;
                    written = validate_room(&partial, 0, keep_free);
                }
                if let Err(full) = written {
                    // Not kept for a later attempt: a full disk hurts everything else on it.
                    partial.remove();
                    return Err(full);
                }
            }
            Ok(partial)
        });
        let came = self.pass_on(response.into_body(), pieces, &mut got, total, url, line).await;
        let partial = writer.await.map_err(|e| Fault::new(Code::Internal, e.to_string()))??;
        match came {
            Ok(()) if total.is_none_or(|total| total == partial.length()) => Ok(partial),
            Ok(()) => Err(DownloadError::Broken {
                url: url.to_string(),
                got: partial.length(),
                source: None,
            }),
            Err(error) => {
                if matches!(error, DownloadError::TooLarge { .. }) {
                    blocking(move || partial.remove()).await?;
                }
                Err(error)
            }
        }
    }

    async fn pass_on(
        &self,
        mut body: Incoming,
        pieces: mpsc::Sender<Bytes>,
        got: &mut u64,
        total: Option<u64>,
        url: &str,
        line: &(impl Fn(String) + Send + Sync),
    ) -> Result<(), DownloadError> {
        let (stall, most) = (self.stall_timeout, self.most_bytes);
        let mut word_at = Instant::now() + WORD;
        loop {
            let url = url.to_string();
            let frame = match timeout(stall, body.frame()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(why))) => {
                    return Err(DownloadError::Broken { url, got: *got, source: Some(why) });
                }
                Err(_) => return Err(DownloadError::Stalled { url, stall, got: *got }),
            };
            let Ok(piece) = frame.into_data() else { continue };
            let after = *got + piece.len() as u64;
            if after > most {
                return Err(DownloadError::TooLarge { url, bytes: after, most });
            }
            if pieces.send(piece).await.is_err() {
                // The writer has ended, and returns the reason.
                return Ok(());
            }
            *got = after;
            if Instant::now() >= word_at {
                word_at = Instant::now() + WORD;
                line(how_far(*got, total));
            }
        }
    }
}

/// Checks that the disk has room for `needs` more bytes beside `keep_free`.
fn validate_room(partial: &Partial, needs: u64, keep_free: u64) -> Result<(), DownloadError> {
    match partial.room().map(|room| room.checked_sub(keep_free)) {
        Some(room) if room.is_none_or(|room| room < needs) => {
            let path = partial.path().display().to_string();
            Err(DownloadError::NoRoom { path, needs, room: room.unwrap_or_default() })
        }
        _ => Ok(()),
    }
}

fn how_far(got: u64, total: Option<u64>) -> String {
    let mib = |bytes: u64| format!("{}.{}", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
    match total {
        Some(total) => format!("{} of {} MiB downloaded", mib(got), mib(total)),
        None => format!("{} MiB downloaded", mib(got)),
    }
}

async fn start_over(mut partial: Partial, notes: Notes) -> Result<Partial, DownloadError> {
    let start = move || partial.start_over(notes).map(|()| partial);
    Ok(blocking(start).await??)
}

/// Verifies the digest, and removes a file that does not match.
async fn verified(
    partial: Partial,
    download: &Download,
    url: &Url,
) -> Result<Partial, DownloadError> {
    let is = partial.sha256();
    match &download.sha256 {
        Some(wanted) if wanted.as_str() != is => {
            blocking(move || partial.remove()).await?;
            let (url, wanted) = (without_secrets(url), wanted.as_str().to_string());
            Err(DownloadError::Digest { url, is, wanted })
        }
        _ => Ok(partial),
    }
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
