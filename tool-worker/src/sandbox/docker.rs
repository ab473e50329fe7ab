//! The outer half of the box: one container a call, through the Docker engine's API.
//!
//! The container is made from our own image, which holds the runner and nothing else. It has no network, no capability
//! and no way to gain one, a read-only root, a small `/tmp` in memory, the workspace read-only, and limits of memory,
//! processes and processor; the system calls it may make are listed. The engine keeps no log of it. A container is used
//! once and removed by force, which ends everything in it.

mod container;
mod image;
mod orphans;
mod spec;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::models::SystemInfo;
use runtime::Tasks;
use tool_runner::{NOBODY, system_calls};

use super::made_for::MadeFor;
use super::program::Program;
use super::running::Running;
use super::system::System;
use crate::config::Config;
use crate::failure::Failure;
pub(super) use container::Container;
use container::Containers;
pub(super) use container::cut_off;
use orphans::Owner;

/// How long the engine may take to say that it is there.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the engine may take for one request; making a container takes a second on a busy machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Label of everything made here, in the engine's own namespace of names: which worker made it.
const LABEL_WORKER: &str = "org.vlinders.worker";
/// Label that says which process that worker is.
const LABEL_OWNER: &str = "org.vlinders.owner";

/// How to make containers.
pub(crate) struct Docker {
    engine: bollard::Docker,
    containers: Arc<Containers>,
    program: Program,
    system: System,
    image: image::Image,
    profile: String,
    command_image: image::Image,
    command_profile: String,
    runtime: Option<String>,
    /// Told to people: versions.
    described: String,
    enforced: Vec<&'static str>,
    made: AtomicU64,
    worker: String,
    owner: Owner,
}

impl Docker {
    /// Finds the engine, checks that it can confine, and makes the image. The reason of a failure says what to do.
    pub(crate) async fn find(config: &Config, program: &Program, tasks: &Tasks) -> Result<Self, String> {
        let socket = config.docker_socket.display().to_string();
        let connected =
            bollard::Docker::connect_with_unix(&socket, REQUEST_TIMEOUT.as_secs(), bollard::API_DEFAULT_VERSION);
        let engine = connected.map_err(|error| no_engine(&socket, &error))?;
        let greeting = async {
            let engine = engine.negotiate_version().await?;
            let (info, version) = tokio::try_join!(engine.info(), engine.version())?;
            Ok((engine, info, version))
        };
        let answered = tokio::time::timeout(GREETING_TIMEOUT, greeting).await;
        let answered = answered
            .map_err(|_| format!("the Docker engine at {socket} did not answer in {} s", GREETING_TIMEOUT.as_secs()))?;
        let (engine, info, version) = answered.map_err(|error| no_engine(&socket, &error))?;
        let enforced = able(&info, config.docker_runtime.as_deref())?;
        let image = image::Image::of(program)?;
        image.ensure(&engine).await?;
        let system = System::find();
        let command_image = image::Image::for_commands(program, &system)?;
        let components = version.components.unwrap_or_default();
        let runc = components.iter().find(|component| component.name == "runc");
        let described = format!(
            "engine {}, {} {}, images {} {}",
            version.version.unwrap_or_default(),
            config.docker_runtime.as_deref().unwrap_or("runc"),
            runc.filter(|_| config.docker_runtime.is_none()).map_or("", |runc| runc.version.as_str()),
            image.name(),
            command_image.name()
        );
        let worker = runtime::clock::process_token();
        let containers = Containers::start(engine.clone(), tasks);
        let docker = Self {
            engine,
            containers,
            program: program.clone(),
            system,
            image,
            profile: system_calls::profile(),
            command_image,
            command_profile: system_calls::profile_for_commands(),
            runtime: config.docker_runtime.clone(),
            described,
            enforced,
            made: AtomicU64::new(0),
            worker,
            owner: Owner::this(),
        };
        docker.sweep().await;
        Ok(docker)
    }

    /// What containers enforce, whatever the runner adds.
    pub(crate) fn enforced(&self) -> &[&'static str] {
        &self.enforced
    }

    /// Versions, for people.
    pub(crate) fn described(&self) -> &str {
        &self.described
    }

    /// Whether a command and all its processes can be bounded; why not.
    pub(crate) fn bounded(&self) -> Result<(), &str> {
        match ["memory-limit", "process-limit"].iter().find(|limit| !self.enforced.contains(limit)) {
            None => Ok(()),
            Some(_) => Err("the Docker engine does not bound memory and processes"),
        }
    }

    /// Makes and starts a container, which then waits for its call.
    pub(crate) async fn prepare(&self, made_for: &MadeFor, arguments: &[&str]) -> Result<Running, Failure> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("vlinders-{}-{number}", self.worker);
        let spec = self.spec(made_for, arguments)?;
        let started = self.containers.start_one(&name, spec.clone()).await;
        let started = match started {
            // Somebody has tidied the engine up; and the image for commands is made when it is first needed.
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
                let image = match made_for {
                    MadeFor::Tool(_) => &self.image,
                    MadeFor::Command(surroundings) => {
                        if let Some(image) = &surroundings.image {
                            return Err(Failure::refused(format!("the Docker engine has no image {image}")));
                        }
                        &self.command_image
                    }
                };
                image.ensure(&self.engine).await.map_err(Failure::internal)?;
                self.containers.start_one(&name, spec).await
            }
            started => started,
        };
        started.map_err(|error| not_started(&error))
    }

    /// The id of an image that the engine has, so that what is run is what was looked at; and the variables it sets.
    pub(crate) async fn image(&self, name: &str) -> Result<(String, Vec<String>), String> {
        match self.engine.inspect_image(name).await {
            Ok(found) => {
                let id = found.id.ok_or_else(|| format!("the Docker engine does not name the image {name}"))?;
                Ok((id, found.config.and_then(|config| config.env).unwrap_or_default()))
            }
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
                Err(format!("the Docker engine has no image {name}; nothing is pulled by itself: docker pull {name}"))
            }
            Err(error) => Err(format!("the Docker engine does not answer: {}", sentence(&error))),
        }
    }

    /// Removes containers whose worker is gone, and any of ours that nobody holds.
    pub(crate) async fn sweep(&self) {
        if let Err(error) = self.containers.sweep(&self.worker, &self.owner).await {
            tracing::warn!(%error, "left-over containers were not looked for");
        }
    }

    /// Waits until the containers that were given up are gone.
    pub(crate) async fn close(&self) {
        self.containers.close().await;
        self.sweep().await;
    }
}

/// What the engine can enforce; why it cannot be used when it lacks what matters.
fn able(info: &SystemInfo, runtime: Option<&str>) -> Result<Vec<&'static str>, String> {
    if info.os_type.as_deref() != Some("linux") {
        return Err("the Docker engine does not run Linux containers".to_owned());
    }
    let options = info.security_options.as_deref().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option.split(',').any(|part| part == name));
    if !has("name=seccomp") {
        return Err("the Docker engine was built without seccomp, so its containers are no sandbox".to_owned());
    }
    if let Some(wanted) = runtime {
        let known: Vec<&str> = info.runtimes.iter().flatten().map(|(name, _)| name.as_str()).collect();
        if !known.contains(&wanted) {
            return Err(format!(
                "the Docker engine does not know the runtime {wanted} of tools.docker_runtime (it knows {}); \
                 install it and name it in /etc/docker/daemon.json",
                known.join(", ")
            ));
        }
    }
    let mut enforced = vec!["container", "pid-namespace", "no-network", "no-capabilities", "read-only-root"];
    let optional = [
        (has("name=userns") || has("name=rootless"), "user-namespace"),
        (info.memory_limit == Some(true), "memory-limit"),
        (info.pids_limit == Some(true), "process-limit"),
        (info.cpu_cfs_quota == Some(true), "processor-limit"),
        (has("name=apparmor"), "apparmor"),
    ];
    enforced.extend(optional.iter().filter(|(there, _)| *there).map(|(_, name)| *name));
    Ok(enforced)
}

/// Whom a container without a workspace is.
fn no_workspace_user() -> (u32, u32) {
    let own = rustix::process::geteuid();
    if own.is_root() { (NOBODY, NOBODY) } else { (own.as_raw(), rustix::process::getegid().as_raw()) }
}

fn no_engine(socket: &str, error: &bollard::errors::Error) -> String {
    match io_kind(error) {
        Some(std::io::ErrorKind::PermissionDenied) => {
            format!("this user may not use the Docker engine at {socket}: add it to the group of the socket")
        }
        _ if !Path::new(socket).exists() => format!("there is no Docker engine at {socket}"),
        _ => format!("the Docker engine at {socket} does not answer: {}", sentence(error)),
    }
}

fn not_started(error: &bollard::errors::Error) -> Failure {
    match error {
        bollard::errors::Error::DockerResponseServerError { message, .. } => {
            Failure::internal(format!("the Docker engine did not start a box: {message}"))
        }
        error => Failure::internal(format!(
            "the Docker engine does not answer ({}), and nothing runs outside a box; try again when it is back",
            sentence(error)
        )),
    }
}

/// The innermost reason, which is the one that says something.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests;
