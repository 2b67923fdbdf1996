//! Stateful fakes of a machine's package manager and of its engine's daemon. Tests change the state; the output is
//! worded like that of the real programs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::spawn::{Daemon, Invocation, QueryEnd, RunEnd, RunRequest, Spawner};
use super::{HostError, Root};

/// Effect of starting the daemon: its exit code and last output if it exits at once, `None` if it keeps running.
pub type DaemonPlay = Box<dyn FnMut() -> Option<(Option<i32>, String)> + Send>;

/// State of the fake machine.
pub struct Machine {
    root: Root,
    /// Packages available for installation.
    pub archive: BTreeSet<String>,
    /// Set once the package lists were fetched.
    pub lists: bool,
    /// Set if the archive can be reached.
    pub reachable: bool,
    /// Error message of a refresh that takes none of the archive's lists, if it is to fail.
    pub refused: Option<String>,
    /// Number of further calls during which another process holds the lock.
    pub locked: usize,
    /// Number of `apt --fix-broken` calls still needed until dpkg works again.
    pub interrupted: usize,
    /// Error message of every installation, if they are to fail.
    pub broken: Option<String>,
    /// Set if runs end; otherwise each lasts until its time limit.
    pub ends: bool,
    pub daemon: DaemonPlay,
    /// Started programs in order, in a few words each.
    pub calls: Vec<String>,
    /// Content of daemon.json at the last installation.
    pub daemon_json: Option<String>,
}

/// Spawner of the fake machine; clones share one machine.
#[derive(Clone)]
pub struct FakeSpawner(Arc<Mutex<Machine>>);

impl FakeSpawner {
    /// Spawner for a machine below `root` that has apt, package lists, and docker.io in its archive.
    pub fn new(root: &Root) -> FakeSpawner {
        put_executable(root, "/usr/bin/apt-get");
        FakeSpawner(Arc::new(Mutex::new(Machine {
            root: root.clone(),
            archive: BTreeSet::from(["docker.io".to_string()]),
            lists: true,
            reachable: true,
            refused: None,
            locked: 0,
            interrupted: 0,
            broken: None,
            ends: true,
            daemon: Box::new(|| None),
            calls: Vec::new(),
            daemon_json: None,
        })))
    }

    /// Passes the machine to `look`, which may change or read it.
    pub fn machine<T>(&self, look: impl FnOnce(&mut Machine) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl Spawner for FakeSpawner {
    async fn run(
        &self,
        RunRequest { invocation, within, lines }: RunRequest,
    ) -> Result<RunEnd, HostError> {
        let (ends, end) = self.machine(|machine| (machine.ends, machine.run(&invocation)));
        if !ends {
            tokio::time::sleep(within).await;
            return Ok(RunEnd { code: None, timed_out: true, ..end });
        }
        for line in end.output.lines() {
            let _ = lines.try_send(line.to_string());
        }
        Ok(end)
    }

    async fn daemon(&self, invocation: Invocation, log: &str) -> Result<Daemon, HostError> {
        self.machine(|machine| {
            machine.calls.push(invocation.program.clone());
            Ok(Daemon::played((machine.daemon)(), &format!("/log/{log}")))
        })
    }

    async fn query(&self, invocation: Invocation, _: Duration) -> Result<QueryEnd, HostError> {
        // dpkg's records are read without a program.
        assert!(invocation.program.ends_with("/dockerd"), "{invocation:?}");
        let output = "Docker version 20.10.24+dfsg1, build 297e128\n".to_string();
        Ok(QueryEnd { code: Some(0), output, timed_out: false, left: None })
    }
}

impl Machine {
    fn run(&mut self, invocation: &Invocation) -> RunEnd {
        let Invocation { program, args, .. } = invocation;
        let named = args.iter().position(|arg| arg == "--");
        let packages = named.map_or(&[][..], |at| &args[at + 1..]);
        let word = |word: &str| args.iter().any(|arg| arg == word);
        let (call, (code, output)) = if program == "dpkg" {
            ("dpkg --configure -a".to_string(), self.configure())
        } else if word("update") {
            ("update".to_string(), self.update())
        } else if word("--fix-broken") {
            ("fix-broken".to_string(), self.complete())
        } else if word("--reinstall") {
            (format!("reinstall {}", packages.join(" ")), self.unpack_anew(packages))
        } else {
            (format!("install {}", packages.join(" ")), self.install(packages))
        };
        self.calls.push(call);
        RunEnd { code: Some(code), output, log: "/log/apt-get.log".into(), timed_out: false }
    }

    fn held_lock(&mut self) -> Option<(i32, String)> {
        self.locked = self.locked.checked_sub(1)?;
        let holder =
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)";
        Some((100, holder.to_string()))
    }

    fn configure(&mut self) -> (i32, String) {
        (1, "dpkg: dependency problems prevent configuration of docker.io".to_string())
    }

    fn complete(&mut self) -> (i32, String) {
        self.interrupted = self.interrupted.saturating_sub(1);
        (0, String::new())
    }

    fn unpack_anew(&mut self, packages: &[String]) -> (i32, String) {
        packages.iter().for_each(|package| put_package(&self.root, package, "ok installed"));
        (0, String::new())
    }

    fn update(&mut self) -> (i32, String) {
        if let Some(locked) = self.held_lock() {
            return locked;
        }
        if let Some(refused) = &self.refused {
            return (100, refused.clone());
        }
        self.lists = self.reachable;
        match self.reachable {
            true => (0, String::new()),
            // apt reports success although it fetched nothing.
            false => {
                (0, "W: Failed to fetch http://mirror.invalid/Release  Temporary failure".into())
            }
        }
    }

    fn install(&mut self, packages: &[String]) -> (i32, String) {
        if let Some(locked) = self.held_lock() {
            return locked;
        }
        if self.interrupted > 0 {
            let words = "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem.";
            return (100, words.to_string());
        }
        if let Some(missing) =
            packages.iter().find(|name| !self.lists || !self.archive.contains(*name))
        {
            return (100, format!("E: Unable to locate package {missing}"));
        }
        if let Some(broken) = &self.broken {
            return (100, broken.clone());
        }
        self.daemon_json = fs::read_to_string(self.root.path("/etc/docker/daemon.json")).ok();
        put_executable(&self.root, "/usr/sbin/dockerd");
        let first = packages.first().map_or("docker.io", String::as_str);
        put_package(&self.root, first, "ok installed");
        (0, format!("Setting up {} ...", packages.join(" ")))
    }
}

/// Creates an executable file.
pub fn put_executable(root: &Root, path: &str) {
    let path = root.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Records `package` as the only package that dpkg knows. `words` are dpkg's error flag and state, such as `ok
/// installed`.
pub fn put_package(root: &Root, package: &str, words: &str) {
    let dpkg = root.path("/var/lib/dpkg");
    fs::create_dir_all(dpkg.join("updates")).unwrap();
    let status = format!("Package: {package}\nStatus: install {words}\n");
    fs::write(dpkg.join("status"), status).unwrap();
}

/// Adds a dockerd that runs without iptables to procfs, and its pid file.
pub fn put_daemon(root: &Root, pid: u32) {
    let proc = root.path(format!("/proc/{pid}"));
    fs::create_dir_all(&proc).unwrap();
    let numbers = "0 ".repeat(49);
    fs::write(proc.join("stat"), format!("{pid} (dockerd) S {numbers}\n")).unwrap();
    fs::write(proc.join("cmdline"), "dockerd\0--iptables=false\0").unwrap();
    fs::write(root.path("/run/docker.pid"), pid.to_string()).unwrap();
}

/// Adds a dockerd to procfs with the pid of a process that lives until the caller ends it.
pub fn put_living_daemon(root: &Root) -> std::process::Child {
    let cat = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn();
    let process = cat.unwrap();
    for folder in ["/run", "/etc/docker", "/proc/self"] {
        fs::create_dir_all(root.path(folder)).unwrap();
    }
    fs::write(root.path("/proc/self/mountinfo"), "").unwrap();
    put_daemon(root, process.id());
    process
}

/// Adds one CPU to sysfs, and a mount table without mounts to procfs.
pub fn put_cpu(root: &Root) {
    let topology = root.path("/sys/devices/system/cpu/cpu0/topology");
    fs::create_dir_all(&topology).unwrap();
    fs::create_dir_all(root.path("/proc/self")).unwrap();
    fs::write(root.path("/proc/self/mountinfo"), "").unwrap();
    // PID 1 is the process of the fake engine's container.
    fs::create_dir_all(root.path("/proc/1")).unwrap();
    let rest = "0 ".repeat(44);
    fs::write(root.path("/proc/1/stat"), format!("1 (target) S 0 1 1 0 -1 {rest}\n")).unwrap();
    fs::write(root.path("/sys/devices/system/cpu/online"), "0").unwrap();
    for (name, value) in
        [("core_id", "0"), ("physical_package_id", "0"), ("thread_siblings_list", "0")]
    {
        fs::write(topology.join(name), value).unwrap();
    }
}
