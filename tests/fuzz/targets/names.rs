//! Names, paths, addresses and the other words of one line that calls, settings and files hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_agent::api::bearer_tokens::Tokens;
use vhost_agent::model::caller::Caller;
use vhost_agent::model::egress_policy::EgressPolicy;
use vhost_agent::model::engine::ApiVersion;
use vhost_agent::model::event::EventId;
use vhost_agent::model::image::{ImageSha256, ImageUrl};
use vhost_agent::model::network::Network;
use vhost_agent::model::path::{CleanPath, SUN_PATH, validate_length, validate_socket};
use vhost_agent::model::progress::Stage;
use vhost_agent::model::registry::registry_of;
use vhost_agent::model::target::{TargetName, validate_image};
use vhost_agent::model::task::TaskId;
use vhost_agent::model::units::PageSize;
use vhost_agent::model::url::HttpUrl;
use vhost_agent::model::volume::VolumeName;
use vhost_agent_fuzz::is_one_part;

fuzz_target!(|text: &str| {
    name(text);
    path(text);
    image(text);
    if let Ok(url) = text.parse::<ImageUrl>() {
        address(&url);
    }
    if let Ok(digest) = text.parse::<ImageSha256>() {
        assert_eq!(digest.as_str().parse(), Ok(digest.clone()));
    }
    if let Ok(size) = text.parse::<PageSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
        assert!(size.bytes() >= 1024 && size.bytes() / 1024 == size.kib());
    }
    if let Ok(version) = text.parse::<ApiVersion>() {
        assert_eq!(version.to_string().parse(), Ok(version));
    }
    if let Ok(id) = text.parse::<EventId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Some(stage) = Stage::parse(text) {
        let done: Vec<u32> = [0, 1, 7, u32::MAX].map(|steps| stage.after(steps)).into();
        assert!(done.is_sorted() && done.iter().all(|percent| *percent <= 100), "{done:?}");
    }
    if let Ok(url) = HttpUrl::without_user(text) {
        assert!(text.to_ascii_lowercase().starts_with("http"));
        assert!(!text.contains(|c: char| c.is_control() || c.is_whitespace()), "{text:?}");
        let shown = url.to_string();
        assert!(!shown.trim_end_matches("?…").contains(['?', '#']), "{shown}");
        // Nobody knows who said it: no loopback.
        let _ = EgressPolicy::default().reach(None, None).authorize_literal(text);
    }
    if let Ok(network) = text.parse::<Network>() {
        assert_eq!(network.to_string().parse(), Ok(network));
    }
    if let Ok(caller) = text.parse::<Caller>() {
        assert_eq!(caller.to_string().parse(), Ok(caller));
    }
    if let Err(why) = Tokens::read(text) {
        assert!(!why.is_empty() && why.len() < 200, "{why}");
    }
});

fn name(text: &str) {
    if let Ok(name) = text.parse::<TargetName>() {
        assert!(is_one_part(name.as_str()) && name.as_str().len() <= 63);
        assert_eq!(String::from(name), text);
    }
    if let Ok(name) = text.parse::<VolumeName>() {
        assert!(is_one_part(name.as_str()) && name.as_str().len() <= 96);
        assert!(!text.ends_with(".sock") && !text.ends_with(".lock"));
        assert_eq!(String::from(name), text);
    }
    if let Ok(task) = TaskId::try_from(text.to_string()) {
        assert!(is_one_part(task.as_str()));
    }
}

fn path(text: &str) {
    let Ok(path) = text.parse::<CleanPath>() else { return };
    let shown = path.as_str();
    assert_eq!(shown.parse(), Ok(path.clone()));
    assert!(shown == "/" || shown.split('/').skip(1).all(is_one_part), "{shown}");
    assert!(!shown.contains(|c: char| c.is_control() || c == ':'));
    assert!(
        path.join("x").parse::<CleanPath>().is_ok_and(|joined| joined.as_str().starts_with(shown))
    );
    if validate_length(&path).is_ok() {
        assert!(shown.len() <= SUN_PATH);
    }
    if validate_socket(&path).is_ok() {
        let volume = shown.rsplit('/').next().and_then(|name| name.parse::<VolumeName>().ok());
        assert!(validate_length(&path).is_ok() && volume.is_none(), "{shown} may be a volume's");
    }
}

/// An image's name becomes part of a request's path.
fn image(text: &str) {
    if validate_image(text).is_ok() {
        assert!(text.split('/').all(is_one_part), "{text}");
        let of =
            |registry: &str| text.strip_prefix(registry).is_some_and(|rest| rest.starts_with('/'));
        assert!(registry_of(text).is_none_or(of), "{text}");
        assert!(!text.contains(['?', '#', '%', ' ', '\\']) && text.is_ascii());
    }
}

fn address(url: &ImageUrl) {
    let kept = String::from(url.clone());
    assert_eq!(kept.parse().as_ref(), Ok(url), "{kept} is kept and cannot be read again");
    let host = url.url().host_str().unwrap_or_default();
    assert!(!host.is_empty() && url.url().username().is_empty() && url.url().password().is_none());
    if let Some(query) = url.url().query().filter(|query| query.len() > 8) {
        let before = kept.split('?').next().unwrap_or_default();
        assert!(
            before.contains(query) || !url.to_string().contains(query),
            "{url} shows its query"
        );
    }
}
