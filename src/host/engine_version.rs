//! Version of the engine's executable, as `dockerd --version` prints it.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::Root;

/// Time limit of the program.
const WITHIN: Duration = Duration::from_secs(5);
/// Maximum of the output that is read, in bytes.
const MOST: u64 = 4096;

/// Version of the daemon at `binary`, such as 20.10.24; `None` if the program does not print one. It is asked only when the
/// daemon is stopped and about to be started: then no other place has the version.
pub async fn printed_version(root: &Root, binary: &str) -> Option<String> {
    let mut command = Command::new(root.path(binary));
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().ok()?;
    let mut output = child.stdout.take()?.take(MOST);
    let mut text = String::new();
    timeout(WITHIN, output.read_to_string(&mut text)).await.ok()?.ok()?;
    let version = in_text(&text);
    // The program ends by itself once its output is read; if it does not, it is killed.
    let _ = timeout(WITHIN, child.wait()).await;
    version
}

/// Version in an output such as `Docker version 20.10.24+dfsg1, build 297e128`.
fn in_text(text: &str) -> Option<String> {
    let words = text.split_once("version ")?.1;
    let version = words.split([',', ' ', '\n']).next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn version_is_read_from_the_outputs_of_distributions() {
        for (text, version) in [
            ("Docker version 20.10.24+dfsg1, build 297e128\n", Some("20.10.24+dfsg1")),
            ("Docker version 18.09.0, build 172f8da\n", Some("18.09.0")),
            ("Docker version 29.0.1, build 198b5e3\n", Some("29.0.1")),
            ("Docker version library-import, build unknown\n", None),
            ("", None),
        ] {
            assert_eq!(in_text(text).as_deref(), version, "{text}");
        }
    }

    #[tokio::test]
    async fn program_is_asked_and_one_that_is_none_has_no_version() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let path = root.path("/dockerd");
        assert_eq!(printed_version(&root, "/dockerd").await, None);
        fs::write(
            &path,
            "#!/bin/sh\n[ \"$1\" = --version ] && echo Docker version 27.1.2, build x\n",
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(printed_version(&root, "/dockerd").await.as_deref(), Some("27.1.2"));
    }
}
