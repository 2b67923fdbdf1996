//! Path resolution that follows every link, also where the destination does not exist.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::Root;
use crate::model::bounds::{Links, ResolvedPath};
use crate::model::path::CleanPath;

/// Maximum number of links per path, as in the kernel (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// Resolves each of `paths`; a path that cannot be resolved is left out.
pub fn follow(root: &Root, paths: Vec<CleanPath>) -> Links {
    let top = fs::canonicalize(root.path("/")).unwrap_or_default();
    let led = |path: CleanPath| {
        let at = lead(&root.path(path.as_str()), MOST_LINKS).ok()?;
        let is_block_device = fs::metadata(&at).is_ok_and(|it| it.file_type().is_block_device());
        // Only under a test's root: a link may lead out of it, and then the path is shown as it is.
        let shown = Path::new("/").join(at.strip_prefix(&top).unwrap_or(&at));
        let led = ResolvedPath { path: shown.to_str()?.parse().ok()?, is_block_device };
        Some((path, led))
    };
    paths.into_iter().filter_map(led).collect()
}

fn lead(at: &Path, links: u32) -> io::Result<PathBuf> {
    match fs::canonicalize(at) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        done => return done,
    }
    let (Some(above), Some(name)) = (at.parent(), at.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let above = lead(above, links)?;
    let at = above.join(name);
    match (fs::read_link(&at), links) {
        (Err(_), _) => Ok(at),
        (Ok(_), 0) => Err(io::Error::other("too many links")),
        (Ok(to), _) => lead(&above.join(to), links - 1),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_in_every_part_of_a_path_and_to_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        fs::create_dir_all(root.path("/a/b")).unwrap();
        fs::create_dir(root.path("/elsewhere")).unwrap();
        fs::write(root.path("/a/file"), "").unwrap();
        for (link, to) in [
            ("/a/out", "/etc"),
            ("/a/down", "b"),
            ("/a/over", "../elsewhere"),
            ("/a/dangles", "../nowhere/x"),
            ("/a/absent", "/no/such/place"),
            ("/a/round", "round"),
            ("/a/first", "round/x"),
        ] {
            symlink(to, root.path(link)).unwrap();
        }
        let led = |path: &str| {
            let links = follow(&root, vec![path.parse().unwrap()]);
            links.into_values().next().map(|led| String::from(led.path))
        };
        for (path, to) in [
            ("/a/b/c", "/a/b/c"),
            ("/not/there", "/not/there"),
            ("/a/file/x", "/a/file/x"),
            ("/a/out/x.sock", "/etc/x.sock"),
            ("/a/down/x", "/a/b/x"),
            ("/a/over/x/y", "/elsewhere/x/y"),
            ("/a/absent", "/no/such/place"),
            ("/a/absent/x", "/no/such/place/x"),
        ] {
            assert_eq!(led(path).as_deref(), Some(to), "{path}");
        }
        assert_eq!(led("/a/dangles/x").as_deref(), Some("/nowhere/x/x"));
        for path in ["/a/round", "/a/first", "/a/round/x"] {
            assert_eq!(led(path), None, "{path}");
        }
    }
}
