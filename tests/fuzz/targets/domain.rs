//! Definition of a virtual machine, as libvirt gives it to its hook.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_agent::model::domain::Domain;
use vhost_agent::model::pools::Placement;
use vhost_agent::model::units::PageSize;

fuzz_target!(|xml: &str| {
    let Ok(domain) = Domain::parse(xml, Some(PageSize::MIB_2)) else { return };
    for want in &domain.hugepages {
        assert!(want.pages > 0 && want.size.kib() > 16, "{want:?}");
        if let Placement::Bound(nodes) = &want.placement {
            assert!(!nodes.is_empty() && nodes.is_sorted(), "{want:?}");
        }
    }
    for (at, want) in domain.hugepages.iter().enumerate() {
        let mut before = domain.hugepages[..at].iter();
        let is_twice = before.any(|it| it.size == want.size && it.placement == want.placement);
        assert!(!is_twice, "{want:?} stands twice");
    }
});
