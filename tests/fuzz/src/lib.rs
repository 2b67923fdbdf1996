//! What the fuzz targets share: settings, and a folder that stands for a machine or for the agent's state.
//!
//! A target that reads files gets them all in one input, as `tail -n +1 FILE…` prints them:
//!
//! ```text
//! ==> /proc/meminfo <==
//! MemTotal:        4194304 kB
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vhost_agent::config::Settings;
use vhost_agent::model::policy::TargetSettings;
use vhost_agent::model::target::{Desired, TargetSpec};

/// Files of one input.
const MOST_FILES: usize = 96;
/// Folders on the way to one.
const MOST_DEPTH: usize = 12;

/// What a call for a target means that does not say: the settings' own, with an image.
pub fn defaults() -> TargetSettings {
    TargetSettings { image: "zbs/vhost:1".into(), ..Settings::default().target }
}

/// A node on which one target is wanted.
pub fn desired(spec: TargetSpec) -> Desired {
    Desired { targets: [(spec.name.clone(), spec)].into(), ..Desired::default() }
}

/// A folder in memory that holds what an input says.
pub struct Tree(TempDir);

impl Tree {
    /// The files of an input.
    pub fn of(input: &[u8]) -> Tree {
        let tree = Tree::empty();
        files(input).for_each(|(name, bytes)| tree.put(&name, bytes));
        tree
    }

    /// One without files.
    pub fn empty() -> Tree {
        let folder = tempfile::Builder::new().prefix("vhost-agent-fuzz-").tempdir();
        Tree(
            folder.expect(
                "no folder for the input's files: set TMPDIR to one that can be written to",
            ),
        )
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Puts a file there; where another one is in the way there is none.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path().join(name);
        let folder = path.parent().unwrap_or(self.path());
        if fs::create_dir_all(folder).is_ok() {
            let _ = fs::write(path, bytes);
        }
    }
}

/// The files of an input: names that stay within a folder, and what each holds.
pub fn files(input: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    const BEGIN: &[u8] = b"==> /";
    let starts = (0..input.len())
        .filter(|at| (*at == 0 || input[at - 1] == b'\n') && input[*at..].starts_with(BEGIN));
    let starts: Vec<usize> = starts.take(MOST_FILES).collect();
    let ends = starts.clone().into_iter().skip(1).chain([input.len()]);
    let file = |(start, end): (usize, usize)| {
        let piece = &input[start + BEGIN.len()..end];
        let line = piece.iter().position(|byte| *byte == b'\n')?;
        let name = std::str::from_utf8(&piece[..line]).ok()?.strip_suffix(" <==")?;
        let plain: PathBuf = Path::new(name).components().collect();
        let within = plain.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let fits = within && plain.components().count() <= MOST_DEPTH && !name.contains('\0');
        (fits && plain.as_os_str() == name).then(|| (name.to_string(), &piece[line + 1..]))
    };
    starts.into_iter().zip(ends).filter_map(file).collect::<Vec<_>>().into_iter()
}

/// Whether a text can be a part of a path, and no way out of it.
pub fn is_one_part(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}
