//! Bodies of the compatible routes, and what is read beside them.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use vhost_agent::api::zstack::target::usual;
use vhost_agent::api::zstack::{fuzz_entry, wire};
use vhost_agent::model::caller::Caller;
use vhost_agent::model::egress_policy::EgressPolicy;
use vhost_agent::model::path::SUN_PATH;
use vhost_agent::model::target::{CoreRequest, TargetSpec};
use vhost_agent::model::volume::{Backing, VolumeSpec};
use vhost_agent_fuzz::{defaults, desired};

fuzz_target!(|body: &[u8]| {
    let defaults = defaults();
    let wanted = usual(&defaults).expect("the settings' own target can be");
    let validated = fuzz_entry::validate(body, &desired(wanted), &defaults);
    if let Ok(pages) = validated.prepare {
        assert_ne!(pages, Some(0), "0 is not given");
    }
    for spec in [validated.ensure, validated.target].into_iter().flatten() {
        target(&spec);
    }
    if let Ok((spec, volume)) = validated.activate {
        target(&spec);
        fits(&volume, &spec);
    }
    if let Ok(volume) = validated.create {
        fits(&volume, &usual(&defaults).expect("as before"));
    }
    if let Ok((_, size)) = validated.which {
        assert_ne!(size, Some(0), "0 is not given");
    }
    if let Ok(identity) = validated.connect {
        assert!(!identity.host_uuid.is_empty() && identity.send_command_url.len() <= 2048);
    }
    if let Ok(volume) = validated.connection {
        let file = volume.file_name(&defaults.client_conf);
        let (path, conf) =
            file.strip_prefix("cbd:").expect("its scheme").split_once(':').expect("a file");
        assert_eq!((path.split('/').count(), conf), (3, defaults.client_conf.as_str()), "{file}");
        assert!(path.split('/').all(|part| !part.starts_with(['-', '.']) && plain(part)), "{file}");
    }
    if let Ok(wanted) = validated.dependencies {
        assert!(!wanted.packages().is_empty());
        for name in wanted.packages().iter().chain(wanted.repositories()) {
            assert!(!name.starts_with('-') && plain(name), "{name}");
        }
    }
    let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    assert!(wire::caller_timeout(body, now).is_none_or(|limit| !limit.is_zero()));
    if let Some(asked) = wire::asked(body, Caller::Here, &EgressPolicy::default().reach(None, None))
    {
        assert!(asked.context["api"].as_str().is_some_and(|api| !api.trim().is_empty()));
        assert!(asked.context.to_string().len() + asked.stack.to_string().len() <= 64 * 1024);
        assert!(asked.url.is_none_or(|url| url.trim() == url && !url.is_empty()));
    }
});

/// `true` if a text is one word for every parser that a command line passes.
fn plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+_.-".contains(&b))
}

fn target(spec: &TargetSpec) {
    assert_eq!(spec.clone().validate().as_ref(), Ok(spec));
    assert!(spec.control_sock.as_str().len() <= SUN_PATH);
    assert!(spec.memory_mib <= 1 << 26, "{} MiB", spec.memory_mib);
    if let CoreRequest::Count(count) = spec.cores {
        assert!((1..=65535).contains(&count), "{count} cores");
    }
    let kept = serde_json::to_vec(spec).expect("a wish can be written");
    assert_eq!(serde_json::from_slice(&kept).ok().as_ref(), Some(spec), "it is kept and lost");
}

fn fits(volume: &VolumeSpec, spec: &TargetSpec) {
    let socket = spec.socket_dir.join(volume.name.as_str());
    assert!(socket.len() <= SUN_PATH && socket != spec.control_sock.as_str());
    let Backing::Zbs { path } = &volume.backing else { panic!("{:?}", volume.backing) };
    assert!(!path.split('/').any(|part| part.is_empty() || part == ".."), "{path}");
    let kept = serde_json::to_vec(volume).expect("a wish can be written");
    assert_eq!(serde_json::from_slice(&kept).ok().as_ref(), Some(volume), "it is kept and lost");
}
