//! Engine's form of a container: the body of a create request, and restart policies.

use bollard::models::{
    ContainerCreateBody, DeviceMapping, HostConfig, HostConfigLogConfig, RestartPolicy,
    RestartPolicyNameEnum,
};

use crate::model::container::{ContainerSpec, Isolation, Restarts};

/// Security options of every target.
const SECURITY_OPTIONS: [&str; 2] = ["no-new-privileges", "label=disable"];
/// Log rotation of a target's output: maximum size and number of files.
const LOG_SIZE: &str = "10m";
const LOG_FILES: &str = "3";
/// Log drivers that keep the output of containers in files, which they can rotate.
const BOUNDED_DRIVERS: [&str; 2] = ["json-file", "local"];

/// Restart policy for the engine; for `None` that of targets, which only the agent restarts.
///
/// # Errors
/// Text about a policy that this agent cannot write.
pub(super) fn restart_policy(restarts: Option<&Restarts>) -> Result<RestartPolicy, String> {
    let Some(Restarts { policy, most }) = restarts else { return Ok(never()) };
    let name = policy.parse::<RestartPolicyNameEnum>();
    let name = name.map_err(|why| format!("the restart policy '{policy}' is unknown: {why}"))?;
    Ok(RestartPolicy { name: Some(name), maximum_retry_count: *most })
}

fn never() -> RestartPolicy {
    RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }
}

/// Body of a request for the container `spec` of an engine with the log driver `log_driver`, if that is known.
pub(super) fn create_body(spec: &ContainerSpec, log_driver: Option<&str>) -> ContainerCreateBody {
    let bind = |(path, read_only): &(String, bool)| {
        format!("{path}:{path}{}", if *read_only { ":ro" } else { "" })
    };
    let device = |path: &String| DeviceMapping {
        path_on_host: Some(path.clone()),
        path_in_container: Some(path.clone()),
        cgroup_permissions: Some("rwm".to_string()),
    };
    let host = HostConfig {
        network_mode: Some("host".to_string()),
        binds: Some(spec.binds.iter().map(bind).collect()),
        devices: Some(spec.devices.iter().map(device).collect()),
        cap_drop: (!spec.privileged).then(|| vec!["ALL".to_string()]),
        cap_add: Some(spec.capabilities.clone()),
        privileged: Some(spec.privileged),
        cpuset_cpus: spec.cpus.clone(),
        cpuset_mems: spec.memory_nodes.clone(),
        cgroup_parent: spec.cgroup_parent.clone(),
        // The engine must not restart a target: it would do so before the target's volumes may be created.
        restart_policy: Some(never()),
        ..spec.isolation.as_ref().map(|it| isolated(it, log_driver)).unwrap_or_default()
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        // An empty entry point overrides the image's own.
        entrypoint: Some(Vec::new()),
        cmd: Some(spec.command.clone()),
        env: Some(spec.env.clone()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// Part of a container's settings that isolates it; packaging/doc/security.md has the reason for each.
fn isolated(isolation: &Isolation, log_driver: Option<&str>) -> HostConfig {
    let options = format!("rw,noexec,nosuid,nodev,size={}m", isolation.tmpfs_mib);
    let tmpfs = isolation.tmpfs.iter().map(|path| (path.clone(), options.clone()));
    // Other drivers refuse these options. Their own settings are the engine's, and a sink that takes nothing must not stop
    // a target that prints.
    let driver = log_driver.unwrap_or("json-file");
    let (typ, options) = match BOUNDED_DRIVERS.contains(&driver) {
        true => (Some(driver), vec![("max-size", LOG_SIZE), ("max-file", LOG_FILES)]),
        false => (None, vec![("mode", "non-blocking")]),
    };
    let options = options.into_iter().map(|(key, value)| (key.to_string(), value.to_string()));
    let log = HostConfigLogConfig { typ: typ.map(str::to_string), config: Some(options.collect()) };
    HostConfig {
        security_opt: Some(SECURITY_OPTIONS.map(str::to_string).to_vec()),
        readonly_rootfs: Some(isolation.read_only_root),
        tmpfs: Some(tmpfs.collect()),
        pids_limit: Some(isolation.pids_limit.into()),
        userns_mode: Some("host".to_string()),
        ipc_mode: Some("private".to_string()),
        log_config: Some(log),
        ..HostConfig::default()
    }
}

#[cfg(test)]
#[path = "container_body_tests.rs"]
mod tests;
