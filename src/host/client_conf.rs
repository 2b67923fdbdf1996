//! Configuration file of the storage's client, as far as it names the storage: `mds.listen.addr=10.0.0.1:6666,10.0.0.2:6666`.

use std::net::{IpAddr, Ipv4Addr};

use super::Root;
use crate::store::read_some;

/// Maximum bytes that are read; such a file has some KiB.
const MOST_BYTES: u64 = 256 * 1024;

/// Addresses in the file at `path`, in the values of keys with `addr` in their names; none if it cannot be read. Names of
/// hosts are left out.
pub fn addresses(root: &Root, path: &str) -> Vec<IpAddr> {
    let path = root.path(path);
    // Opening another kind of file could wait.
    let bytes = if path.is_file() { read_some(&path, MOST_BYTES).ok() } else { None };
    let bytes = bytes.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let values = text.lines().filter_map(|line| {
        let (key, value) = line.split('#').next()?.split_once('=')?;
        key.to_ascii_lowercase().contains("addr").then_some(value)
    });
    let words = values.flat_map(|value| value.split([',', ';', '/', '"', '\'', ' ', '\t', '\r']));
    words.filter_map(address).collect()
}

/// Address that `word` is, or begins with: `10.0.0.1:6666`, `[fd00::1]:6666`.
fn address(word: &str) -> Option<IpAddr> {
    let in_brackets = word.strip_prefix('[').and_then(|word| word.split(']').next());
    let is_v4 = || word.split(':').next()?.parse::<Ipv4Addr>().ok();
    in_brackets.unwrap_or(word).parse().ok().or_else(|| is_v4().map(IpAddr::V4))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PATH: &str = "/etc/zbs/client.conf";

    #[test]
    fn literal_addresses_are_read_in_every_form() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert_eq!(addresses(&root, PATH), [] as [IpAddr; 0], "no file");
        fs::create_dir_all(root.path(PATH)).unwrap();
        assert_eq!(addresses(&root, PATH), [] as [IpAddr; 0], "a folder");
        fs::remove_dir(root.path(PATH)).unwrap();
        let text = b"# mds.listen.addr=10.9.9.9:6666\n\
            mds.listen.addr=10.0.0.1:6666,10.0.0.2:6666, 10.0.0.3\r\n\
            \tmetaServer.Addrs = \"tcp://[fd00::1]:6700\";fd00::2;[fd00::3] # once 10.9.9.8\n\
            chunk.addr=10.0.0.4:8200:0,mds-1.example:6666,\xff,300.1.1.1\n\
            global.port=10.9.9.7\n\
            addr\n";
        fs::write(root.path(PATH), text).unwrap();
        let read: Vec<String> = addresses(&root, PATH).iter().map(IpAddr::to_string).collect();
        let expected =
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "fd00::3", "10.0.0.4"];
        assert_eq!(read, expected);
    }
}
