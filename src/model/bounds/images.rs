//! Images that a caller may name.

use crate::model::code::Code;
use crate::model::fault::Fault;
use crate::model::image::ImageSha256;
use crate::model::pattern::fits;
use crate::model::policy::TargetSettings;
use crate::model::registry::registry_of;
use crate::model::target::validate_image;

/// Prefix of a digest, in a reference and in the settings.
const DIGEST: &str = "sha256:";

/// Authorizes an image. `target.image` and the images that `target.allowed_images` lists are allowed.
pub(super) fn authorize(image: &str, settings: &TargetSettings) -> Result<(), Fault> {
    let is_listed = |pattern: &String| is_listed(image, pattern);
    if settings.image() == Some(image) || settings.allowed_images.iter().any(is_listed) {
        return Ok(());
    }
    let text = format!(
        "the image {image} is not allowed: no pattern of target.allowed_images fits its repository, and no digest there is its \
         own; name another, or have the operator add it there"
    );
    Err(Fault::new(Code::ImageNotAllowed, text))
}

/// `true` if the reference `image` (`[registry/]path[:tag][@digest]`) fits `pattern`, which is either a digest or a
/// pattern of repositories.
fn is_listed(image: &str, pattern: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, it)| (name, Some(it)));
    if pattern.starts_with(DIGEST) {
        // With a registry in the reference, the engine would call that registry first.
        return digest == Some(pattern) && registry_of(image).is_none();
    }
    // A colon before the last slash is that of the registry's port.
    let tag = name.rfind(':').filter(|at| name.rfind('/').is_none_or(|slash| slash < *at));
    let repository = tag.and_then(|at| name.get(..at)).unwrap_or(name);
    let parts: Vec<&str> = repository.split('/').collect();
    let patterns: Vec<&str> = pattern.split('/').collect();
    let is_same = |patterns: &[&str], parts: &[&str]| {
        let all = patterns.iter().zip(parts).all(|(pattern, part)| fits(pattern, part));
        patterns.len() == parts.len() && all
    };
    match patterns.split_first() {
        // A leading `*` stands for any registry, with any path in it.
        Some((&"*", rest)) if parts.len() > rest.len() => {
            is_same(rest, parts.get(parts.len() - rest.len()..).unwrap_or_default())
        }
        _ => is_same(&patterns, &parts),
    }
}

/// Fault of an entry of `target.allowed_images`; `None` if it is valid.
pub fn image_pattern_problem(pattern: &str) -> Option<String> {
    let problem = match pattern.starts_with(DIGEST) {
        true => {
            let digest = pattern.parse::<ImageSha256>();
            digest.as_ref().map_or(true, |digest| !pattern.ends_with(digest.as_str()))
        }
        // Each asterisk is validated as if it were a letter.
        false => pattern.contains('@') || validate_image(&pattern.replace('*', "x")).is_err(),
    };
    problem.then(|| {
        format!("'{pattern}' is neither a pattern of repositories such as */zbs-vhost-* nor a digest sha256:…")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(image: &str, settings: &TargetSettings) -> bool {
        let authorized = authorize(image, settings);
        assert!(authorized.as_ref().err().is_none_or(|fault| fault.code == Code::ImageNotAllowed));
        authorized.is_ok()
    }

    #[test]
    fn images_of_the_cloud_are_allowed_and_of_a_registry_those_that_are_listed() {
        let defaults = TargetSettings::default();
        for image in
            ["zbs-vhost:latest", "zbs-vhost", "zbs-vhost-x86_64:5.5", "zbs-vhost@sha256:00"]
        {
            assert!(is_allowed(image, &defaults), "{image}");
        }
        let in_registries = TargetSettings {
            allowed_images: vec!["*/zbs-vhost".into(), "172.26.208.212:5000/zbs-vhost-*".into()],
            ..TargetSettings::default()
        };
        for image in [
            "172.26.208.212:5000/zbs-vhost-x86_64:1.2",
            "registry.example/storage/deep/zbs-vhost@sha256:00",
            "[fd00::1]:5000/zbs-vhost",
        ] {
            assert!(is_allowed(image, &in_registries) && !is_allowed(image, &defaults), "{image}");
        }
        for image in [
            "evil:1",
            "evil/zbs-vhosts",
            "zbs-vhost/evil",
            "zbs-vhost:5000/evil:1",
            "zbs-vhost-x/evil",
            "evil:zbs-vhost",
            "evil@sha256:zbs-vhost",
            "evil@x/zbs-vhost",
            "ZBS-vhost",
            "sha256:0123",
        ] {
            assert!(!is_allowed(image, &defaults), "{image}");
        }
        let own = TargetSettings { image: "spdk:24.01".into(), ..TargetSettings::default() };
        assert!(is_allowed("spdk:24.01", &own) && !is_allowed("spdk:24.02", &own));
    }

    #[test]
    fn an_asterisk_is_of_one_component_but_for_the_first_that_is_nothing_else() {
        let fits = |pattern: &str, image: &str| is_listed(image, pattern);
        assert!(fits("10.0.0.1:5000/*/vhost", "10.0.0.1:5000/a/vhost:1"));
        assert!(!fits("10.0.0.1:5000/*/vhost", "10.0.0.1:5000/a/b/vhost:1"));
        assert!(!fits("10.0.0.1:5000/vhost", "10.0.0.2:5000/vhost"));
        assert!(fits("*/a/*", "r/s/a/b") && !fits("*/a/*", "a/b"));
        assert!(fits("*", "r:5000/a/b:1") && fits("*-x-*", "a-x-b") && !fits("*-x-*", "r/a-x-b"));
    }

    #[test]
    fn a_digest_allows_what_carries_it() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let allowed_images = vec![digest.clone()];
        let settings = TargetSettings { allowed_images, ..TargetSettings::default() };
        assert!(is_allowed(&format!("any/thing:1@{digest}"), &settings));
        let elsewhere = format!("10.0.0.1:2375/any/thing@{digest}");
        for image in ["any/thing:1".to_string(), digest.clone(), format!("x@{digest}0"), elsewhere]
        {
            assert!(!is_allowed(&image, &settings), "{image}");
        }
        assert_eq!(image_pattern_problem(&digest), None);
        for pattern in ["", "a//b", "a b", "a@sha256:00", "sha256:00", "../x", "/x"] {
            assert!(image_pattern_problem(pattern).is_some(), "{pattern}");
        }
        for pattern in &TargetSettings::default().allowed_images {
            assert_eq!(image_pattern_problem(pattern), None);
        }
    }
}
