//! RPC methods for block devices and vhost controllers.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{Method, Spdk, SpdkError};
use crate::model::volume::{Backing, ZBS_SUFFIX};

/// Block device of a target.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Bdev {
    pub name: String,
    /// Block size in bytes.
    pub block_size: u64,
    /// Size in blocks.
    pub num_blocks: u64,
    /// Path of the file or volume with the data, if the target reports one.
    #[serde(rename = "driver_specific", default, deserialize_with = "file_of")]
    pub file: Option<String>,
    /// Set if a module of the target has exclusive use of the bdev; vhost and iSCSI do not claim it.
    #[serde(default)]
    pub claimed: bool,
}

/// Reads the path from `{"<module>": {"filename": …}}`, or `file` in its place; `None` for modules without a file.
fn file_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let specific = Value::deserialize(deserializer)?;
    let modules = specific.as_object().map(|modules| modules.values().collect::<Vec<_>>());
    let file = |module: &&Value| {
        let member = module.get("filename").or_else(|| module.get("file"));
        member.and_then(Value::as_str).map(str::to_string)
    };
    Ok(modules.unwrap_or_default().iter().find_map(file))
}

/// Vhost controller of a target.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Controller {
    pub ctrlr: String,
    /// Path of the controller's socket; empty if the target does not report it.
    #[serde(default)]
    pub socket: String,
    /// Sessions of the connected guests.
    #[serde(default)]
    pub sessions: Vec<Session>,
    /// Disks that the controller serves.
    #[serde(default)]
    pub backend_specific: Backend,
}

/// Disks that a controller serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Backend {
    /// Disk of a vhost-blk controller.
    #[serde(default)]
    pub block: Option<Block>,
    /// Disks of a vhost-scsi controller.
    #[serde(default)]
    pub scsi: Vec<Luns>,
}

/// SCSI device of a controller, or iSCSI target node, with its logical units.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Luns {
    /// Name of an iSCSI node; empty for a SCSI device.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub luns: Vec<ExportedBdev>,
}

/// Bdev that is exported as a logical unit or as a device of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ExportedBdev {
    #[serde(default)]
    pub bdev_name: String,
    /// Path of the kernel's device (NBD or ublk); empty for a logical unit.
    #[serde(default, alias = "nbd_device", alias = "ublk_device")]
    pub device: String,
}

/// Disk of a vhost-blk controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Block {
    /// Name of the disk's bdev; `None` once the bdev was deleted while the controller exists.
    #[serde(default)]
    pub bdev: Option<String>,
    /// Set if guests may not write.
    #[serde(default)]
    pub readonly: bool,
}

/// Connection of a virtual machine to a controller.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Session {
    /// Number of the connection; another one gets it later.
    #[serde(default)]
    pub vid: u64,
    /// Number of the session in its controller.
    #[serde(default)]
    pub id: u64,
    /// Set while the session's queues run.
    #[serde(default)]
    pub started: bool,
    /// Number of the session's queues.
    #[serde(default)]
    pub max_queues: u64,
    /// Number of requests in flight.
    #[serde(default)]
    pub inflight_task_cnt: u64,
}

impl Spdk {
    /// Lists the target's block devices.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn bdevs(&self, within: Duration) -> Result<Vec<Bdev>, SpdkError> {
        self.typed("bdev_get_bdevs", None, within).await
    }

    /// Reads the block device `name`; `None` if it does not exist.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn bdev(&self, name: &str, within: Duration) -> Result<Option<Bdev>, SpdkError> {
        let one: Result<Vec<Bdev>, _> =
            self.typed("bdev_get_bdevs", Some(json!({"name": name})), within).await;
        if_found(one)
    }

    /// Creates the block device `bdev` of a volume.
    ///
    /// # Errors
    /// See [`Spdk::call`]; [`SpdkError::is_exists`] when the name is taken.
    pub async fn create_bdev(
        &self,
        bdev: &str,
        backing: &Backing,
        within: Duration,
    ) -> Result<(), SpdkError> {
        let (method, params) = creation(bdev, backing);
        self.change(method, params, within).await.map(drop)
    }

    /// Deletes the block device `bdev` of a volume. No controller may use it: its guest would get I/O errors.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn delete_bdev(
        &self,
        bdev: &str,
        backing: &Backing,
        within: Duration,
    ) -> Result<(), SpdkError> {
        let method: Method = match backing {
            Backing::Zbs { .. } => "bdev_zbs_delete".into(),
            Backing::Aio { .. } => "bdev_aio_delete".into(),
            Backing::Malloc { .. } => "bdev_malloc_delete".into(),
            Backing::Raw { delete_method: Some(method), .. } => method.clone().into(),
            Backing::Raw { method, .. } => with_end(method, "_delete").into(),
        };
        self.change(method, json!({"name": bdev}), within).await.map(drop)
    }

    /// Resizes the block device `bdev` of a volume; a connected guest sees the new size.
    ///
    /// # Errors
    /// See [`Spdk::call`]; [`SpdkError::is_unknown_method`] when the target cannot resize block devices of that kind.
    pub async fn resize_bdev(
        &self,
        bdev: &str,
        backing: &Backing,
        size_mib: u64,
        within: Duration,
    ) -> Result<(), SpdkError> {
        let sized = json!({"name": bdev, "new_size": size_mib});
        let (method, params): (Method, Value) = match backing {
            Backing::Zbs { .. } => ("bdev_zbs_resize".into(), sized),
            // An AIO bdev takes its size from its file, which the target cannot change.
            Backing::Aio { .. } => ("bdev_aio_rescan".into(), json!({"name": bdev})),
            Backing::Malloc { .. } => ("bdev_malloc_resize".into(), sized),
            Backing::Raw { method, .. } => (with_end(method, "_resize").into(), sized),
        };
        self.change(method, params, within).await.map(drop)
    }

    /// Lists the target's vhost controllers with their sessions.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn controllers(&self, within: Duration) -> Result<Vec<Controller>, SpdkError> {
        self.typed("vhost_get_controllers", None, within).await
    }

    /// Lists the bdevs that are exported by other means than vhost, each with its user: an iSCSI target node, or a
    /// device of the kernel (NBD, ublk).
    ///
    /// # Errors
    /// See [`Spdk::call`]. A module that the target was built without counts as empty.
    pub async fn served_elsewhere(
        &self,
        within: Duration,
    ) -> Result<Vec<(String, String)>, SpdkError> {
        let (nodes, nbd, ublk) = tokio::join!(
            self.typed::<Vec<Luns>>("iscsi_get_target_nodes", None, within),
            self.typed::<Vec<ExportedBdev>>("nbd_get_disks", None, within),
            self.typed::<Vec<ExportedBdev>>("ublk_get_disks", None, within),
        );
        let mut served = Vec::new();
        for Luns { name, luns } in if_known(nodes)? {
            let of_node = luns.into_iter().map(|lun| (lun.bdev_name, format!("{name} (iSCSI)")));
            served.extend(of_node);
        }
        for (kind, devices) in [("NBD", if_known(nbd)?), ("ublk", if_known(ublk)?)] {
            let of_kernel = |it: ExportedBdev| (it.bdev_name, format!("{} ({kind})", it.device));
            served.extend(devices.into_iter().map(of_kernel));
        }
        Ok(served)
    }

    /// Reads the vhost controller `name`; `None` if it does not exist.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn controller(
        &self,
        name: &str,
        within: Duration,
    ) -> Result<Option<Controller>, SpdkError> {
        let one: Result<Vec<Controller>, _> =
            self.typed("vhost_get_controllers", Some(json!({"name": name})), within).await;
        if_found(one)
    }

    /// Creates the vhost-blk controller `name` on the block device `bdev`; its socket gets the same name.
    ///
    /// The caller must have validated `name`: SPDK unlinks any socket at that path, truncates long names and follows
    /// `..`.
    ///
    /// # Errors
    /// See [`Spdk::call`]; [`SpdkError::is_exists`] when the name is taken.
    pub async fn create_controller(
        &self,
        name: &str,
        bdev: &str,
        read_only: bool,
        cpumask: Option<&str>,
        within: Duration,
    ) -> Result<(), SpdkError> {
        let mut params = json!({"ctrlr": name, "dev_name": bdev, "readonly": read_only});
        if let (Some(mask), Some(members)) = (cpumask, params.as_object_mut()) {
            members.insert("cpumask".to_string(), mask.into());
        }
        self.change("vhost_create_blk_controller", params, within).await.map(drop)
    }

    /// Deletes the controller `name`. It must have no session: otherwise the target may hang for ever.
    ///
    /// # Errors
    /// See [`Spdk::call`].
    pub async fn delete_controller(&self, name: &str, within: Duration) -> Result<(), SpdkError> {
        self.change("vhost_delete_controller", json!({"ctrlr": name}), within).await.map(drop)
    }
}

/// Method that creates the bdev of `backing`, and its parameters.
fn creation(bdev: &str, backing: &Backing) -> (Method, Value) {
    match backing {
        Backing::Zbs { path } => {
            ("bdev_zbs_create".into(), json!({"name": bdev, "file": format!("{path}{ZBS_SUFFIX}")}))
        }
        Backing::Aio { path, block_size: None } => {
            ("bdev_aio_create".into(), json!({"name": bdev, "filename": path}))
        }
        Backing::Aio { path, block_size } => (
            "bdev_aio_create".into(),
            json!({"name": bdev, "filename": path, "block_size": block_size}),
        ),
        Backing::Malloc { size_mib, block_size } => {
            let blocks = size_mib.saturating_mul(1 << 20) / u64::from((*block_size).max(1));
            let params = json!({"name": bdev, "num_blocks": blocks, "block_size": block_size});
            ("bdev_malloc_create".into(), params)
        }
        Backing::Raw { method, params, .. } => {
            let mut params = params.clone();
            params.entry("name").or_insert_with(|| bdev.into());
            (method.clone().into(), Value::Object(params))
        }
    }
}

/// Replaces the suffix `_create` or `_attach_controller` of `method` by `end`.
fn with_end(method: &str, end: &str) -> String {
    let kind = method.strip_suffix("_create").or_else(|| method.strip_suffix("_attach_controller"));
    format!("{}{end}", kind.unwrap_or(method))
}

/// First and only element of `one`; `None` if the target reports that the object does not exist.
fn if_found<T>(one: Result<Vec<T>, SpdkError>) -> Result<Option<T>, SpdkError> {
    match one {
        Ok(one) => Ok(one.into_iter().next()),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// List in `all`, or an empty one if the target refused the call: it was built without the module, or has not started
/// it.
fn if_known<T>(all: Result<Vec<T>, SpdkError>) -> Result<Vec<T>, SpdkError> {
    match all {
        Err(SpdkError::Refused { .. }) => Ok(Vec::new()),
        all => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_of_a_bdev_is_read_as_spdk_reports_it() {
        let controller = r#"{"ctrlr":"s","backend_specific":{"scsi":[{"scsi_dev_num":0,"id":1,"target_name":"Target 0",
            "luns":[{"id":0,"bdev_name":"b"}]}]}}"#;
        let controller: Controller = serde_json::from_str(controller).unwrap();
        assert_eq!(controller.backend_specific.scsi[0].luns[0].bdev_name, "b");
        let node = r#"[{"name":"iqn.2016-06.io.spdk:disk1","alias_name":"d","luns":[{"lun_id":0,"bdev_name":"b"}]}]"#;
        let nodes: Vec<Luns> = serde_json::from_str(node).unwrap();
        assert_eq!(
            (nodes[0].name.as_str(), nodes[0].luns[0].bdev_name.as_str()),
            ("iqn.2016-06.io.spdk:disk1", "b")
        );
        for text in [
            r#"{"nbd_device":"/dev/nbd0","bdev_name":"b"}"#,
            r#"{"ublk_device":"/dev/ublkb1","id":1,"queue_depth":128,"num_queues":1,"bdev_name":"b"}"#,
        ] {
            let served: Result<ExportedBdev, _> = serde_json::from_str(text);
            assert_eq!(served.unwrap().bdev_name, "b", "{text}");
        }
    }

    #[test]
    fn a_bdev_is_made_as_its_backing_says() {
        let made = |text: &str| {
            let (method, params) = creation("b", &serde_json::from_str(text).unwrap());
            format!("{method} {params}")
        };
        let zbs = r#"bdev_zbs_create {"file":"p/v_zbs_","name":"b"}"#;
        assert_eq!(made(r#"{"kind":"zbs","path":"p/v"}"#), zbs);
        let aio = r#"bdev_aio_create {"filename":"/f","name":"b"}"#;
        assert_eq!(made(r#"{"kind":"aio","path":"/f"}"#), aio);
        let malloc = r#"bdev_malloc_create {"block_size":4096,"name":"b","num_blocks":512}"#;
        assert_eq!(made(r#"{"kind":"malloc","sizeMib":2,"blockSize":4096}"#), malloc);
        let raw = r#"bdev_null_create {"block_size":512,"name":"b"}"#;
        let text = r#"{"kind":"raw","method":"bdev_null_create","params":{"block_size":512}}"#;
        assert_eq!(made(text), raw);
        assert_eq!(with_end("bdev_null_create", "_resize"), "bdev_null_resize");
    }

    #[test]
    fn the_file_of_a_bdev_is_read_where_it_is_reported() {
        let file = |specific: &str| {
            let text = format!(
                r#"{{"name":"b","block_size":512,"num_blocks":8,"driver_specific":{specific}}}"#
            );
            serde_json::from_str::<Bdev>(&text).unwrap().file
        };
        assert_eq!(file(r#"{"aio":{"filename":"/f"}}"#).as_deref(), Some("/f"));
        assert_eq!(file(r#"{"zbs":{"file":"p/v_zbs_"}}"#).as_deref(), Some("p/v_zbs_"));
        assert_eq!((file("{}"), file(r#"{"x":[1]}"#), file("null")), (None, None, None));
    }
}
