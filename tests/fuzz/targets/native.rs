//! Bodies under `/v1`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vhost_agent::agent::memory::ReclaimOrder;
use vhost_agent::api::body::parse;
use vhost_agent::api::v1::pools::ReclaimBody;
use vhost_agent::api::v1::prepare::PrepareBody;
use vhost_agent::api::v1::targets::TargetBody;
use vhost_agent::api::v1::volumes::{ResizeBody, VolumeBody, VolumesBody};
use vhost_agent::model::path::SUN_PATH;
use vhost_agent::model::policy::PoolPolicy;
use vhost_agent::model::pools::Placement;
use vhost_agent::model::target::{CoreRequest, TargetKind, TargetName, TargetSpec};
use vhost_agent::model::volume::{Backing, VolumeSpec};
use vhost_agent_fuzz::defaults;

fuzz_target!(|body: &[u8]| {
    if let Ok(body) = parse::<PrepareBody>(body) {
        reads_again(&body);
        if let Ok(request) =
            body.into_request(true, &PoolPolicy { move_shortfall: true, ..PoolPolicy::default() })
        {
            assert!(request.hugepages.len() <= 64);
            for want in request.hugepages {
                assert!(want.size.kib() >= 1024 && want.size.bytes() > want.size.kib());
                if let Placement::Bound(nodes) = want.placement {
                    assert!(!nodes.is_empty() && nodes.is_sorted() && nodes.len() <= 1024);
                }
            }
        }
    }
    if let Ok(body) = parse::<ReclaimBody>(body) {
        reads_again(&body);
        let _ = ReclaimOrder::try_from(body);
    }
    if let Ok(body) = parse::<TargetBody>(body) {
        reads_again(&body);
        if let Ok(spec) = body.into_spec(TargetName::usual(), &defaults()) {
            target(&spec);
        }
    }
    let folder = defaults().socket_dir;
    let name = "v".parse().expect("a name");
    if let Ok(body) = parse::<VolumeBody>(body) {
        reads_again(&body);
        if let Ok(spec) = body.into_spec(Some(&name), &folder) {
            assert_eq!(spec.name, name);
            volume(&spec);
        }
    }
    if let Ok(body) = parse::<VolumesBody>(body) {
        reads_again(&body);
        let specs = body.into_specs(&folder).unwrap_or_default();
        for (nth, spec) in specs.iter().enumerate() {
            volume(spec);
            assert!(folder.join(spec.name.as_str()).len() <= SUN_PATH);
            let again = |other: &VolumeSpec| other.name == spec.name || other.bdev == spec.bdev;
            assert!(!specs[nth + 1..].iter().any(again), "{} is there twice", spec.name);
        }
    }
    if let Ok(body) = parse::<ResizeBody>(body) {
        reads_again(&body);
    }
});

/// The command line writes what the agent reads.
fn reads_again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &T) {
    let written = serde_json::to_vec(body).expect("a body can be written");
    assert_eq!(parse::<T>(&written).as_ref(), Ok(body));
}

fn target(spec: &TargetSpec) {
    assert!(spec.control_sock.as_str().len() <= SUN_PATH && spec.memory_mib <= 1 << 26);
    assert!(spec.cores != CoreRequest::Count(0));
    assert!(spec.kind != TargetKind::BuiltIn || spec.image.is_none());
    let kept = serde_json::to_vec(spec).expect("a wish can be written");
    assert_eq!(serde_json::from_slice(&kept).ok().as_ref(), Some(spec), "it is kept and lost");
}

fn volume(spec: &VolumeSpec) {
    match &spec.backing {
        Backing::Malloc { size_mib, block_size } => {
            assert!((1..=1 << 20).contains(size_mib) && block_size.is_power_of_two());
        }
        Backing::Aio { path, .. } => assert!(!path.as_str().contains("/../")),
        Backing::Zbs { path } => assert!(!path.split('/').any(|part| part == "..")),
        Backing::Raw { method, .. } => assert!(method.starts_with("bdev_")),
    }
    let kept = serde_json::to_vec(spec).expect("a wish can be written");
    let read: VolumeSpec = serde_json::from_slice(&kept).expect("it is kept and lost");
    // A float may come back as its neighbour.
    assert_eq!(
        (read.name, read.bdev, read.cpumask),
        (spec.name.clone(), spec.bdev.clone(), spec.cpumask.clone())
    );
}
