//! Every stable error code, with its HTTP status and its meaning.
//!
//! One row of the table below is one code. A failure carries its code from where it happens to the problem document,
//! the callback, the log line and the metric in which it leaves the agent. A code has one status: 400 or 422 for what
//! the caller has to change, 404 for what is unknown, 409 for what conflicts with what is there, 503 for what passes,
//! 504 for what took too long, 500 for a failure of this machine. No code is renamed once it was released.
//!
//! `packaging/doc/error-codes.md` is generated from the table by a test of this module.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Makes the enum and its tables from rows of variant, word, status and meaning.
macro_rules! codes {
    ($($variant:ident $word:literal $status:literal $meaning:literal)*) => {
        /// A stable error code, a word in kebab-case outside the agent.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code, in the order of their words.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// Word that stands for the code on the wire, in logs and in metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $word),* }
            }

            /// HTTP status of a problem with the code; 200 for one that is only ever a finding.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status),* }
            }

            /// Meaning of the code in one line.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning),* }
            }
        }

        impl FromStr for Code {
            type Err = Infallible;

            /// Parses the word of a code. A word that this version does not know becomes [`Code::Unknown`].
            fn from_str(word: &str) -> Result<Code, Infallible> {
                Ok(match word { $($word => Code::$variant,)* _ => Code::Unknown })
            }
        }
    };
}

codes! {
    AccessNotConfigured "access-not-configured" 403 "Nobody has told the agent who may call it from elsewhere"
    AddressNotAllowed "address-not-allowed" 403 "The settings do not allow the address of the caller (access.allow)"
    AgentEnded "agent-ended" 503 "The agent was ended while it worked on the call"
    AnotherAgent "another-agent" 409 "Another vhost-agent owns the node"
    ArrivalReserveShort "arrival-reserve-short" 200 "Fewer hugepages are free than the settings keep for guests that arrive by migration"
    BdevBelongsToAnother "bdev-belongs-to-another" 409 "The bdev is another volume's, or holds something else"
    BodyBroken "body-broken" 400 "The body of the request broke off"
    BodyTimeout "body-timeout" 408 "The body of the request took too long"
    BodyTooLarge "body-too-large" 413 "The body of the request is longer than allowed"
    BuffersExhausted "buffers-exhausted" 200 "The target has too few I/O buffers, so that requests wait for one"
    CallbackAddressRefused "callback-address-refused" 400 "The egress policy does not allow the callback address"
    CallbackUrlMalformed "callback-url-malformed" 400 "The header callbackurl is no http or https address"
    CallbackUrlMissing "callback-url-missing" 400 "The header taskuuid came without callbackurl"
    CalledByAgent "called-by-agent" 403 "An agent sent the request, to an address that a caller gave it"
    Cancelled "cancelled" 503 "Nobody waited for the result any more"
    CertificateUnknown "certificate-unknown" 403 "No rule names the certificate that the caller showed"
    ContainerNotOurs "container-not-ours" 409 "The container of that name was not made by this agent"
    ControlSocketInUse "control-socket-in-use" 409 "Another process serves at the control socket"
    CoresImpossible "cores-impossible" 422 "The machine cannot give these CPU cores, or so many"
    CoresSharedWithTargets "cores-shared-with-targets" 200 "The target shares CPU cores with other targets"
    CoresSharedWithVms "cores-shared-with-vms" 200 "The target shares CPU cores with virtual machines"
    CrossSite "cross-site" 403 "A browser sent the request for a page of another site"
    DaemonJsonChanged "daemon-json-changed" 409 "Something else writes the engine's settings file at the same time"
    DaemonJsonUnusable "daemon-json-unusable" 500 "The engine's settings file cannot be read or is not JSON"
    DaemonJsonUnwritable "daemon-json-unwritable" 500 "The engine's settings file cannot be written"
    DeepCanaryLeft "deep-canary-left" 500 "The disk of a deep probe could not be removed"
    DeepDataDiffers "deep-data-differs" 500 "A deep probe read other data than it wrote"
    DeepImpossible "deep-impossible" 422 "The target lacks methods that a deep probe needs"
    DeepIoFailed "deep-io-failed" 500 "The I/O of a deep probe failed"
    DeepNotAnswering "deep-not-answering" 503 "The target does not answer a deep probe"
    DeepRefused "deep-refused" 500 "The target refused a call of a deep probe"
    DeepSessionLeft "deep-session-left" 500 "The session of a deep probe has not ended"
    DefaultPagesUnmounted "default-pages-unmounted" 200 "Hugepages of the kernel's default size have no mount, so guests without a size take others or none"
    DependencyNotInstalled "dependency-not-installed" 409 "A package that the controller requires is not installed and the settings do not list it"
    DiskFull "disk-full" 500 "A package could not be installed for lack of disk space"
    EngineAbsent "engine-absent" 503 "The container engine does not run"
    EngineBusy "engine-busy" 503 "Too many requests wait for the container engine"
    EngineMayChangeIp6tables "engine-may-change-ip6tables" 200 "The running engine may change the host's packet filter of IPv6"
    EngineMayChangeIptables "engine-may-change-iptables" 409 "The running engine may change the host's packet filter"
    EngineNetworkOverlaps "engine-network-overlaps" 200 "A network of the engine hides an address that the node needs"
    EngineNotAnswering "engine-not-answering" 503 "The container engine listens and does not answer"
    EngineNotConverging "engine-not-converging" 500 "The engine is not as desired after several rounds"
    EngineNotDocker "engine-not-docker" 409 "Another container engine has the place of Docker"
    EngineNotInstalled "engine-not-installed" 409 "The engine is not installed and the settings forbid to install it"
    EngineNotReady "engine-not-ready" 504 "The engine was started and did not answer in time"
    EngineOptionsUnknown "engine-options-unknown" 409 "The options with which the engine starts cannot be found out"
    EngineRefused "engine-refused" 500 "The container engine refused a call"
    EngineSocketElsewhere "engine-socket-elsewhere" 409 "The engine listens at another socket than the settings name"
    EngineStartFailed "engine-start-failed" 500 "The container engine could not be started"
    EngineTooOld "engine-too-old" 500 "The container engine speaks too old an API"
    EngineUnitMasked "engine-unit-masked" 409 "The engine's systemd unit is masked"
    EngineUnitMissing "engine-unit-missing" 409 "The engine is installed and systemd does not know its unit"
    FallbackBroken "fallback-broken" 502 "The connection to the legacy agent broke before an answer came"
    FallbackBusy "fallback-busy" 503 "Too many requests are at work at the legacy agent"
    FallbackSilent "fallback-silent" 504 "The legacy agent gave no answer in time"
    FallbackStalled "fallback-stalled" 504 "The legacy agent stopped to read the request"
    FallbackUnreachable "fallback-unreachable" 502 "The legacy agent cannot be reached"
    GuestDefinitionUnreadable "guest-definition-unreadable" 200 "The definition of a virtual machine in libvirt cannot be read"
    GuestDoesNotReconnect "guest-does-not-reconnect" 200 "A virtual machine does not connect to its volume again once the target has exited"
    GuestLosesReconnects "guest-loses-reconnects" 200 "A virtual machine runs a QEMU that may lose its volume when it reconnects"
    GuestMemoryPrivate "guest-memory-private" 200 "A virtual machine with a vhost-user disk does not share its memory with the target"
    GuestPagesChange "guest-pages-change" 200 "A mount for targets makes guests without a size take other hugepages than before"
    GuestPagesShort "guest-pages-short" 200 "Fewer hugepages are free than a virtual machine takes at its next start"
    GuestPagesUnmounted "guest-pages-unmounted" 200 "A virtual machine takes hugepages of a size that has no mount"
    GuestReconnectsSlowly "guest-reconnects-slowly" 200 "A virtual machine looks for its volume less often than a target takes to come back"
    HostUnreadable "host-unreadable" 500 "A file of the host cannot be read"
    HostUnwritable "host-unwritable" 500 "A file of the host cannot be written"
    ImageLoadFailed "image-load-failed" 502 "No source gave the image"
    ImageMissing "image-missing" 422 "No image was named, or no source of it"
    ImageNotAllowed "image-not-allowed" 403 "The settings do not let callers name that image"
    ImageUrlNotAllowed "image-url-not-allowed" 403 "The settings do not let callers name that address of an image"
    Internal "internal" 500 "A bug in the agent; its log has the place"
    InvalidBacking "invalid-backing" 400 "The backing of a volume is malformed"
    InvalidBody "invalid-body" 400 "The body of the request does not fit"
    InvalidControlSocket "invalid-control-socket" 400 "The control socket does not lie in its folder"
    InvalidCores "invalid-cores" 400 "The list or number of CPU cores is malformed"
    InvalidCpumask "invalid-cpumask" 400 "The CPU mask of a volume is malformed"
    InvalidDocument "invalid-document" 422 "The document is no exported state that this version reads"
    InvalidImage "invalid-image" 400 "The name of the image is malformed"
    InvalidImageSha256 "invalid-image-sha256" 400 "The checksum of the image is malformed or lacks its address"
    InvalidImageUrl "invalid-image-url" 400 "The address of the image is malformed"
    InvalidJson "invalid-json" 400 "The body of the request is not JSON"
    InvalidMemory "invalid-memory" 400 "The memory of a target is out of range"
    InvalidPath "invalid-path" 400 "The path is not absolute and plain"
    InvalidQuery "invalid-query" 400 "The query of the request does not fit"
    InvalidReservation "invalid-reservation" 400 "The name, the pages or the lease of a reservation are malformed"
    InvalidState "invalid-state" 422 "A part of the state is not what its name says"
    InvalidTargetName "invalid-target-name" 400 "The name of the target is malformed"
    InvalidVolumeName "invalid-volume-name" 400 "The name of the volume is malformed"
    IptablesSetByOperator "iptables-set-by-operator" 409 "The operator lets the engine change the packet filter"
    MemoryFloor "memory-floor" 409 "The hugepages would leave less memory available than the floor"
    MemoryImpossible "memory-impossible" 422 "No NUMA node has the free hugepages that the target takes"
    MemoryRemote "memory-remote" 200 "The NUMA node of the target's cores has no memory for it, so it gets that of the nearest node"
    MethodNotAllowed "method-not-allowed" 405 "The path does not take the method"
    MountFailed "mount-failed" 500 "A file system could not be mounted"
    NoFreeHugepage "no-free-hugepage" 503 "No hugepage is free for a deep probe"
    NoPackageManager "no-package-manager" 500 "The machine has no package manager that the agent knows"
    NoPackagesConfigured "no-packages-configured" 500 "The settings name no package of the engine for this machine"
    NoSuchNode "no-such-node" 422 "The machine has no such NUMA node"
    NoSuchRoute "no-such-route" 404 "The agent has no such path"
    NoTunnels "no-tunnels" 501 "The agent makes no tunnels (CONNECT)"
    NodeBusy "node-busy" 503 "Too many requests wait for the node's owner"
    NodeRootOnly "node-root-only" 403 "Only root on the node itself may call this route"
    OutboxFull "outbox-full" 503 "Too many results wait for the controller"
    PackageManagerFailed "package-manager-failed" 500 "The package manager failed"
    PackageManagerInterrupted "package-manager-interrupted" 500 "An earlier run of the package manager was cut off"
    PackageManagerLocked "package-manager-locked" 503 "Another package manager is at work"
    PackageManagerTimeout "package-manager-timeout" 504 "The package manager took too long and was left running"
    PackagesConflict "packages-conflict" 409 "The engine's packages cannot be there beside packages that are installed"
    PackagesNotAvailable "packages-not-available" 500 "No repository has the engine's packages"
    PackagesNotFetched "packages-not-fetched" 502 "The packages could not be fetched from their mirror"
    PackagesNotTrusted "packages-not-trusted" 502 "The signature of the packages or of their repository cannot be verified"
    PageLimitTooLow "page-limit-too-low" 422 "A control group allows containers fewer hugepages than the target takes"
    PageSizeUnsupported "page-size-unsupported" 422 "The kernel has no hugepages of that size"
    PagesLimit "pages-limit" 409 "The hugepages of the agent would take more of the memory than it may"
    PagesLost "pages-lost" 200 "Something else took away hugepages that the agent keeps"
    PagesShort "pages-short" 500 "The kernel gave fewer hugepages than desired"
    PathNotAllowed "path-not-allowed" 403 "The settings do not let callers name that path"
    PoolsBusy "pools-busy" 503 "Too many requests wait for the hugepage pools"
    PoolsContended "pools-contended" 409 "Something else changes the hugepage pools at the same time"
    PoolsTimeout "pools-timeout" 504 "The kernel took too long to give hugepages"
    PrepareBusy "prepare-busy" 503 "Too many different prepares wait"
    ProcessNotEnded "process-not-ended" 500 "A process could not be killed"
    ProgramNotStarted "program-not-started" 500 "A program could not be started or watched"
    RawMethodNotAllowed "raw-method-not-allowed" 403 "The settings do not let callers call that method of a target"
    ReservationConflict "reservation-conflict" 409 "A reservation of that name is for other pages, or its guest has them"
    ReservationHolderUnknown "reservation-holder-unknown" 409 "No process has the pid that is to have the pages of a reservation"
    ReservationShort "reservation-short" 200 "Fewer hugepages are free than are reserved for guests"
    ReservationUnknown "reservation-unknown" 404 "There is no reservation of that name"
    RoleInsufficient "role-insufficient" 403 "The role of the caller does not cover the call"
    SecretExposed "secret-exposed" 500 "A file with a secret can be read by everybody"
    SendCommandAddressRefused "send-command-address-refused" 400 "The egress policy does not allow that controller"
    SessionsNotServed "sessions-not-served" 503 "The target takes vhost-user connections and serves none"
    SignalFailed "signal-failed" 500 "A process could not be sent a signal"
    SocketPathTooLong "socket-path-too-long" 400 "The path is too long for a UNIX socket"
    SocketPlaceUnusable "socket-place-unusable" 409 "Something else is where the target's sockets are to be"
    StateDiffers "state-differs" 409 "The node keeps another state than the document"
    StateUnreadable "state-unreadable" 500 "The state folder cannot be read"
    StateUnwritable "state-unwritable" 503 "The state folder cannot be written; nothing was changed"
    Stopping "stopping" 503 "The agent is stopping"
    StorageBusy "storage-busy" 503 "Too many checks of the storage, or another installation of its client, are at work"
    StorageClientMissing "storage-client-missing" 500 "qemu-io, its driver for the storage or the configuration of its client is missing"
    StorageUnreachable "storage-unreachable" 503 "The heartbeat volume of the storage could not be read"
    SystemdUnreachable "systemd-unreachable" 500 "systemd cannot be reached"
    TargetAbsent "target-absent" 503 "Nothing listens at the target's control socket"
    TargetBusy "target-busy" 503 "Too many requests wait for the target"
    TargetDrift "target-drift" 200 "The target runs with other settings than desired and was left so"
    TargetInUse "target-in-use" 409 "Virtual machines use the target's disks"
    TargetNotAnswering "target-not-answering" 503 "The target does not answer"
    TargetNotConverging "target-not-converging" 409 "Something else changes the target at the same time"
    TargetNotReady "target-not-ready" 500 "The target was started and does not serve"
    TargetNotServing "target-not-serving" 503 "The target does not serve yet"
    TargetNotStopped "target-not-stopped" 500 "The target still runs after it was killed"
    TargetRefused "target-refused" 500 "The target refused a call"
    TargetUnknown "target-unknown" 404 "No such target is desired"
    TargetUseUnknown "target-use-unknown" 409 "The target does not tell whether virtual machines use it"
    TaskTimeout "task-timeout" 504 "The work was not done in the controller's time; it goes on"
    TaskUuidMalformed "task-uuid-malformed" 400 "The header taskuuid is malformed"
    TaskUuidMissing "task-uuid-missing" 400 "The header callbackurl came without taskuuid"
    TlsUnusable "tls-unusable" 500 "The certificate, its key or its authority cannot be used"
    TokenMissing "token-missing" 401 "The request shows no token"
    TokenWrong "token-wrong" 401 "The request shows no token of this agent"
    TokensUnusable "tokens-unusable" 500 "The file of tokens cannot be used"
    TooManyConnections "too-many-connections" 503 "Too many connections, or too many of one caller, are open"
    TooManyFollowers "too-many-followers" 503 "Too many callers follow the events"
    TooManyPages "too-many-pages" 422 "More hugepages were requested than the machine has memory"
    TooManyReservations "too-many-reservations" 503 "The node has too many reservations"
    TooManyTargets "too-many-targets" 503 "Too many targets are desired or worked on"
    TooManyTasks "too-many-tasks" 503 "Too many tasks are at work"
    TooManyVolumes "too-many-volumes" 400 "The target would have more volumes than it may"
    Unknown "unknown" 500 "A code of another version of the agent that this one does not know"
    VolumeBackingFailed "volume-backing-failed" 422 "The target could not open the volume's backing"
    VolumeConflict "volume-conflict" 409 "A volume of that name has another backing, or another volume writes to its file"
    VolumeDegraded "volume-degraded" 503 "The volume could not be made and is retried"
    VolumeDrift "volume-drift" 409 "The volume runs with other settings than desired, and a virtual machine uses it"
    VolumeInUse "volume-in-use" 409 "A virtual machine uses the volume"
    VolumeNotResizable "volume-not-resizable" 422 "The target cannot resize the volume's backing"
    VolumeNotServing "volume-not-serving" 503 "The volume does not serve yet"
    VolumeQuarantined "volume-quarantined" 409 "Its target went down while the volume was made"
    VolumeUnknown "volume-unknown" 404 "No such volume is desired"
}

impl Code {
    /// `true` if the container engine does not run or does not answer.
    pub fn is_engine_away(self) -> bool {
        matches!(self, Code::EngineAbsent | Code::EngineNotAnswering)
    }

    /// `true` if a deep probe found that the target does no I/O, rather than that I/O could not be tried.
    pub fn blames_target(self) -> bool {
        matches!(self, Code::DeepIoFailed | Code::DeepDataDiffers | Code::DeepNotAnswering)
    }

    /// `true` if the code refuses the caller, or a value that the caller names.
    pub fn is_refusal(self) -> bool {
        let address =
            matches!(self, Code::CallbackAddressRefused | Code::SendCommandAddressRefused);
        matches!(self.status(), 401 | 403) || address
    }

    /// `true` if the code refuses the caller, whatever the request names.
    pub fn refuses_caller(self) -> bool {
        matches!(
            self,
            Code::AccessNotConfigured
                | Code::AddressNotAllowed
                | Code::CalledByAgent
                | Code::CertificateUnknown
                | Code::CrossSite
                | Code::NodeRootOnly
                | Code::RoleInsufficient
                | Code::TokenMissing
                | Code::TokenWrong
        )
    }

    /// `true` if a request of the compatible API is refused with status 400 for this code. For any other code, the
    /// reply has status 200 and says that the work failed.
    pub fn refuses_compatible_call(self) -> bool {
        matches!(self, Code::InvalidBody | Code::InvalidJson | Code::SendCommandAddressRefused)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    /// Reads any word, so that what another version of the agent wrote can be read in spite of a new code in it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
        let Ok(code) = Cow::<str>::deserialize(deserializer)?.parse();
        Ok(code)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::fmt::Write as _;
    use std::{env, fs};

    use super::*;

    /// Set to write the document instead of comparing it.
    const WRITE: &str = "VHOST_AGENT_WRITE_DOCS";
    const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/doc/error-codes.md");

    fn document() -> String {
        let mut text = String::from(
            "# Error codes\n\n\
             A code is stable between versions. Under `/v1` it is the member `code` of the problem document, whose\n\
             status is the one below; 200 marks a code that is only ever a finding. The compatible routes answer 200\n\
             with `success: false` and the `code` where the work of a call failed.\n\n\
             | code | status | meaning |\n| --- | --- | --- |\n",
        );
        for code in Code::ALL {
            writeln!(text, "| `{code}` | {} | {} |", code.status(), code.meaning()).unwrap();
        }
        let command = format!("{WRITE}=1 cargo test --lib model::code");
        writeln!(text, "\nGenerated from `src/model/code.rs`; to write it anew: `{command}`.")
            .unwrap();
        text
    }

    #[test]
    fn document_lists_every_code() {
        if env::var_os(WRITE).is_some() {
            fs::write(DOCUMENT, document()).unwrap();
        }
        let written = fs::read_to_string(DOCUMENT).unwrap_or_default();
        assert!(written == document(), "{DOCUMENT} is old: run this test with {WRITE}=1");
    }

    #[test]
    fn words_are_sorted_distinct_and_the_variants_in_kebab_case() {
        assert!(Code::ALL.is_sorted_by(|a, b| a.as_str() < b.as_str()));
        for code in Code::ALL {
            let name = code.as_str().split('-').map(|word| {
                let (first, rest) = word.split_at(1);
                first.to_uppercase() + rest
            });
            assert_eq!(name.collect::<String>(), format!("{code:?}"));
        }
    }

    #[test]
    fn json_is_the_word_and_an_unknown_word_is_read() {
        for code in Code::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), *code);
        }
        assert_eq!(serde_json::from_str::<Code>("\"of-tomorrow\"").unwrap(), Code::Unknown);
        assert!(serde_json::from_str::<Code>("7").is_err());
    }

    #[test]
    fn mistakes_conflicts_and_what_passes_are_no_failures_of_the_machine() {
        use Code::*;
        for (status, codes) in [
            (400, [InvalidBody, InvalidVolumeName, TooManyVolumes, SocketPathTooLong]),
            (409, [TargetInUse, TargetUseUnknown, ContainerNotOurs, ControlSocketInUse]),
            (409, [VolumeInUse, VolumeConflict, BdevBelongsToAnother, MemoryFloor]),
            (422, [CoresImpossible, ImageMissing, TooManyPages, VolumeNotResizable]),
            (503, [EngineBusy, VolumeNotServing, StateUnwritable, Stopping]),
        ] {
            for code in codes {
                assert_eq!(code.status(), status, "{code}");
            }
        }
        assert!(Code::ALL.iter().all(|code| matches!(code.status(), 200 | 400..600)));
    }
}
