//! One container from its making to its removal.
//!
//! Whoever holds a container gives it up by dropping it; a task then removes it by force. The name is known before the
//! container is, so that also one that was given up while it was being made is found.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker as Engine;
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptions, ListContainersOptions, RemoveContainerOptions,
    WaitContainerOptions,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use runtime::{Tasks, clock};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::super::Trouble;
use super::super::running::{Hold, Piece, Running};
use super::super::spawner::Ended;
use super::orphans::{Owner, is_orphan};
use super::{LABEL_OWNER, LABEL_WORKER, sentence};

/// Containers being made at once: an engine makes each with several processes, and more at once are not faster.
const STARTS_AT_ONCE: usize = 4;
/// Containers being removed at once.
const REMOVALS_AT_ONCE: usize = 4;
/// How long the engine may take to notice that a container has ended.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the shutdown waits for removals; what is left then is an orphan that the next worker removes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// The containers of this worker.
pub(super) struct Containers {
    engine: Engine,
    /// Names of those that somebody holds or that are being removed.
    held: Mutex<BTreeSet<String>>,
    /// Names of those that were given up. Each is held once and given up once, so there are never more than containers.
    given_up: mpsc::UnboundedSender<String>,
    starts: Semaphore,
    gone: tokio::sync::Notify,
    tasks: Tasks,
}

impl Containers {
    /// Nothing yet; a task removes what is given up for as long as anybody can give something up.
    pub(super) fn start(engine: Engine, tasks: &Tasks) -> Arc<Self> {
        let (given_up, mut names) = mpsc::unbounded_channel::<String>();
        let containers = Arc::new(Self {
            engine,
            held: Mutex::default(),
            given_up,
            starts: Semaphore::new(STARTS_AT_ONCE),
            gone: tokio::sync::Notify::new(),
            tasks: tasks.clone(),
        });
        let remover = Arc::downgrade(&containers);
        tasks.spawn_background(async move {
            let names = futures::stream::poll_fn(move |context| names.poll_recv(context));
            let remove = |name: String| {
                let containers = remover.upgrade();
                async move {
                    if let Some(containers) = containers {
                        containers.remove(&name).await;
                    }
                }
            };
            names.for_each_concurrent(REMOVALS_AT_ONCE, remove).await;
        });
        containers
    }

    /// Makes and starts one. Whoever stops waiting gives it up: what the engine has begun to make is made, and removed.
    pub(super) async fn start_one(self: &Arc<Self>, name: &str, spec: ContainerCreateBody) -> Result<Running, Error> {
        self.held().insert(name.to_owned());
        let container = Container { name: name.to_owned(), containers: self.clone() };
        let (made, making) = oneshot::channel();
        self.tasks.spawn_background(async move {
            // Nobody need wait any more, and then it is dropped here.
            let _ = made.send(Box::pin(container.started(spec)).await);
        });
        making.await.unwrap_or_else(|_| Err(Error::from(std::io::Error::other("the worker is shutting down"))))
    }

    async fn remove(&self, name: &str) {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match self.engine.remove_container(name, Some(options)).await {
            // Gone already, or about to be.
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => {}
            Err(error) => tracing::warn!(container = name, error = sentence(&error), "a container was not removed"),
        }
        self.held().remove(name);
        self.gone.notify_waiters();
    }

    /// Removes containers whose worker is gone, and those of this worker that nobody holds.
    pub(super) async fn sweep(&self, worker: &str, owner: &Owner) -> Result<(), Error> {
        let ours = [("label".to_owned(), vec![LABEL_OWNER.to_owned()])].into();
        let options = ListContainersOptions { all: true, filters: Some(ours), ..ListContainersOptions::default() };
        let now = clock::now() / 1_000_000_000;
        for found in self.engine.list_containers(Some(options)).await? {
            let label =
                |name: &str| found.labels.as_ref().and_then(|labels| labels.get(name)).cloned().unwrap_or_default();
            let name = found.names.iter().flatten().next().map(|name| name.trim_start_matches('/').to_owned());
            let Some(name) = name.or_else(|| found.id.clone()) else { continue };
            let age = Duration::from_secs(u64::try_from(now - found.created.unwrap_or(now)).unwrap_or(0));
            let orphan = if label(LABEL_WORKER) == worker {
                !self.held().contains(&name)
            } else {
                is_orphan(owner.sees(&label(LABEL_OWNER)), age)
            };
            if orphan {
                tracing::info!(container = name, "removing a container whose worker is gone");
                self.remove(&name).await;
            }
        }
        Ok(())
    }

    /// Waits until everything that was given up is removed.
    pub(super) async fn close(&self) {
        let removed = async {
            loop {
                let gone = self.gone.notified();
                tokio::pin!(gone);
                gone.as_mut().enable();
                if self.held().is_empty() {
                    return;
                }
                gone.await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, removed).await.is_err() {
            tracing::warn!("some containers were not removed in time; the next worker removes them");
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.held.lock().expect("no panic while the lock is held")
    }
}

/// A container that somebody holds.
pub(in super::super) struct Container {
    name: String,
    containers: Arc<Containers>,
}

impl Drop for Container {
    fn drop(&mut self) {
        // Without a receiver the program is at its end, and the next worker sweeps.
        let _ = self.containers.given_up.send(std::mem::take(&mut self.name));
    }
}

/// What a container writes, until the engine has nothing more of it.
fn pieces(output: impl futures::Stream<Item = Result<LogOutput, Error>> + Send + 'static) -> BoxStream<'static, Piece> {
    let whole = output.take_while(|piece| std::future::ready(piece.is_ok())).filter_map(|piece| async { piece.ok() });
    whole
        .map(|piece| match piece {
            LogOutput::StdErr { message } => Piece::Complaint(message),
            LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
                Piece::Output(message)
            }
        })
        .boxed()
}

impl Container {
    async fn started(self, spec: ContainerCreateBody) -> Result<Running, Error> {
        let containers = self.containers.clone();
        let _turn = containers.starts.acquire().await.expect("the semaphore is never closed");
        let engine = &containers.engine;
        let options = CreateContainerOptions { name: Some(self.name.clone()), ..CreateContainerOptions::default() };
        let created = Box::pin(engine.create_container(Some(options), spec)).await?;
        for warning in created.warnings {
            tracing::warn!(warning, "the Docker engine cannot do all that was asked for");
        }
        // Before the start, so that nothing it says is missed.
        let streams = AttachContainerOptionsBuilder::new().stream(true).stdin(true).stdout(true).stderr(true).build();
        let AttachContainerResults { output, input } = engine.attach_container(&self.name, Some(streams)).await?;
        engine.start_container(&self.name, None).await?;
        Ok(Running { input, pieces: pieces(output), hold: Hold::Container(self) })
    }

    /// How it ended, which must be near: its output has. Asks the engine, if that is there.
    pub(in super::super) async fn ended(&self) -> Result<Ended, Trouble> {
        let lost = |why: &str| Err(Trouble::Lost(cut_off(why)));
        let engine = &self.containers.engine;
        let ended = async {
            // The output may end a moment before the engine knows the exit.
            let _: Vec<_> = engine.wait_container(&self.name, None::<WaitContainerOptions>).collect().await;
            engine.inspect_container(&self.name, None).await
        };
        let state = match tokio::time::timeout(END_TIMEOUT, ended).await {
            Err(_) => return lost("it does not say how the container ended"),
            Ok(Err(Error::DockerResponseServerError { status_code: 404, .. })) => return lost("the container is gone"),
            Ok(Err(error)) => return lost(&sentence(&error)),
            Ok(Ok(found)) => found.state.unwrap_or_default(),
        };
        let code = state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
        Ok(Ended::Code { code, out_of_memory: state.oom_killed == Some(true) })
    }
}

/// What is said of a call whose container was lost.
pub(in super::super) fn cut_off(why: &str) -> String {
    format!("the Docker engine went away during the call ({why}); try again when it is back")
}
