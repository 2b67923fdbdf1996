//! Loading of an image into the engine, from the first of its sources that has it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::super::observe::target::{Containers, engine_fault};
use super::super::observe::{blocking, blocking_within};
use super::download::{DownloadError, Downloader};
use super::flight::Flights;
use super::pull_refusal::{CLOCK, PullFailure};
use super::registry::RegistryPuller;
use crate::docker::{EngineError, Tar};
use crate::host::{Root, own_image};
use crate::model::code::Code;
use crate::model::fault::{Fault, chain};
use crate::model::image::Download;
use crate::model::policy::TargetPolicy;
use crate::model::step::ImageSource;

/// Loader of images into the engine of one machine.
#[derive(Debug)]
pub(super) struct Images<C> {
    root: Root,
    containers: Arc<C>,
    registries: RegistryPuller<C>,
    downloader: Downloader,
    flights: Flights,
    call_timeout: Duration,
    load_timeout: Duration,
    opening: Arc<Semaphore>,
}

/// Maximum of tars whose opening may hang at one time.
const MOST_OPENING: usize = 4;

impl<C: Containers> Images<C> {
    pub(super) fn new(root: &Root, containers: Arc<C>, policy: &TargetPolicy) -> Images<C> {
        let (registries, call_timeout) = (&policy.registries, policy.target.call_timeout);
        Images {
            root: root.clone(),
            registries: RegistryPuller::new(root, containers.clone(), registries, call_timeout),
            containers,
            downloader: Downloader::new(policy),
            flights: Flights::default(),
            call_timeout,
            load_timeout: policy.target.load_timeout,
            opening: Arc::new(Semaphore::new(MOST_OPENING)),
        }
    }

    /// Loads the image from the first source that has it, and returns its id.
    ///
    /// # Errors
    /// [`Code::ImageLoadFailed`] with the failure of each source.
    pub(super) async fn load(
        &self,
        image: &str,
        from: &[ImageSource],
        line: &(impl Fn(String) + Send + Sync),
    ) -> Result<String, Fault> {
        let mut failures = Vec::new();
        for source in from {
            match self.load_from(image, source, line).await {
                Ok(id) => return Ok(id),
                Err(why) => failures.push(format!("it could not be {source}: {why}")),
            }
        }
        Err(Fault::new(Code::ImageLoadFailed, format!("no image {image}: {}", failures.join("; "))))
    }

    async fn load_from(
        &self,
        image: &str,
        from: &ImageSource,
        line: &(impl Fn(String) + Send + Sync),
    ) -> Result<String, String> {
        // Key under which callers share the work if they want the same image from the same source at the same time.
        let about = match from {
            ImageSource::BuiltIn => String::new(),
            ImageSource::Registry => image.to_string(),
            ImageSource::Tar(path) => path.clone(),
            ImageSource::Url(Download { url, sha256 }) => format!("{} {sha256:?}", url.url()),
        };
        let joined =
            || line(format!("{image} is being {from} for another target: waiting for that"));
        self.flights.share(about, joined, self.bring(image, from, line)).await?;
        // The image in a tar may have another name.
        match self.containers.image(image, self.call_timeout).await {
            Ok(Some(id)) => Ok(id),
            Ok(None) => Err("it holds no image of that name: see `docker images`".to_string()),
            Err(e) => Err(engine_fault(&e).text),
        }
    }

    async fn bring(
        &self,
        image: &str,
        from: &ImageSource,
        line: &(impl Fn(String) + Send + Sync),
    ) -> Result<(), String> {
        let within = self.load_timeout;
        let brought = match from {
            ImageSource::Registry => return self.registries.pull(image, line, within).await,
            ImageSource::BuiltIn => {
                let tar = blocking(own_image::tar).await.map_err(|fault| fault.text)?;
                let tar: Tar = Box::new(std::io::Cursor::new(tar.map_err(|e| e.to_string())?));
                self.containers.load(tar, within).await
            }
            ImageSource::Tar(path) => {
                let at = self.root.path(path);
                let within = self.call_timeout;
                let open = move || own_image::open_tar(&at);
                let opened = blocking_within(&self.opening, within, open).await.ok_or_else(|| {
                    format!("{path} was not opened within {within:?} (target.call_timeout): its disk hangs")
                });
                let file = opened?.map_err(|fault| fault.text)?.map_err(|e| e.to_string())?;
                self.containers.load(Box::new(file), within).await
            }
            ImageSource::Url(download) => return self.download(download, line).await,
        };
        brought.map_err(|e| not_loaded(&e))
    }

    /// Downloads a tar and has the engine load it, both within one deadline.
    async fn download(
        &self,
        download: &Download,
        line: &(impl Fn(String) + Send + Sync),
    ) -> Result<(), String> {
        let deadline = Instant::now() + self.load_timeout;
        let late = |_| {
            let within = self.load_timeout;
            format!(
                "it took longer than {within:?} (target.load_timeout); the next call goes on there"
            )
        };
        let fetched = timeout_at(deadline, self.downloader.fetch(download, line)).await;
        let partial = fetched.map_err(late)?.map_err(|e| not_fetched(&e))?;
        let (bytes, digest) = (partial.length(), partial.sha256());
        line(format!("downloaded: {bytes} bytes, SHA-256 {digest}"));
        let open = move || (partial.reader(), partial);
        let (tar, partial) = blocking(open).await.map_err(|fault| fault.text)?;
        let tar = tar.map_err(|e| e.to_string())?;
        let left = deadline.saturating_duration_since(Instant::now());
        let loaded = self.containers.load(Box::new(tar), left).await;
        // An engine that is absent, another one or slow says nothing about the file.
        let kept = matches!(
            loaded,
            Err(EngineError::Absent { .. }
                | EngineError::NotDocker { .. }
                | EngineError::Gone { .. }
                | EngineError::Timeout { .. })
        );
        if !kept {
            blocking(move || partial.remove()).await.map_err(|fault| fault.text)?;
        }
        loaded.map_err(|e| not_loaded(&e))
    }
}

/// Text of a failed load, with the advice on it.
fn not_loaded(error: &EngineError) -> String {
    let text = engine_fault(error).text;
    match PullFailure::of(&text, "") {
        Some(PullFailure::DiskFull) => text + ": " + &PullFailure::DiskFull.advice("", false),
        _ => text,
    }
}

/// Advice on each of the texts with which rustls refuses a server's certificate (src/error.rs of rustls 0.23).
const CERTIFICATES: [(&str, &str); 4] = [
    ("certificate expired", CLOCK),
    ("certificate not valid yet", CLOCK),
    ("certificate not valid for name", "name the server as its certificate does"),
    (
        "UnknownIssuer",
        "add the certificate of its authority to those of this node (update-ca-certificates or update-ca-trust)",
    ),
];

/// Text of a failed download, with the advice on the server's certificate.
fn not_fetched(error: &DownloadError) -> String {
    let text = chain(error);
    match CERTIFICATES.iter().find(|(words, _)| text.contains(words)) {
        Some((_, advice)) => format!("{text}: {advice}"),
        None => text,
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
