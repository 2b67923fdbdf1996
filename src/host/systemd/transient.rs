//! Units created for one purpose, which vanish with it (systemd.unit(5), "Unit Garbage Collection"). Their work
//! concerns the whole machine, and the limits of the agent's own unit do not apply to it.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::time::{sleep, timeout};
use zbus::{Connection, Fd, Variant};

use super::{ManagerProxy, PropertiesProxy, RELOAD, Systemd, SystemdError, job_done, started};
use crate::host::Root;
use crate::host::pidfd::WatchedProcess;
use crate::host::process::FOLDERS;
use crate::host::spawn::Invocation;

/// Proxy variables, which systemd passes to its services only on request.
const PROXIES: [&str; 6] =
    ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// Time limit of a mount or of the start of a program, neither of which waits for a disk or the network. It is that of
/// a daemon-reload, during which systemd answers nothing: the installation of a package triggers one.
const JOB: Duration = RELOAD;
/// Polling interval after the process has exited, until systemd has noticed it.
const REAPED: Duration = Duration::from_millis(20);
/// Time that a shutdown gives a program to finish by itself, in microseconds.
const OWN_END: u64 = 300_000_000;
/// OOM score adjustment, the same as in the agent's own unit (`OOMScoreAdjust=`): an installation in progress is not to
/// be killed first.
const OOM_SCORE: i32 = -900;
/// Signal sent at a shutdown in place of SIGTERM: one that ends no process.
const NO_SIGNAL: i32 = nix::libc::SIGCONT;

/// First version of systemd that can append the output of a service to a file.
const APPENDS: u32 = 240;

/// Program that runs as a service of its own.
///
/// The service outlives the agent. systemd keeps the unit's state while the connection that started it is open; without
/// that connection, the unit vanishes when the program exits.
#[derive(Debug)]
pub struct TransientService<'a> {
    systemd: &'a Systemd,
    unit: String,
    asked_on: Connection,
}

/// State of a service's main process.
struct Main {
    pid: u32,
    /// Exit status of the process, if it has exited; the inner value is `None` when a signal ended it.
    end: Option<Option<i32>>,
    /// Set while systemd has the service in a state other than `inactive` or `failed`.
    known: bool,
}

impl Systemd {
    /// Runs `program` as the service `unit`, which must be a unique name, with the arguments and environment of
    /// `invocation`. The output is appended to `output`.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses.
    pub async fn run(
        &self,
        unit: String,
        program: &str,
        invocation: &Invocation,
        output: &File,
    ) -> Result<TransientService<'_>, SystemdError> {
        let asked = self.bounded("StartTransientUnit", &unit, JOB, async |connection| {
            // `proxies` lives until systemd has started the service, because systemd opens the file in it.
            let proxies = Proxies::of(|name| env::var(name).ok())?;
            let output = match version(&connection).await? {
                APPENDS.. => Output::Path(path_of(output)?),
                _ => Output::Descriptor(output),
            };
            let properties = service(program, invocation, output, &proxies)?;
            let job = job_done(&connection, async |manager| {
                manager.start_transient_unit(&unit, "fail", &properties, &[]).await
            });
            Ok((job.await?, connection))
        });
        let (result, asked_on) = asked.await?;
        started(&unit, result)?;
        Ok(TransientService { systemd: self, unit, asked_on })
    }

    /// Mounts a hugetlbfs with `options` at `at`, by a mount unit for that path; systemd creates the folder. If the
    /// operator has a unit for that path, that one is started instead. Returns `true` if this call mounted it, `false`
    /// if the unit was active before.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses, or the mount fails.
    pub async fn mount_hugetlbfs(&self, at: &Path, options: &str) -> Result<bool, SystemdError> {
        let unit = mount_unit(at);
        let asked = self.bounded("StartTransientUnit", &unit, JOB, async |connection| {
            if is_active(&connection, &unit).await? {
                return Ok(None);
            }
            let properties = mount(options);
            let result = job_done(&connection, async |manager| {
                match manager.start_transient_unit(&unit, "fail", &properties, &[]).await {
                    Err(e) if is_named(&e, "UnitExists") => {
                        manager.start_unit(&unit, "replace").await
                    }
                    job => job,
                }
            });
            result.await.map(Some)
        });
        match asked.await? {
            Some(result) => started(&unit, result).map(|()| true),
            None => Ok(false),
        }
    }

    /// Unmounts the file system at `at`.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses, or the mount is in use.
    pub async fn unmount(&self, at: &Path) -> Result<(), SystemdError> {
        let unit = mount_unit(at);
        let asked = self.bounded("StopUnit", &unit, JOB, async |connection| {
            job_done(&connection, async |manager| manager.stop_unit(&unit, "replace").await).await
        });
        let result = asked.await?;
        started(&unit, result)
    }
}

impl TransientService<'_> {
    /// Waits for the program's exit and returns its exit code; `None` when a signal ended it. Cancel-safe: another
    /// call checks again.
    ///
    /// # Errors
    /// When systemd cannot be reached, or no longer knows the service.
    pub async fn ended(&self) -> Result<Option<i32>, SystemdError> {
        let root = Root::new("/");
        loop {
            let main = self.main().await?;
            if let Some(code) = main.end {
                return Ok(code);
            }
            if !main.known {
                return Err(SystemdError::Forgotten { unit: self.unit.clone() });
            }
            match WatchedProcess::of(&root, main.pid) {
                Some(process) => process.ended().await,
                None => sleep(REAPED).await,
            }
        }
    }

    /// Releases the service: its unit vanishes now, or when the program exits.
    pub async fn let_go(self) {
        let asked = async { ManagerProxy::new(&self.asked_on).await?.unref_unit(&self.unit).await };
        // If the connection is broken, or breaks now, systemd does not keep the unit either.
        let _ = timeout(JOB, asked).await;
    }

    async fn main(&self) -> Result<Main, SystemdError> {
        let unit = &self.unit;
        let asked = self
            .systemd
            .bounded("GetUnit", unit, JOB, async |connection| main_of(&connection, unit).await);
        asked.await
    }
}

async fn main_of(connection: &Connection, unit: &str) -> zbus::Result<Main> {
    /// `CLD_EXITED` of waitid(2).
    const EXITED: i32 = 1;
    let path = ManagerProxy::new(connection).await?.load_unit(unit).await?;
    let properties = PropertiesProxy::builder(connection).path(path).build().await?;
    // `ActiveState` is read first: an exit that it reports is then in the later answers too.
    let state = properties.get("org.freedesktop.systemd1.Unit", "ActiveState").await?;
    let state = String::try_from(state).unwrap_or_default();
    let of_service = async |name| properties.get("org.freedesktop.systemd1.Service", name).await;
    let pid = u32::try_from(of_service("MainPID").await?).unwrap_or_default();
    let how = i32::try_from(of_service("ExecMainCode").await?).unwrap_or_default();
    let status = i32::try_from(of_service("ExecMainStatus").await?).unwrap_or_default();
    let end = (how != 0).then(|| (how == EXITED).then_some(status));
    Ok(Main { pid, end, known: !matches!(state.as_str(), "inactive" | "failed") })
}

async fn is_active(connection: &Connection, unit: &str) -> zbus::Result<bool> {
    let path = ManagerProxy::new(connection).await?.load_unit(unit).await?;
    let properties = PropertiesProxy::builder(connection).path(path).build().await?;
    let state = properties.get("org.freedesktop.systemd1.Unit", "ActiveState").await?;
    Ok(String::try_from(state).is_ok_and(|state| state == "active"))
}

/// Reads systemd's version.
async fn version(connection: &Connection) -> zbus::Result<u32> {
    let properties =
        PropertiesProxy::builder(connection).path("/org/freedesktop/systemd1").build().await?;
    let text = properties.get("org.freedesktop.systemd1.Manager", "Version").await?;
    Ok(version_number(&String::try_from(text).unwrap_or_default()))
}

/// Number in a version such as `252 (252.39-1~deb12u2)` or `v249.11`; 0 where there is none.
fn version_number(text: &str) -> u32 {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// File to which a service's output is appended.
enum Output<'a> {
    /// Opened by systemd.
    Path(PathBuf),
    /// Passed through the message bus. SELinux may keep dbus-daemon from the file, which then closes the connection.
    Descriptor(&'a File),
}

/// Path of an open file.
fn path_of(file: &File) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

impl Output<'_> {
    fn properties(self) -> zbus::Result<[(&'static str, Variant<'static>); 2]> {
        let descriptor = |file: &File| -> zbus::Result<Variant<'static>> {
            Ok(Variant::Fd(Fd::from(OwnedFd::from(file.try_clone()?))))
        };
        Ok(match self {
            Output::Path(path) => ["StandardOutputFileToAppend", "StandardErrorFileToAppend"]
                .map(|name| (name, path.to_string_lossy().into_owned().into())),
            Output::Descriptor(file) => [
                ("StandardOutputFileDescriptor", descriptor(file)?),
                ("StandardErrorFileDescriptor", descriptor(file)?),
            ],
        })
    }
}

/// Properties of a service that runs `program`. It has no type, and is thus active as soon as it exists, also where
/// systemd has no `Type=exec` (before 240).
fn service(
    program: &str,
    invocation: &Invocation,
    output: Output<'_>,
    proxies: &Proxies,
) -> zbus::Result<Vec<(&'static str, Variant<'static>)>> {
    let command = [vec![program.to_string()], invocation.args.clone()].concat();
    let path = format!("PATH={}", FOLDERS.join(":"));
    let added = invocation.env.iter().map(|(name, value)| format!("{name}={value}"));
    let open = proxies.open.iter().cloned();
    let environment: Vec<String> = std::iter::once(path).chain(open).chain(added).collect();
    // The file of proxies is required: without a proxy that is needed, every download would fail later.
    let files = proxies.file().map(|path| ("EnvironmentFiles", vec![(path, false)].into()));
    let mut properties = vec![
        ("Description", format!("{} for vhost-agent", invocation.program).into()),
        ("ExecStart", vec![(program.to_string(), command, false)].into()),
        ("Environment", environment.into()),
        ("OOMScoreAdjust", OOM_SCORE.into()),
        ("IgnoreSIGPIPE", false.into()),
        ("KillMode", "process".into()),
        ("KillSignal", NO_SIGNAL.into()),
        ("TimeoutStopUSec", OWN_END.into()),
        ("CollectMode", "inactive-or-failed".into()),
        ("AddRef", true.into()),
    ];
    properties.extend(output.properties()?);
    properties.extend(files);
    Ok(properties)
}

/// Proxy settings that an operator gave the agent's unit for its children.
#[derive(Debug)]
struct Proxies {
    /// Settings without a user name, as `NAME=value`. Every user can read a unit's environment (systemd.exec(5),
    /// "Environment=").
    open: Vec<String>,
    /// Settings with a user name, and perhaps a password, as lines of a file in memory. Only root can open it, by this
    /// process's descriptor, and it vanishes when that is closed.
    closed: Option<File>,
}

impl Proxies {
    fn of(variable: impl Fn(&str) -> Option<String>) -> io::Result<Proxies> {
        let (mut open, mut lines) = (Vec::new(), String::new());
        for name in PROXIES {
            let Some(value) = variable(name) else { continue };
            match value.contains('@') {
                true => lines += &format!("{name}=\"{}\"\n", quoted(&value)),
                false => open.push(format!("{name}={value}")),
            }
        }
        if lines.is_empty() {
            return Ok(Proxies { open, closed: None });
        }
        let mut file = File::from(memfd_create("proxies", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(lines.as_bytes())?;
        Ok(Proxies { open, closed: Some(file) })
    }

    /// Path at which systemd opens the file of `closed`, which it reads from the beginning.
    fn file(&self) -> Option<String> {
        let file = self.closed.as_ref()?;
        Some(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    }
}

/// Escapes `value` for use within double quotes (systemd.exec(5), "EnvironmentFile=").
fn quoted(value: &str) -> String {
    value.chars().fold(String::new(), |mut quoted, one| {
        if matches!(one, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(one);
        quoted
    })
}

/// Properties of the mount unit. A unit that failed is removed; the journal keeps the output of mount(8).
fn mount(options: &str) -> [(&'static str, Variant<'_>); 5] {
    [
        ("Description", "Hugepages for vhost-user targets".into()),
        ("What", "hugetlbfs".into()),
        ("Type", "hugetlbfs".into()),
        ("Options", options.into()),
        ("CollectMode", "inactive-or-failed".into()),
    ]
}

/// Name of the mount unit for the absolute path `path` (systemd.unit(5), "String Escaping for Inclusion in Unit
/// Names").
fn mount_unit(path: &Path) -> String {
    let folders: Vec<String> = path
        .components()
        .filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(escaped(name.as_bytes())),
            _ => None,
        })
        .collect();
    let mut name = folders.join("-");
    match name.is_empty() {
        true => name.push('-'),
        false if name.starts_with('.') => name.replace_range(..1, "\\x2e"),
        false => {}
    }
    name + ".mount"
}

fn escaped(name: &[u8]) -> String {
    name.iter()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => {
                char::from(*byte).to_string()
            }
            other => format!("\\x{other:02x}"),
        })
        .collect()
}

/// `true` if `error` is systemd's error with a name that ends with `name`.
fn is_named(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(full, ..) if full.ends_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_of_a_path_has_the_name_that_systemd_escape_gives_it() {
        for (path, unit) in [
            ("/dev/hugepages2m", "dev-hugepages2m.mount"),
            ("/mnt/huge-2M/a b", "mnt-huge\\x2d2M-a\\x20b.mount"),
            ("/.hidden//x_y:z/", "\\x2ehidden-x_y:z.mount"),
            ("/größe", "gr\\xc3\\xb6\\xc3\\x9fe.mount"),
            ("/", "-.mount"),
        ] {
            assert_eq!(mount_unit(Path::new(path)), unit);
        }
    }

    #[test]
    fn a_proxys_password_is_in_a_file_that_has_no_name() {
        let secret = r#"http://node:a$b`c"d\e@proxy:3128"#;
        let proxies = Proxies::of(|name| match name {
            "https_proxy" => Some(secret.to_string()),
            "HTTP_PROXY" => Some("http://proxy:3128".to_string()),
            _ => None,
        })
        .unwrap();
        assert_eq!(proxies.open, ["HTTP_PROXY=http://proxy:3128"]);
        let path = proxies.file().unwrap();
        let lines = std::fs::read_to_string(&path).unwrap();
        let expected = r#"https_proxy="http://node:a\$b\`c\"d\\e@proxy:3128""#;
        assert_eq!(lines, format!("{expected}\n"));
        let invocation = Invocation { program: "x".into(), args: Vec::new(), env: Vec::new() };
        let output = Output::Path(PathBuf::from("/x.log"));
        let asked = service("/x", &invocation, output, &proxies).unwrap();
        let (_, files) = asked.iter().find(|(name, _)| *name == "EnvironmentFiles").unwrap();
        assert_eq!(files.value_signature().to_string(), "a(sb)");
        assert!(files.to_string().contains(&path), "{files}");
        assert!(asked.iter().all(|(_, value)| !value.to_string().contains("node:")));
    }

    #[test]
    fn a_service_is_asked_for_with_its_whole_command_and_environment() {
        let invocation = Invocation {
            program: "apt-get".into(),
            args: vec!["install".into(), "--".into(), "docker.io".into()],
            env: vec![("LC_ALL".into(), "C".into())],
        };
        let proxies = Proxies::of(|name| (name == "no_proxy").then(|| "localhost".into())).unwrap();
        let output = Output::Path(PathBuf::from("/apt-get.log"));
        let asked = service("/usr/bin/apt-get", &invocation, output, &proxies).unwrap();
        let value = |name| &asked.iter().find(|(known, _)| *known == name).unwrap().1;
        let signature = |name| value(name).value_signature().to_string();
        assert_eq!(signature("ExecStart"), "a(sasb)");
        let command = value("ExecStart").to_string();
        let words =
            r#"("/usr/bin/apt-get", ["/usr/bin/apt-get", "install", "--", "docker.io"], false)"#;
        assert!(command.contains(words), "{command}");
        assert_eq!(signature("Environment"), "as");
        let environment = value("Environment").to_string();
        assert!(environment.contains("/usr/sbin") && environment.contains("\"LC_ALL=C\""));
        assert_eq!(signature("TimeoutStopUSec"), "t");
        assert_eq!(
            (signature("OOMScoreAdjust"), signature("KillSignal")),
            ("i".into(), "i".into())
        );
    }

    #[test]
    fn output_is_a_path_or_a_descriptor() {
        let file = tempfile::tempfile().unwrap();
        let path = Output::Path(PathBuf::from("/a.log")).properties().unwrap();
        let descriptor = Output::Descriptor(&file).properties().unwrap();
        let typed =
            |(name, value): &(&str, Variant<'_>)| format!("{name} {}", value.value_signature());
        assert_eq!(
            path.each_ref().map(typed),
            ["StandardOutputFileToAppend s", "StandardErrorFileToAppend s"]
        );
        assert_eq!(
            descriptor.each_ref().map(typed),
            ["StandardOutputFileDescriptor h", "StandardErrorFileDescriptor h"]
        );
    }

    #[test]
    fn version_number_is_the_first_in_the_text() {
        for (text, number) in [
            ("252 (252.39-1~deb12u2)", 252),
            ("v249 (v249-43.oe2203)", 249),
            ("systemd 239", 239),
            ("", 0),
        ] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }
}
