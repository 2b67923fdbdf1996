//! Units that are made for one purpose and vanish with it (systemd.unit(5), "Unit Garbage Collection"):
//! what they do is done by systemd for the whole machine, outside of the agent's own unit and its limits.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::time::{sleep, timeout};
use zbus::{Connection, Fd, Variant};

use super::{ManagerProxy, PropertiesProxy, RELOAD, Systemd, SystemdError, job_done, started};
use crate::host::Root;
use crate::host::pidfd::WatchedProcess;
use crate::host::process::FOLDERS;
use crate::host::spawn::Invocation;

/// Variables by which programs find their way out, and which systemd gives its services only when told.
const PROXIES: [&str; 6] =
    ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// How long a mount, or the start of a program, may take; no disk and no network is in it. While units are read
/// anew, which the installation of a package brings about, systemd does not answer at all.
const JOB: Duration = RELOAD;
/// How often a process is looked at where the kernel does not tell its end.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks whether systemd knows of that end too.
const REAPED: Duration = Duration::from_millis(20);
/// How long a shutdown waits for a program to come to its own end, in microseconds.
const OWN_END: u64 = 300_000_000;
/// As the agent's own unit has it (`OOMScoreAdjust=`): what is half installed is not killed first.
const OOM_SCORE: i32 = -900;
/// Its signal when the machine is shut down: none that ends it.
const NO_SIGNAL: i32 = nix::libc::SIGCONT;

/// A program that runs as a service of its own.
///
/// It outlives the agent. While the connection lives that it was asked for on, systemd keeps what it knows of
/// the service; without it, the unit vanishes with the program's end.
#[derive(Debug)]
pub struct Service<'a> {
    systemd: &'a Systemd,
    unit: String,
    asked_on: Connection,
}

/// How the main process of a service stands.
struct Main {
    pid: u32,
    /// Its exit code, `None` when a signal ended it.
    end: Option<Option<i32>>,
    /// Whether systemd still has the service.
    known: bool,
}

impl Systemd {
    /// Runs `program` as the service `unit`, a name that nothing else has, with the arguments and the
    /// environment of `invocation`; what it prints is appended to `output`.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses.
    pub async fn run(
        &self,
        unit: String,
        program: &str,
        invocation: &Invocation,
        output: &File,
    ) -> Result<Service<'_>, SystemdError> {
        let asked = self.bounded("StartTransientUnit", &unit, JOB, async |connection| {
            // Kept until systemd has started it.
            let proxies = Proxies::of(|name| env::var(name).ok())?;
            let properties = service(program, invocation, output, &proxies)?;
            let job = job_done(&connection, async |manager| {
                manager.start_transient_unit(&unit, "fail", &properties, &[]).await
            });
            Ok((job.await?, connection))
        });
        let (result, asked_on) = asked.await?;
        started(&unit, result)?;
        Ok(Service { systemd: self, unit, asked_on })
    }

    /// Has a hugetlbfs with these options mounted at `at`, as the mount unit of that path; systemd makes
    /// the folder. A unit that the operator has for that path is started instead. Whether it was this call
    /// that brought it about; false where the unit was active before.
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

    /// Has what is mounted at `at` unmounted.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses, or it is in use.
    pub async fn unmount(&self, at: &Path) -> Result<(), SystemdError> {
        let unit = mount_unit(at);
        let asked = self.bounded("StopUnit", &unit, JOB, async |connection| {
            job_done(&connection, async |manager| manager.stop_unit(&unit, "replace").await).await
        });
        let result = asked.await?;
        started(&unit, result)
    }
}

impl Service<'_> {
    /// Waits for the end of the program and tells its exit code; `None` when a signal ended it.
    /// Cancel-safe: asked again, it looks again.
    ///
    /// # Errors
    /// When systemd cannot be reached, or knows nothing of it any more.
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
                Some(process) => while_it_lives(&process).await,
                None => sleep(REAPED).await,
            }
        }
    }

    /// Tells systemd that nobody looks at the service any more: the unit vanishes, at the latest with the
    /// program's end.
    pub async fn let_go(self) {
        let asked = async { ManagerProxy::new(&self.asked_on).await?.unref_unit(&self.unit).await };
        // Of a connection that broke, or breaks now, systemd keeps nothing anyway.
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
    // In this order: what has ended by the first answer is told by the later ones.
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

async fn while_it_lives(process: &WatchedProcess) {
    while process.lives() {
        // Either told, or looked at again.
        let _ = timeout(LOOK_AGAIN, process.ended()).await;
    }
}

/// A service without a type: it is at work as soon as it is there, also where systemd has no
/// `Type=exec` yet (before 240).
fn service(
    program: &str,
    invocation: &Invocation,
    output: &File,
    proxies: &Proxies,
) -> zbus::Result<Vec<(&'static str, Variant<'static>)>> {
    let command = [vec![program.to_string()], invocation.args.clone()].concat();
    let path = format!("PATH={}", FOLDERS.join(":"));
    let added = invocation.env.iter().map(|(name, value)| format!("{name}={value}"));
    let open = proxies.open.iter().cloned();
    let environment: Vec<String> = std::iter::once(path).chain(open).chain(added).collect();
    let output = || -> zbus::Result<Variant<'static>> {
        Ok(Variant::Fd(Fd::from(OwnedFd::from(output.try_clone()?))))
    };
    // One that cannot be read fails the start: without a proxy that is needed, all would fail later.
    let files = proxies.file().map(|path| ("EnvironmentFiles", vec![(path, false)].into()));
    let mut properties = vec![
        ("Description", format!("{} for vhost-agent", invocation.program).into()),
        ("ExecStart", vec![(program.to_string(), command, false)].into()),
        ("Environment", environment.into()),
        ("StandardOutputFileDescriptor", output()?),
        ("StandardErrorFileDescriptor", output()?),
        ("OOMScoreAdjust", OOM_SCORE.into()),
        ("IgnoreSIGPIPE", false.into()),
        ("KillMode", "process".into()),
        ("KillSignal", NO_SIGNAL.into()),
        ("TimeoutStopUSec", OWN_END.into()),
        ("CollectMode", "inactive-or-failed".into()),
        ("AddRef", true.into()),
    ];
    properties.extend(files);
    Ok(properties)
}

/// What an operator gave the agent's unit for its children.
#[derive(Debug)]
struct Proxies {
    /// `NAME=value`, for all to see: every user can read the environment of a unit (systemd.exec(5),
    /// "Environment=").
    open: Vec<String>,
    /// Those with a user's name in them, and maybe a password, as a file of lines that only root can find:
    /// it has no name but this process's descriptor, and goes with it.
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

    /// Where systemd reads those of the file: it opens them anew, from their beginning.
    fn file(&self) -> Option<String> {
        let file = self.closed.as_ref()?;
        Some(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    }
}

/// A value as it stands between double quotes (systemd.exec(5), "EnvironmentFile=").
fn quoted(value: &str) -> String {
    value.chars().fold(String::new(), |mut quoted, one| {
        if matches!(one, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(one);
        quoted
    })
}

/// One that fails leaves no unit behind; the journal keeps what mount(8) said.
fn mount(options: &str) -> [(&'static str, Variant<'_>); 5] {
    [
        ("Description", "Hugepages for vhost-user targets".into()),
        ("What", "hugetlbfs".into()),
        ("Type", "hugetlbfs".into()),
        ("Options", options.into()),
        ("CollectMode", "inactive-or-failed".into()),
    ]
}

/// The name of the mount unit of an absolute path (systemd.unit(5), "String Escaping for Inclusion in
/// Unit Names").
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

/// Whether systemd refused with its error of that name.
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
        let output = tempfile::tempfile().unwrap();
        let invocation = Invocation { program: "x".into(), args: Vec::new(), env: Vec::new() };
        let asked = service("/x", &invocation, &output, &proxies).unwrap();
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
        let output = tempfile::tempfile().unwrap();
        let proxies = Proxies::of(|name| (name == "no_proxy").then(|| "localhost".into())).unwrap();
        let asked = service("/usr/bin/apt-get", &invocation, &output, &proxies).unwrap();
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
}
