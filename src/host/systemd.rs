//! Client of systemd over D-Bus (org.freedesktop.systemd1(5)). systemctl is never used: it misreports SysV names (field
//! note 20).
//!
//! `transient` makes systemd do work for the whole machine: a mount, a run of the package manager.

mod transient;

use std::time::Duration;

use tokio::time::timeout;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant, proxy};

pub use self::transient::TransientService;
use crate::model::engine::UnitState;

#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The system bus could not be reached.
    #[error("the system's message bus cannot be reached (install dbus, or start dbus.socket)")]
    Connect(#[source] zbus::Error),
    /// systemd refused a call.
    #[error("systemd refused {call} for {unit} (see `systemctl status {unit}`)")]
    Call { call: &'static str, unit: String, source: zbus::Error },
    #[error(
        "systemd did not answer {call} for {unit} within {within:?}: see what it waits for with \
         `systemctl list-jobs` and `journalctl -u {unit}`, then prepare again"
    )]
    Timeout {
        call: &'static str,
        unit: String,
        /// Deadline of the call.
        within: Duration,
    },
    /// The job that starts or stops the unit did not end as `done` or `skipped`.
    #[error("the job of {unit} ended as '{result}': {}see `journalctl -b -u {unit}`", job_advice(.result))]
    Job {
        unit: String,
        /// systemd's job result: `failed`, `dependency`, `canceled`, `timeout`, …
        result: String,
    },
    /// systemd no longer knows a service that it started, nor its result.
    #[error(
        "systemd does not know any more how {unit} ended (was the message bus restarted meanwhile?): \
         see its log, then call again"
    )]
    Forgotten { unit: String },
}

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        aux: &[(&str, Vec<(&str, Variant<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    fn unref_unit(&self, name: &str) -> zbus::Result<()>;
    #[allow(clippy::type_complexity)]
    fn enable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
        force: bool,
    ) -> zbus::Result<(bool, Vec<(String, String, String)>)>;
    fn reload(&self) -> zbus::Result<()>;
    fn subscribe(&self) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.DBus.Properties",
    default_service = "org.freedesktop.systemd1"
)]
trait Properties {
    fn get(&self, interface: &str, name: &str) -> zbus::Result<OwnedVariant>;
}

/// Time limit of a query to systemd.
const ANSWER: Duration = Duration::from_secs(5);
/// Time limit of a daemon-reload, which runs the generators; they have 90 s (systemd.generator(7)).
const RELOAD: Duration = Duration::from_secs(90);

/// Client of systemd; its connection is made when first needed.
#[derive(Debug, Default)]
pub struct Systemd {
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl Systemd {
    /// Client, not connected yet.
    pub fn new() -> Systemd {
        Systemd::default()
    }

    /// Reads the unit's state.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses.
    pub async fn unit(&self, unit: &str) -> Result<UnitState, SystemdError> {
        self.bounded("GetUnit", unit, ANSWER, |connection| async move {
            let path = ManagerProxy::new(&connection).await?.load_unit(unit).await?;
            let properties = PropertiesProxy::builder(&connection).path(path).build().await?;
            let text = async |name| -> zbus::Result<String> {
                let value = properties.get("org.freedesktop.systemd1.Unit", name).await?;
                Ok(String::try_from(value).unwrap_or_default())
            };
            let mut state = UnitState {
                name: unit.to_string(),
                load: text("LoadState").await?,
                active: text("ActiveState").await?,
                file: text("UnitFileState").await?,
                ..UnitState::default()
            };
            if state.load == "loaded" {
                let of_service =
                    async |name| properties.get("org.freedesktop.systemd1.Service", name).await;
                state.args = command_line(&*of_service("ExecStart").await?);
                state.environment = texts(&*of_service("Environment").await?);
                state.environment_files =
                    environment_files(&*of_service("EnvironmentFiles").await?);
            }
            Ok(state)
        })
        .await
    }

    /// Enables the unit at boot.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses.
    pub async fn enable(&self, unit: &str) -> Result<(), SystemdError> {
        self.bounded("EnableUnitFiles", unit, ANSWER, |connection| async move {
            let manager = ManagerProxy::new(&connection).await?;
            manager.enable_unit_files(&[unit], false, false).await
        })
        .await?;
        self.bounded("Reload", unit, RELOAD, |connection| async move {
            ManagerProxy::new(&connection).await?.reload().await
        })
        .await
    }

    /// Starts the unit and waits for the end of its start job, at most `within`.
    ///
    /// # Errors
    /// When systemd cannot be reached or refuses, or the job fails or does not end within `within`.
    pub async fn start(&self, unit: &str, within: Duration) -> Result<(), SystemdError> {
        let result = self
            .bounded("StartUnit", unit, within, |connection| async move {
                job_done(&connection, async |manager| manager.start_unit(unit, "replace").await)
                    .await
            })
            .await?;
        started(unit, result)
    }

    /// Makes one request on the connection; each attempt may take `within`. A kept connection may have broken since its
    /// last use: then the request is repeated once on a new one.
    async fn bounded<T, W: Future<Output = zbus::Result<T>>>(
        &self,
        call: &'static str,
        unit: &str,
        within: Duration,
        work: impl Fn(Connection) -> W,
    ) -> Result<T, SystemdError> {
        let mut kept = self.connection.lock().await.is_some();
        loop {
            let connection = self.connection().await?;
            match timeout(within, work(connection)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(source)) => {
                    let broken = is_broken(&source);
                    if broken {
                        *self.connection.lock().await = None;
                    }
                    if !(broken && std::mem::take(&mut kept)) {
                        return Err(SystemdError::Call { call, unit: unit.to_string(), source });
                    }
                }
                Err(_) => {
                    // The connection may be dead; the next call makes a new one.
                    *self.connection.lock().await = None;
                    return Err(SystemdError::Timeout { call, unit: unit.to_string(), within });
                }
            }
        }
    }

    async fn connection(&self) -> Result<Connection, SystemdError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = &*kept {
            return Ok(connection.clone());
        }
        // systemd also has a private socket for when there is no bus. It is not used: systemd signs its answers there
        // in a way that the D-Bus specification does not allow, and zbus does not read them.
        let connection = timeout(ANSWER, Connection::system())
            .await
            .unwrap_or_else(|_| Err(zbus::Error::Failure("no answer".to_string())))
            .map_err(SystemdError::Connect)?;
        *kept = Some(connection.clone());
        Ok(connection)
    }
}

/// Starts a job with `ask` and waits for its end; returns systemd's job result, such as `done`.
async fn job_done(
    connection: &Connection,
    ask: impl AsyncFnOnce(&ManagerProxy<'_>) -> zbus::Result<OwnedObjectPath>,
) -> zbus::Result<String> {
    let manager = ManagerProxy::new(connection).await?;
    manager.subscribe().await.or_else(already_subscribed)?;
    // The subscription comes before the job: the end of a fast one would be missed otherwise.
    let mut removed = manager.receive_job_removed().await?;
    let job = ask(&manager).await?;
    loop {
        let Some(signal) = next(&mut removed).await else {
            return Err(zbus::Error::Failure("systemd closed the connection".to_string()));
        };
        let args = signal.args()?;
        if *args.job() == job {
            return Ok(args.result().clone());
        }
    }
}

/// Success if `result`, the result of the unit's job, is `done` or `skipped`; else an error.
fn started(unit: &str, result: String) -> Result<(), SystemdError> {
    match result.as_str() {
        "done" | "skipped" => Ok(()),
        _ => Err(SystemdError::Job { unit: unit.to_string(), result }),
    }
}

/// Meaning of a job's result, and advice (org.freedesktop.systemd1(5), `JobRemoved`); empty for an unknown result.
fn job_advice(result: &str) -> &'static str {
    match result {
        "failed" => {
            "its process failed, was not up within its start timeout (TimeoutStartSec=), or was started too often \
             (then `systemctl reset-failed` lets it start again): "
        }
        "dependency" => "a unit that it needs failed, which `systemctl --failed` names: ",
        // The service's own start timeout ends the job as `failed`.
        "timeout" => {
            "it waited longer for other units than a job may (JobTimeoutSec=), `systemctl list-jobs` names what still \
             waits: "
        }
        "canceled" | "collected" => "another job took its place, call again: ",
        _ => "",
    }
}

/// `true` if `error` is one of the connection, and not systemd's answer to the call.
fn is_broken(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(_) | zbus::Error::Failure(_))
}

/// Treats systemd's refusal of a second subscription on one connection as success.
fn already_subscribed(error: zbus::Error) -> zbus::Result<()> {
    match &error {
        zbus::Error::MethodError(name, ..) if name.ends_with("AlreadySubscribed") => Ok(()),
        _ => Err(error),
    }
}

async fn next<S: futures_core::Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx)).await
}

/// Elements of an array; none of any other value.
fn elements<'a>(value: &'a Variant<'_>) -> &'a [Variant<'a>] {
    match value {
        Variant::Array(array) => array,
        _ => &[],
    }
}

/// Fields of a structure; none of any other value.
fn fields<'a>(value: &'a Variant<'_>) -> &'a [Variant<'a>] {
    match value {
        Variant::Structure(structure) => structure.fields(),
        _ => &[],
    }
}

/// Texts in an array; other elements are left out.
fn texts(value: &Variant<'_>) -> Vec<String> {
    let text = |value: &Variant<'_>| match value {
        Variant::Str(text) => Some(text.as_str().to_string()),
        _ => None,
    };
    elements(value).iter().filter_map(text).collect()
}

/// Arguments of the first command of `ExecStart`, which is of type `a(sasbttttuii)`.
fn command_line(value: &Variant<'_>) -> Vec<String> {
    let first = elements(value).first();
    first.and_then(|command| fields(command).get(1)).map(texts).unwrap_or_default()
}

/// Paths of `EnvironmentFiles`, which is of type `a(sb)`, each with `true` if the file may be absent.
fn environment_files(value: &Variant<'_>) -> Vec<(String, bool)> {
    let file = |value: &Variant<'_>| match fields(value) {
        [Variant::Str(path), Variant::Bool(optional)] => {
            Some((path.as_str().to_string(), *optional))
        }
        _ => None,
    };
    elements(value).iter().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_job_says_what_its_result_means() {
        for (result, words) in [
            ("failed", "reset-failed"),
            ("failed", "start timeout"),
            ("dependency", "systemctl --failed"),
            ("timeout", "JobTimeoutSec=), `systemctl list-jobs`"),
            ("canceled", "call again"),
            ("of-tomorrow", "'of-tomorrow': see `journalctl -b -u docker.service`"),
        ] {
            let text = started("docker.service", result.to_string()).unwrap_err().to_string();
            assert!(text.contains(words) && text.ends_with("-u docker.service`"), "{text}");
        }
        assert!(started("docker.service", "done".to_string()).is_ok());
    }
}
