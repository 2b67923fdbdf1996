//! Downloads from a real server that plays what servers do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::model::image::ImageSha256;

/// What the server does with one request, the next one with the next.
#[derive(Debug, Clone)]
enum Act {
    /// This head, then these bytes, and the connection is closed.
    Says(String, Vec<u8>),
    /// The same, and the connection stays open without a word.
    Hangs(String, Vec<u8>),
    /// What was asked for, by its range, of the file with that `ETag`.
    Serves(&'static str),
}

/// A server; it remembers the head of each request.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

async fn server(acts: Vec<Act>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/vhost.tar", listener.local_addr().unwrap());
    let seen = Arc::<Mutex<Vec<String>>>::default();
    let heads = seen.clone();
    tokio::spawn(async move {
        for act in acts {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            heads.lock().unwrap().push(head.clone());
            play(stream, act, &head).await;
        }
    });
    Server { url, seen }
}

async fn play(mut stream: TcpStream, act: Act, head: &str) {
    let (answer, bytes) = match &act {
        Act::Says(answer, bytes) | Act::Hangs(answer, bytes) => (answer.clone(), bytes.clone()),
        Act::Serves(etag) => serve(etag, head),
    };
    let _ = stream.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).await;
    let _ = stream.write_all(&bytes).await;
    if matches!(act, Act::Hangs(..)) {
        // Until the client gives up.
        let _ = stream.read_u8().await;
    }
}

/// As RFC 9110 has it.
fn serve(etag: &str, head: &str) -> (String, Vec<u8>) {
    let (file, count) = (file(), file().len());
    let value = |name: &str| {
        head.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_string()))
    };
    let same = value("if-range:").is_none_or(|validator| validator == etag);
    let first = value("range:").filter(|_| same).map(|range| {
        range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
    });
    match first {
        Some(first) if first >= count => {
            let answer = "416 No\r\nContent-Length: 0\r\nContent-Range: bytes */";
            (format!("{answer}{count}"), Vec::new())
        }
        Some(first) => {
            let (last, left) = (count - 1, count - first);
            let range = format!("Content-Range: bytes {first}-{last}/{count}");
            (
                format!("206 Part\r\nETag: {etag}\r\nContent-Length: {left}\r\n{range}"),
                file[first..].into(),
            )
        }
        None => (format!("200 OK\r\nETag: {etag}\r\nContent-Length: {count}"), file),
    }
}

fn file() -> Vec<u8> {
    (0..200_000u32).map(|number| (number % 251) as u8).collect()
}

/// As `sha256sum` prints it for that file.
const DIGEST: &str = "e24bc62381f1224fbbb74688663f8f9743b9680b193edd666835e97b06e730eb";

/// The first half of the file, with an answer that promises all of it.
fn half(etag: &str) -> (String, Vec<u8>) {
    (
        format!("200 OK\r\nETag: {etag}\r\nContent-Length: {}", file().len()),
        file()[..100_000].into(),
    )
}

fn breaks(etag: &str) -> Act {
    let (answer, bytes) = half(etag);
    Act::Says(answer, bytes)
}

struct Place {
    folder: tempfile::TempDir,
    downloader: Downloader,
}

impl Place {
    fn new() -> Place {
        Place::with(1 << 20)
    }

    fn with(most_bytes: u64) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let downloader = Downloader {
            client: HttpClient::default(),
            folder: folder.path().join("images"),
            settings: TargetSettings::default(),
            most_bytes,
            keep_free: 0,
            stall_timeout: Duration::from_millis(300),
        };
        Place { downloader, folder }
    }

    /// Opens these to callers.
    fn lists(&mut self, urls: &[&str]) {
        self.downloader.settings.image_urls = urls.iter().map(ToString::to_string).collect();
    }

    async fn fetch(&self, url: &str, digest: Option<&str>) -> Result<Partial, DownloadError> {
        let sha256 = digest.map(|digest| digest.parse::<ImageSha256>().unwrap());
        let download = Download { url: url.parse().unwrap(), sha256 };
        self.downloader.fetch(&download, &|_| {}).await
    }

    /// Sizes of the downloads that lie there.
    #[allow(clippy::disallowed_methods)]
    fn kept(&self) -> Vec<u64> {
        let listing = std::fs::read_dir(self.folder.path().join("images")).unwrap().flatten();
        let parts = listing.filter(|entry| entry.path().extension().is_some_and(|e| e == "part"));
        parts.map(|entry| entry.metadata().unwrap().len()).collect()
    }
}

fn is_the_file(partial: &Partial) {
    assert_eq!((partial.length(), partial.sha256().as_str()), (file().len() as u64, DIGEST));
}

#[tokio::test]
async fn a_file_is_downloaded_and_judged_by_its_digest() {
    let (server, place) = (server(vec![Act::Serves("\"a\"")]).await, Place::new());
    is_the_file(&place.fetch(&server.url, Some(DIGEST)).await.unwrap());
    let seen = server.seen.lock().unwrap()[0].clone();
    assert!(seen.starts_with("get /vhost.tar ") && !seen.contains("range"), "{seen}");
    let again = place.fetch(&server.url, Some(DIGEST)).await.unwrap();
    is_the_file(&again);
    assert_eq!(server.seen.lock().unwrap().len(), 1, "what is there whole is not asked for");
}

#[tokio::test]
async fn what_broke_off_is_gone_on_with() {
    let acts = vec![breaks("\"a\""), Act::Serves("\"a\"")];
    let (server, place) = (server(acts).await, Place::new());
    let error = place.fetch(&server.url, None).await.unwrap_err();
    assert!(matches!(error, DownloadError::Broken { got: 100_000, .. }), "{error:?}");
    assert_eq!(place.kept(), [100_000]);
    is_the_file(&place.fetch(&server.url, None).await.unwrap());
    let seen = server.seen.lock().unwrap()[1].clone();
    assert!(
        seen.contains("range: bytes=100000-\r\n") && seen.contains("if-range: \"a\"\r\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_is_begun_anew() {
    let acts = vec![breaks("\"a\""), Act::Serves("\"b\"")];
    let (server, place) = (server(acts).await, Place::new());
    place.fetch(&server.url, None).await.unwrap_err();
    is_the_file(&place.fetch(&server.url, None).await.unwrap());
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_begins_anew() {
    let whole = |_| Act::Says(format!("200 OK\r\nContent-Length: {}", file().len()), file());
    let acts = vec![breaks("\"a\""), whole(()), breaks("W/\"weak\""), whole(())];
    let (server, place) = (server(acts).await, Place::new());
    place.fetch(&server.url, None).await.unwrap_err();
    let partial = place.fetch(&server.url, None).await.unwrap();
    is_the_file(&partial);
    partial.remove();
    place.fetch(&server.url, None).await.unwrap_err();
    is_the_file(&place.fetch(&server.url, None).await.unwrap());
    let seen = server.seen.lock().unwrap()[3].clone();
    assert!(
        !seen.contains("range"),
        "a weak ETag tells too little, and nothing else is known: {seen}"
    );
}

#[tokio::test]
async fn a_range_that_is_none_of_it_is_begun_anew() {
    for answer in ["416 No\r\nContent-Range: bytes */7", "206 Part\r\nContent-Range: bytes 5-9/10"]
    {
        let wrong = Act::Says(format!("{answer}\r\nContent-Length: 0"), Vec::new());
        let acts = vec![breaks("\"a\""), wrong, Act::Serves("\"a\"")];
        let (server, place) = (server(acts).await, Place::new());
        place.fetch(&server.url, None).await.unwrap_err();
        is_the_file(&place.fetch(&server.url, None).await.unwrap());
        assert_eq!(server.seen.lock().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn a_file_that_is_whole_is_known_by_the_servers_word() {
    let acts = vec![Act::Serves("\"a\""), Act::Serves("\"a\"")];
    let (server, place) = (server(acts).await, Place::new());
    drop(place.fetch(&server.url, None).await.unwrap());
    is_the_file(&place.fetch(&server.url, None).await.unwrap());
    assert!(server.seen.lock().unwrap()[1].contains("range: bytes=200000-\r\n"));
}

#[tokio::test]
async fn another_digest_is_refused_with_both_and_the_file_goes() {
    let (server, place) = (server(vec![Act::Serves("\"a\"")]).await, Place::new());
    let wanted = "ab".repeat(32);
    let error = place.fetch(&server.url, Some(&wanted)).await.unwrap_err().to_string();
    assert!(error.contains(DIGEST) && error.contains(&wanted), "{error}");
    assert_eq!(place.kept(), [0; 0]);
}

#[tokio::test]
async fn what_was_kept_and_leads_to_another_digest_is_fetched_anew_once() {
    let lie = (half("\"a\"").0, vec![7; 100_000]);
    let acts = vec![Act::Says(lie.0, lie.1), Act::Serves("\"a\""), Act::Serves("\"a\"")];
    let (server, place) = (server(acts).await, Place::new());
    place.fetch(&server.url, Some(DIGEST)).await.unwrap_err();
    is_the_file(&place.fetch(&server.url, Some(DIGEST)).await.unwrap());
    assert!(!server.seen.lock().unwrap()[2].contains("range"));
}

#[tokio::test]
async fn a_stalled_download_is_given_up_and_kept() {
    let (answer, bytes) = half("\"a\"");
    let silence = Act::Hangs(String::new(), Vec::new());
    let acts = vec![Act::Hangs(answer, bytes), silence, Act::Serves("\"a\"")];
    let (server, place) = (server(acts).await, Place::new());
    let error = place.fetch(&server.url, None).await.unwrap_err();
    assert!(matches!(error, DownloadError::Stalled { got: 100_000, .. }), "{error:?}");
    place.fetch(&server.url, None).await.unwrap_err();
    assert_eq!(place.kept(), [100_000]);
    is_the_file(&place.fetch(&server.url, None).await.unwrap());
}

#[tokio::test]
async fn more_than_is_taken_is_refused_whether_it_is_announced_or_not() {
    let unannounced = Act::Says("200 OK".to_string(), file());
    let (server, place) =
        (server(vec![Act::Serves("\"a\""), unannounced]).await, Place::with(1000));
    for _ in 0..2 {
        let error = place.fetch(&server.url, None).await.unwrap_err();
        assert!(error.to_string().contains("1000 are taken (target.image_max_mib)"), "{error}");
        assert_eq!(place.kept().into_iter().sum::<u64>(), 0);
    }
}

#[tokio::test]
async fn what_the_disk_has_no_room_for_is_not_begun() {
    let promise = format!("200 OK\r\nContent-Length: {}", u64::MAX / 4);
    let acts = vec![Act::Hangs(promise, b"begins".to_vec())];
    let (server, place) = (server(acts).await, Place::with(u64::MAX));
    let error = place.fetch(&server.url, None).await.unwrap_err().to_string();
    assert!(error.contains("no room at") && error.contains("set state_dir"), "{error}");
    assert_eq!(place.kept(), [0]);
}

#[tokio::test]
async fn a_download_leaves_of_its_disk_what_is_to_stay_free() {
    let (server, mut place) = (server(vec![Act::Serves("\"a\"")]).await, Place::new());
    place.downloader.keep_free = u64::MAX;
    let error = place.fetch(&server.url, None).await.unwrap_err().to_string();
    assert!(error.contains("target.image_keep_free_mib"), "{error}");
    assert_eq!(place.kept(), [0]);
}

#[tokio::test]
async fn a_reply_that_is_no_file_is_reported_and_not_kept() {
    let refuses = Act::Says("404 Not Found\r\nContent-Length: 4".to_string(), b"none".to_vec());
    let (server, place) = (server(vec![refuses]).await, Place::new());
    let error = place.fetch(&server.url, None).await.unwrap_err().to_string();
    assert!(error.contains(&server.url) && error.contains("404"), "{error}");
    assert_eq!(place.kept(), [0]);
    let error = place.fetch("http://127.0.0.1:9/vhost.tar", None).await.unwrap_err();
    assert!(crate::model::fault::chain(&error).contains("refused"), "{error:?}");
}

#[tokio::test]
async fn redirects_are_followed_and_not_for_ever() {
    let to = |location: &str| {
        Act::Says(format!("302 There\r\nContent-Length: 0\r\nLocation: {location}"), Vec::new())
    };
    let (first, mut place) =
        (server(vec![to("/other?a=b"), Act::Serves("\"a\"")]).await, Place::new());
    place.lists(&[&first.url.replace("vhost.tar", "other")]);
    is_the_file(&place.fetch(&first.url, None).await.unwrap());
    assert!(first.seen.lock().unwrap()[1].starts_with("get /other?a=b "));
    let round = server(vec![to("/vhost.tar"); 9]).await;
    let error = place.fetch(&round.url, None).await.unwrap_err();
    assert!(matches!(error, DownloadError::Redirect { .. }), "{error:?}");
    assert_eq!(round.seen.lock().unwrap().len(), MOST_REDIRECTS + 1);
    for (location, shown) in [("ftp://a:secret@b/c?secret", "'ftp://b/c?…'"), ("x:secret", "'…'")]
    {
        let elsewhere = server(vec![to(location)]).await;
        let error = place.fetch(&elsewhere.url, None).await.unwrap_err().to_string();
        assert!(error.contains(shown) && !error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_leads_nowhere_that_is_not_listed() {
    let (other, mut place) = (server(vec![Act::Serves("\"a\"")]).await, Place::new());
    let to = |url: &str| {
        Act::Says(format!("302 There\r\nContent-Length: 0\r\nLocation: {url}"), Vec::new())
    };
    let first =
        server(vec![to(&other.url), to(&other.url.replace("127.0.0.1", "localhost"))]).await;
    place.lists(&["http://localhost:1", &first.url]);
    let error = place.fetch(&first.url, None).await.unwrap_err().to_string();
    assert!(error.contains("target.image_urls does not list it"), "{error}");
    assert!(other.seen.lock().unwrap().is_empty(), "nobody is asked");
    // What the settings name leads on as its server says, but from a name not into the node.
    place.downloader.settings.image_url.clone_from(&first.url);
    is_the_file(&place.fetch(&first.url, None).await.unwrap());
}

#[tokio::test]
async fn neither_address_nor_redirect_leads_to_cloud_metadata() {
    let place = Place::new();
    let refused = |outcome: Result<Partial, DownloadError>| match outcome {
        Err(DownloadError::Unreachable { source, .. }) => {
            assert!(matches!(source, SendError::Refused { .. }), "{source:?}");
        }
        other => panic!("{other:?}"),
    };
    for url in ["http://169.254.169.254/x.tar", "http://[fd00:ec2::254]/x.tar"] {
        let download = Download { url: url.parse().unwrap(), sha256: None };
        refused(place.downloader.fetch(&download, &|_| {}).await);
    }
    let mut place = place;
    place.lists(&["http://100.100.100.200"]);
    let leads = "307 There\r\nContent-Length: 0\r\nLocation: http://100.100.100.200/x.tar";
    let server = server(vec![Act::Says(leads.to_string(), Vec::new())]).await;
    let download = Download { url: server.url.parse().unwrap(), sha256: None };
    refused(place.downloader.fetch(&download, &|_| {}).await);
    assert_eq!(server.seen.lock().unwrap().len(), 1);
}
