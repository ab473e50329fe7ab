//! Everything that confines a container, field by field of the engine's API.

use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountType, ResourcesUlimits,
};
use tool_runner::WORKSPACE;

use super::{Docker, LABEL_OWNER, LABEL_WORKER};
use crate::failure::Failure;

/// Memory of a container, its `/tmp` included. The runner's own limit is lower and speaks first.
const MEMORY_BYTES_MAX: i64 = 384 << 20;
/// Processes of a container: the init process, the runner, and room for a runner that is tried alone.
const PROCESSES_MAX: i64 = 64;
/// One processor.
const NANO_CPUS: i64 = 1_000_000_000;
/// What a container may write into memory, in bytes and in files.
const TMP: &str = "rw,noexec,nosuid,nodev,mode=1777,size=64m,nr_inodes=4096";
const FILE_BYTES_MAX: i64 = 64 << 20;
const FILES_MAX: i64 = 256;

impl Docker {
    /// A container around a workspace, as a user, with arguments for the runner.
    pub(super) fn spec(
        &self,
        workspace: &Path,
        (user, group): (u32, u32),
        arguments: &[&str],
    ) -> Result<ContainerCreateBody, Failure> {
        let source = workspace.to_str().ok_or_else(|| {
            Failure::refused(format!("the Docker engine takes no path that is not UTF-8: {}", workspace.display()))
        })?;
        let mut command = self.image.command();
        command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let limit =
            |name: &str, limit| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(limit), hard: Some(limit) };
        let bound = Mount {
            source: Some(source.to_owned()),
            target: Some(WORKSPACE.to_owned()),
            typ: Some(MountType::BIND),
            read_only: Some(true),
            // What is mounted below the workspace is not part of it, and would not be read-only on every kernel.
            bind_options: Some(MountBindOptions { non_recursive: Some(true), ..MountBindOptions::default() }),
            ..Mount::default()
        };
        let host = HostConfig {
            network_mode: Some("none".to_owned()),
            readonly_rootfs: Some(true),
            tmpfs: Some([("/tmp".to_owned(), TMP.to_owned())].into()),
            mounts: Some(vec![bound]),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges:true".to_owned(), format!("seccomp={}", self.profile)]),
            pids_limit: Some(PROCESSES_MAX),
            memory: Some(MEMORY_BYTES_MAX),
            // The same: no swap on top.
            memory_swap: Some(MEMORY_BYTES_MAX),
            nano_cpus: Some(NANO_CPUS),
            // No `nproc`: it would count the processes of this user in all containers together.
            ulimits: Some(vec![limit("nofile", FILES_MAX), limit("fsize", FILE_BYTES_MAX), limit("core", 0)]),
            init: Some(true),
            ipc_mode: Some("none".to_owned()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            auto_remove: Some(false),
            runtime: self.runtime.clone(),
            ..HostConfig::default()
        };
        let labels = [(LABEL_WORKER.to_owned(), self.worker.clone()), (LABEL_OWNER.to_owned(), self.owner.label())];
        Ok(ContainerCreateBody {
            image: Some(self.image.name()),
            entrypoint: Some(command),
            cmd: Some(Vec::new()),
            env: Some(Vec::new()),
            user: Some(format!("{user}:{group}")),
            working_dir: Some(WORKSPACE.to_owned()),
            hostname: Some("box".to_owned()),
            network_disabled: Some(true),
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            open_stdin: Some(true),
            // When the worker dies its end of the stream closes, the runner reads nothing, and the container ends.
            stdin_once: Some(true),
            tty: Some(false),
            labels: Some(labels.into()),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        })
    }
}
