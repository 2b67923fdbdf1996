//! Container image of the agent itself, as a tar that the engine loads (the image specification of `docker save`). It
//! holds the agent's executable and the libraries that it has mapped, and provides a target where no registry is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Path of the executable in the image.
pub const EXECUTABLE: &str = "/vhost-agent";
const NAME: &str = "vhost-agent-target";
/// Link to the running executable, also after another was installed over it.
const SELF: &str = "/proc/self/exe";

/// Name and tag of the image, different for each build of the agent.
///
/// # Errors
/// When procfs cannot be read.
pub fn reference() -> io::Result<String> {
    let meta = fs::metadata(SELF)?;
    let build = format!("{}-{}-{}", meta.len(), meta.mtime(), meta.mtime_nsec());
    let digest = hex(&Sha256::digest(build.as_bytes()));
    Ok(format!("{NAME}:{}-{}", env!("CARGO_PKG_VERSION"), digest.get(..12).unwrap_or_default()))
}

/// Builds the image as a tar.
///
/// # Errors
/// When the executable or a library cannot be read.
pub fn tar() -> io::Result<Vec<u8>> {
    let layer = layer()?;
    let diff_id = format!("sha256:{}", hex(&Sha256::digest(&layer)));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": [EXECUTABLE, "target"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let manifest = json!([
        {"Config": "config.json", "RepoTags": [reference()?], "Layers": ["layer.tar"]}
    ]);
    let mut image = Builder::new(Vec::new());
    append(&mut image, "layer.tar", 0o644, &layer)?;
    append(&mut image, "config.json", 0o644, config.to_string().as_bytes())?;
    append(&mut image, "manifest.json", 0o644, manifest.to_string().as_bytes())?;
    image.into_inner()
}

fn layer() -> io::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    // Folders to which a target writes, and folders that the C library expects.
    for folder in ["dev", "proc", "sys", "tmp", "var/tmp", "etc"] {
        folder_entry(&mut layer, folder)?;
    }
    append(&mut layer, EXECUTABLE, 0o755, &fs::read(SELF)?)?;
    for library in libraries()? {
        append(&mut layer, &library.display().to_string(), 0o755, &fs::read(&library)?)?;
        for link in links_to(&library)? {
            append(&mut layer, &link.display().to_string(), 0o755, &fs::read(&library)?)?;
        }
    }
    layer.into_inner()
}

/// Libraries and loader that this process has mapped (proc_pid_maps(5)).
fn libraries() -> io::Result<Vec<PathBuf>> {
    let maps = fs::read("/proc/self/maps")?;
    let maps = String::from_utf8_lossy(&maps);
    let executable = fs::read_link(SELF)?;
    let mut found: Vec<PathBuf> = maps
        .lines()
        .filter(|line| line.contains(" r-xp "))
        // The path is the last column and may have blanks. Its file may have been replaced since.
        .filter_map(|line| line.get(line.find('/')?..))
        .map(|path| path.strip_suffix(" (deleted)").unwrap_or(path))
        .filter(|path| path.contains(".so"))
        .map(PathBuf::from)
        .filter(|path| *path != executable)
        .collect();
    found.extend(loader(&executable)?);
    found.sort();
    found.dedup();
    Ok(found)
}

/// Links beside a library that lead to it. The loader looks for those names: before glibc 2.34, `libc.so.6` is a link to
/// `libc-2.28.so`.
fn links_to(library: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(folder) = library.parent() else { return Ok(Vec::new()) };
    let end = fs::canonicalize(library)?;
    let mut links = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let is_link = path != library && entry.file_type()?.is_symlink();
        if is_link && fs::canonicalize(&path).is_ok_and(|it| it == end) {
            links.push(path);
        }
    }
    links.sort();
    Ok(links)
}

/// Dynamic loader, by the name in the executable (`PT_INTERP`). That name may be a link, and the mapping has only the
/// link's destination.
fn loader(executable: &PathBuf) -> io::Result<Option<PathBuf>> {
    let names = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let bytes = fs::read(executable).or_else(|_| fs::read(SELF))?;
    let head = bytes.get(..4096).unwrap_or(&bytes);
    let asks = |name: &&&str| head.windows(name.len()).any(|window| window == name.as_bytes());
    Ok(names.iter().find(asks).map(PathBuf::from))
}

fn append(tar: &mut Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    header.set_entry_type(EntryType::Regular);
    tar.append_data(&mut header, path.trim_start_matches('/'), bytes)
}

fn folder_entry(tar: &mut Builder<Vec<u8>>, path: &str) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o1777);
    header.set_entry_type(EntryType::Directory);
    tar.append_data(&mut header, format!("{path}/"), io::empty())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to memory does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    String::from_utf8(text).unwrap_or_default()
}

/// Opens the tar at `path` for reading.
///
/// # Errors
/// When the file cannot be opened, or is no regular file.
pub fn open_tar(path: &std::path::Path) -> io::Result<tokio::fs::File> {
    // `O_NONBLOCK`: opening a pipe that has no writer would block.
    let flags = OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok(tokio::fs::File::from_std(file))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_pipe_is_no_tar_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open_tar(&pipe).unwrap_err().to_string().contains("not a file"));
        assert!(open_tar(std::path::Path::new("/dev/zero")).is_err());
    }

    #[test]
    fn links_to_a_library_are_found_by_where_they_lead() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("libc-2.28.so"), "").unwrap();
        fs::write(file("libm-2.28.so"), "").unwrap();
        for (link, end) in [
            ("libc.so.6", "libc-2.28.so"),
            ("libm.so.6", "libm-2.28.so"),
            ("libc.so.5", "removed/libc-2.28.so"),
        ] {
            std::os::unix::fs::symlink(end, file(link)).unwrap();
        }
        assert_eq!(links_to(&file("libc-2.28.so")).unwrap(), [file("libc.so.6")]);
        assert!(links_to(&file("libc.so.6")).unwrap().is_empty());
    }

    #[test]
    fn the_image_holds_what_its_process_needs_and_says_so_rightly() {
        let image = tar().unwrap();
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(image.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(name, bytes);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], reference().unwrap());
        let config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
        let layer = &files["layer.tar"];
        let digest = format!("sha256:{}", hex(&Sha256::digest(layer)));
        assert_eq!(config["rootfs"]["diff_ids"][0], digest);
        let mut layer = tar::Archive::new(layer.as_slice());
        let names: Vec<String> = layer
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        for wanted in ["vhost-agent", "libc.so.6", "ld-linux"] {
            assert!(names.iter().any(|name| name.contains(wanted)), "{wanted} in {names:?}");
        }
    }
}
