use proptest::prelude::*;

use super::*;

/// Definition with `parts`, and a vhost-user disk.
fn domain(parts: &str) -> String {
    format!(
        "<domain type='kvm'><name>web</name><uuid>5f0c</uuid><memory unit='KiB'>4194304</memory>\
         <currentMemory unit='KiB'>1024</currentMemory>{parts}</domain>"
    )
}

/// Pages of a definition: size in MiB, pages, host nodes.
fn pages(parts: &str) -> Vec<(u64, u64, Vec<u32>)> {
    let read = Domain::parse(&domain(parts), Some(PageSize::MIB_2)).unwrap();
    let shown = read.hugepages.into_iter().map(|want| {
        let nodes = match want.placement {
            Placement::Spread => Vec::new(),
            Placement::Bound(nodes) => nodes.into_iter().map(|node| node.0).collect(),
        };
        (want.size.kib() / 1024, want.pages, nodes)
    });
    shown.collect()
}

#[test]
fn pages_are_those_of_the_memory_in_the_named_or_default_size() {
    assert_eq!(pages(""), []);
    assert_eq!(pages("<memoryBacking><source type='memfd'/></memoryBacking>"), []);
    let backing =
        |inner: &str| format!("<memoryBacking><hugepages>{inner}</hugepages></memoryBacking>");
    assert_eq!(pages(&backing("<page size='4'/>")), [], "ordinary pages");
    assert_eq!(pages(&backing("")), [(2, 2048, vec![])]);
    assert_eq!(pages(&backing("<page size='1' unit='G'/>")), [(1024, 4, vec![])]);
    assert_eq!(pages(&backing("<page size='1048576' nodeset='0'/>")), [(1024, 4, vec![])]);
    for (mode, nodes) in
        [("strict", vec![1, 3]), ("restrictive", vec![1, 3]), ("preferred", vec![])]
    {
        let tune = format!("<numatune><memory mode='{mode}' nodeset='1-3,^2'/></numatune>");
        assert_eq!(pages(&(backing("") + &tune)), [(2, 2048, nodes)], "{mode}");
    }
}

#[test]
fn cells_and_memory_devices_have_sizes_and_nodes_of_their_own() {
    let parts = "<memoryBacking><hugepages><page size='2048' unit='KiB' nodeset='0'/>\
         <page size='1' unit='G' nodeset='1'/></hugepages></memoryBacking>\
         <numatune><memory mode='strict' nodeset='0'/><memnode cellid='1' mode='strict' nodeset='1'/></numatune>\
         <cpu><numa><cell id='0' memory='1048577' unit='KiB'/><cell memory='2' unit='GiB'/>\
         <cell id='2' memory='9' unit='GiB'/></numa></cpu>\
         <devices><memory model='dimm'><target><size unit='MiB'>512</size><node>0</node></target></memory>\
         <memory model='dimm'><source><pagesize unit='KiB'>2048</pagesize><nodemask>3</nodemask></source>\
         <target><size unit='MiB'>4</size><node>1</node></target></memory>\
         <memory model='virtio-mem'><target><size unit='GiB'>8</size><requested unit='GiB'>1</requested>\
         <node>1</node></target></memory>\
         <memory model='nvdimm'><target><size unit='GiB'>8</size><node>0</node></target></memory></devices>";
    assert_eq!(pages(parts), [(2, 513 + 256, vec![0]), (1024, 3, vec![1]), (2, 2, vec![3])]);
}

#[test]
fn memory_device_names_its_pages_where_the_guest_has_ordinary_ones() {
    let parts = "<cpu><numa><cell memory='1' unit='GiB'/></numa></cpu><devices>\
         <memory model='dimm'><source><pagesize unit='MiB'>2</pagesize></source>\
         <target><size unit='MiB'>512</size><node>0</node></target></memory>\
         <memory model='dimm'><target><size unit='MiB'>512</size></target></memory></devices>";
    assert_eq!(pages(parts), [(2, 256, vec![])]);
}

#[test]
fn vhost_user_disks_are_told_with_how_they_reconnect() {
    let devices = "<devices><disk type='file'><source file='/a'/></disk><interface type='vhostuser'/>\
         <disk type='vhostuser' device='disk'><source type='unix' path='/s/v'/></disk>\
         <disk type='vhostuser'><source type='unix' path='/s/w'><reconnect enabled='yes' timeout='10'/></source></disk>\
         <disk type='vhostuser'><source type='unix' path='/s/x'><reconnect enabled='no' timeout='1'/></source></disk>\
         </devices>";
    let read = Domain::parse(&domain(devices), None).unwrap();
    let disk = |socket: &str, seconds| VhostUserDisk {
        socket: socket.to_string(),
        reconnect: Reconnect::each(Duration::from_secs(seconds)),
    };
    assert_eq!(read.vhost_user_disks, [disk("/s/v", 0), disk("/s/w", 10), disk("/s/x", 0)]);
}

#[test]
fn memory_is_shared_if_all_of_it_is() {
    let is_shared = |parts: &str| Domain::parse(&domain(parts), None).unwrap().shares_memory;
    let all = "<memoryBacking><access mode='shared'/></memoryBacking>";
    let cells = |first: &str| {
        format!(
            "<cpu><numa><cell id='0' memory='8' {first}/><cell id='1' memory='8' memAccess='shared'/></numa></cpu>"
        )
    };
    let dimm = "<devices><memory model='dimm' access='private'><target><size>8</size></target></memory></devices>";
    for (parts, expected) in [
        ("", false),
        ("<memoryBacking><access mode='private'/></memoryBacking>", false),
        (all, true),
        (&cells(""), false),
        (&cells("memAccess='shared'"), true),
        (&(cells("") + all), true),
        (&(cells("memAccess='private'") + all), false),
        (&(cells("") + all + dimm), false),
    ] {
        assert_eq!(is_shared(parts), expected, "{parts}");
    }
}

#[test]
fn state_of_a_machine_that_runs_has_its_definition_and_its_process() {
    let state = format!("<domstatus state='running' pid='4711'>{}</domstatus>", domain(""));
    let read = Domain::parse(&state, None).unwrap();
    assert_eq!((read.pid, read.uuid.as_str()), (Some(4711), "5f0c"));
    assert_eq!(Domain::parse(&domain(""), None).unwrap().pid, None);
    assert!(Domain::parse("<domstatus pid='1'/>", None).is_err());
}

#[test]
fn pages_of_a_memfd_need_no_mount() {
    let needs = |source: &str| {
        let backing = format!("<memoryBacking><hugepages/>{source}</memoryBacking>");
        Domain::parse(&domain(&backing), Some(PageSize::MIB_2)).unwrap().needs_mount
    };
    assert!(needs("") && needs("<source type='file'/>"));
    assert!(!needs("<source type='memfd'/>"));
}

#[test]
fn what_is_no_definition_is_refused() {
    for xml in [
        "",
        "<domain",
        "<domain/>",
        "<domain><uuid>5f0c</uuid><memoryBacking><hugepages/></memoryBacking></domain>",
    ] {
        assert!(Domain::parse(xml, None).is_err(), "{xml}");
    }
    for parts in [
        "<memoryBacking><hugepages><page size='3'/></hugepages></memoryBacking>",
        "<memoryBacking><hugepages><page size='1' unit='PB'/></hugepages></memoryBacking>",
        "<memoryBacking><hugepages/></memoryBacking><numatune><memory nodeset='x'/></numatune>",
        "<memoryBacking><hugepages/></memoryBacking><numatune><memory nodeset='0-99999999'/></numatune>",
        "<memoryBacking><hugepages/></memoryBacking><cpu><numa><cell memory='18446744073709551615' unit='T'/></numa></cpu>",
    ] {
        assert!(Domain::parse(&domain(parts), None).is_err(), "{parts}");
    }
    let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'>]><domain><uuid>&a;</uuid></domain>";
    assert!(Domain::parse(bomb, None).is_err(), "a document type");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_definition_is_read_without_a_panic(
        parts in prop::collection::vec(
            "<(memory|page|cell|numatune|hugepages|memoryBacking)( (size|unit|nodeset|memory|id)='[0-9a-zA-Z^,-]{0,6}'){0,2}/?>|</[a-z]{1,9}>|[0-9]{0,20}",
            0..12,
        )
    ) {
        let _ = Domain::parse(&domain(&parts.concat()), Some(PageSize::MIB_2));
    }
}
