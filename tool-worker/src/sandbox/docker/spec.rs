//! Everything that confines a container, field by field of the engine's API.

use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountType, ResourcesUlimits,
};
use tool_runner::{COMMANDS, RUNNER, WORKSPACE};

use super::super::made_for::{Access, MadeFor, Surroundings};
use super::super::program::LIBRARIES;
use super::super::user::{user_for, user_for_access};
use super::{Docker, LABEL_OWNER, LABEL_WORKER};
use crate::failure::Failure;

/// Memory of a container for a built-in tool, its `/tmp` included. The runner's own limit is lower and speaks first.
const MEMORY_BYTES_MAX: u64 = 384 << 20;
/// Its processes: the init process, the runner, and room for a runner that is tried alone.
const PROCESSES_MAX: u32 = 64;
/// One processor.
const PROCESSOR_MILLI: u32 = 1_000;
/// What it may write into memory, in bytes, and what any container may, in files.
const TMP_BYTES: u64 = 64 << 20;
const TMP_FILES: u32 = 4_096;
const FILE_BYTES_MAX: u64 = 64 << 20;
const FILES_MAX: u64 = 256;
/// Files that a command may have open.
const COMMAND_FILES_MAX: u64 = 1_024;

/// What differs between containers.
struct Kind<'k> {
    image: String,
    command: Vec<String>,
    user: (u32, u32),
    mounts: Vec<Mount>,
    profile: &'k str,
    memory_bytes: u64,
    processes: u32,
    processor_milli: u32,
    tmp_bytes: u64,
    file_bytes: u64,
    open_files: u64,
}

impl Docker {
    /// A container for a purpose, with arguments for the runner.
    pub(super) fn spec(&self, made_for: &MadeFor, arguments: &[&str]) -> Result<ContainerCreateBody, Failure> {
        let mut kind = match made_for {
            MadeFor::Tool(workspace) => self.for_tool(workspace)?,
            MadeFor::Command(surroundings) => self.for_command(surroundings)?,
        };
        kind.command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        Ok(self.container(kind))
    }

    fn for_tool(&self, workspace: &Path) -> Result<Kind<'_>, Failure> {
        Ok(Kind {
            image: self.image.name(),
            command: self.program.command(),
            user: user_for(workspace)?,
            mounts: vec![shown(workspace, WORKSPACE, Access::Read)?],
            profile: &self.profile,
            memory_bytes: MEMORY_BYTES_MAX,
            processes: PROCESSES_MAX,
            processor_milli: PROCESSOR_MILLI,
            tmp_bytes: TMP_BYTES,
            file_bytes: FILE_BYTES_MAX,
            open_files: FILES_MAX,
        })
    }

    fn for_command(&self, surroundings: &Surroundings) -> Result<Kind<'_>, Failure> {
        let Surroundings { workspace, reads, image, limits } = surroundings;
        if let Err(reason) = self.bounded() {
            return Err(Failure::refused(format!("a command cannot be bounded here: {reason}")));
        }
        let mut mounts = Vec::new();
        if let Some((path, access)) = workspace {
            mounts.push(shown(path, WORKSPACE, *access)?);
        }
        match image {
            // An image of its own has its own programs, but not the runner.
            Some(_) => {
                mounts.push(shown(&self.program.file, RUNNER, Access::Read)?);
                for (name, path) in &self.program.libraries {
                    mounts.push(shown(path, &format!("{LIBRARIES}/{name}"), Access::Read)?);
                }
            }
            None => {
                for path in &self.system.shown {
                    mounts.push(shown(path, &path.to_string_lossy(), Access::Read)?);
                }
            }
        }
        for path in reads {
            mounts.push(shown(path, &path.to_string_lossy(), Access::Read)?);
        }
        let mut command = self.program.command();
        command.push(COMMANDS.to_owned());
        command.push(serde_json::to_string(&surroundings.allowance()).expect("numbers only"));
        let bounds = surroundings.bounds();
        Ok(Kind {
            image: image.clone().unwrap_or_else(|| self.command_image.name()),
            command,
            user: workspace
                .as_ref()
                .map_or_else(|| Ok(super::no_workspace_user()), |(path, access)| user_for_access(path, *access))?,
            mounts,
            profile: &self.command_profile,
            memory_bytes: bounds.memory_bytes,
            processes: bounds.processes,
            processor_milli: bounds.processor_milli,
            tmp_bytes: limits.tmp_bytes,
            file_bytes: limits.file_bytes,
            open_files: COMMAND_FILES_MAX,
        })
    }

    fn container(&self, kind: Kind<'_>) -> ContainerCreateBody {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let limit = |name: &str, limit| {
            let limit = Some(number(limit));
            ResourcesUlimits { name: Some(name.to_owned()), soft: limit, hard: limit }
        };
        let tmp = format!("rw,noexec,nosuid,nodev,mode=1777,size={},nr_inodes={TMP_FILES}", kind.tmp_bytes);
        let host = HostConfig {
            network_mode: Some("none".to_owned()),
            readonly_rootfs: Some(true),
            tmpfs: Some([("/tmp".to_owned(), tmp)].into()),
            mounts: Some(kind.mounts),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges:true".to_owned(), format!("seccomp={}", kind.profile)]),
            pids_limit: Some(kind.processes.into()),
            memory: Some(number(kind.memory_bytes)),
            // The same: no swap on top.
            memory_swap: Some(number(kind.memory_bytes)),
            nano_cpus: Some(i64::from(kind.processor_milli) * 1_000_000),
            // No `nproc`: it would count the processes of this user in all containers together.
            ulimits: Some(vec![limit("nofile", kind.open_files), limit("fsize", kind.file_bytes), limit("core", 0)]),
            init: Some(true),
            ipc_mode: Some("none".to_owned()),
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            auto_remove: Some(false),
            runtime: self.runtime.clone(),
            ..HostConfig::default()
        };
        let labels = [(LABEL_WORKER.to_owned(), self.worker.clone()), (LABEL_OWNER.to_owned(), self.owner.label())];
        let (user, group) = kind.user;
        ContainerCreateBody {
            image: Some(kind.image),
            entrypoint: Some(kind.command),
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
        }
    }
}

/// A path of this machine, somewhere in the container.
fn shown(path: &Path, inside: &str, access: Access) -> Result<Mount, Failure> {
    let source = path.to_str().ok_or_else(|| {
        Failure::refused(format!("the Docker engine takes no path that is not UTF-8: {}", path.display()))
    })?;
    Ok(Mount {
        source: Some(source.to_owned()),
        target: Some(inside.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(access == Access::Read),
        // What is mounted below it is not part of it, and would not be read-only on every kernel.
        bind_options: Some(MountBindOptions { non_recursive: Some(true), ..MountBindOptions::default() }),
        ..Mount::default()
    })
}
