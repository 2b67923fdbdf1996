//! IPv4 routes of this machine (proc_pid_net(5), `route`) and its name servers (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr};

use super::Root;
use super::files::read_text;
use crate::model::network::{Network, NodeRoute};

/// Reads the routes of the main table; none where the kernel has no IPv4.
pub fn routes(root: &Root) -> Vec<NodeRoute> {
    let table = read_text(&root.path("/proc/net/route")).unwrap_or_default();
    table.lines().skip(1).filter_map(route).collect()
}

/// Parses a line: interface, destination, gateway, flags, three numbers, mask. Addresses are hexadecimal numbers in the
/// byte order of the machine.
fn route(line: &str) -> Option<NodeRoute> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let address = |at: usize| {
        let number = u32::from_str_radix(columns.get(at)?, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let gateway = address(2).filter(|gateway| !gateway.is_unspecified());
    Some(NodeRoute {
        interface: (*columns.first()?).to_string(),
        to: Network::with_mask(address(1)?, address(7)?)?,
        gateway,
    })
}

/// Reads the addresses of the name servers: those that systemd-resolved asks, where it stands before them.
pub fn name_servers(root: &Root) -> Vec<IpAddr> {
    const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
    let servers = servers_in(root, "/etc/resolv.conf");
    match servers.iter().all(IpAddr::is_loopback) {
        true => servers_in(root, RESOLVED),
        false => servers,
    }
}

fn servers_in(root: &Root, path: &str) -> Vec<IpAddr> {
    let text = read_text(&root.path(path)).unwrap_or_default();
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn routes_and_name_servers_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert_eq!((routes(&root).len(), name_servers(&root).len()), (0, 0), "no files");
        fs::create_dir_all(root.path("/proc/net")).unwrap();
        fs::create_dir_all(root.path("/etc")).unwrap();
        let number = |a, b, c, d| format!("{:08X}", u32::from_ne_bytes([a, b, c, d]));
        let table = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth0\t{}\t{}\t0003\t0\t0\t0\t{}\t0\t0\t0\n\
             docker0\t{}\t{}\t0001\t0\t0\t0\t{}\t0\t0\t0\n\
             torn\t00\n",
            number(0, 0, 0, 0),
            number(10, 0, 0, 1),
            number(0, 0, 0, 0),
            number(172, 17, 0, 0),
            number(0, 0, 0, 0),
            number(255, 255, 0, 0),
        );
        fs::write(root.path("/proc/net/route"), table).unwrap();
        let resolv = "# by hand\nsearch example.org\nnameserver 172.17.3.4\nnameserver fd00::1\nnameserver x\n";
        fs::write(root.path("/etc/resolv.conf"), resolv).unwrap();
        let seen = routes(&root);
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(
            (seen[1].interface.as_str(), seen[1].to.to_string()),
            ("docker0", "172.17.0.0/16".into())
        );
        assert_eq!(name_servers(&root).len(), 2);
        fs::write(root.path("/etc/resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
        fs::create_dir_all(root.path("/run/systemd/resolve")).unwrap();
        let asked = "nameserver 172.18.0.53\n";
        fs::write(root.path("/run/systemd/resolve/resolv.conf"), asked).unwrap();
        assert_eq!(name_servers(&root), ["172.18.0.53".parse::<IpAddr>().unwrap()]);
    }
}
