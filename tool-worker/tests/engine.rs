//! The Docker engine that goes away and comes back, and what workers leave that die.

#![expect(unreachable_pub, reason = "the module is shared by several test programs")]
#![expect(dead_code, reason = "the module is shared by several test programs, and each uses a part")]

mod boxes;

use std::path::Path;
use std::time::Duration;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::CreateContainerOptions;
use boxes::{ENGINE, call, config, containers, start, workspace};
use runtime::Tasks;
use schemas::fact::FailureClass;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tool_worker::sandbox::Choice;

/// Passes connections on to the real engine until its tasks end, which ends the connections as well.
fn engine_at(socket: &Path) -> Tasks {
    let _ = std::fs::remove_file(socket);
    let (listener, tasks) = (UnixListener::bind(socket).unwrap(), Tasks::new());
    let passing = tasks.clone();
    tasks.spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            passing.spawn(async move {
                if let Ok(mut there) = UnixStream::connect(ENGINE).await {
                    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                }
            });
        }
    });
    tasks
}

async fn gone(engine: Tasks) {
    engine.stop();
    engine.drained(Duration::ZERO).await;
}

#[tokio::test]
async fn calls_fail_while_the_engine_is_away_and_work_when_it_is_back() {
    let base = workspace();
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("docker.sock");
    let engine = engine_at(&socket);
    let mut config = config(Choice::Docker, base.path());
    config.docker_socket.clone_from(&socket);
    if !Path::new(ENGINE).exists() {
        config.docker_socket = ENGINE.into();
    }
    let Some(executor) = start(&config).await else { return };
    let sandbox = executor.sandbox().unwrap();
    let read = call("read_file", json!({"path": "a.rs", "start": 2}));
    assert_eq!(executor.execute(&read).await.result.as_deref(), Ok("2: fn open_store() {}"));

    let waiting = sandbox.probe(base.path(), "wait", Duration::from_secs(60));
    let leaving = async {
        // Long enough for the call to be in its box; should it not be there yet, it fails as one that comes later does.
        tokio::time::sleep(Duration::from_secs(3)).await;
        gone(engine).await;
    };
    let (lost, ()) = tokio::join!(waiting, leaving);
    let lost = lost.unwrap_err();
    assert_eq!(lost.class, FailureClass::Internal, "{lost}");
    assert!(lost.detail.contains("the Docker engine"), "{lost}");
    assert!(lost.detail.ends_with("try again when it is back"), "{lost}");
    let refused = executor.execute(&read).await.result.unwrap_err();
    assert!(refused.detail.starts_with("the Docker engine does not answer ("), "{refused}");
    assert!(refused.detail.ends_with("nothing runs outside a box; try again when it is back"), "{refused}");

    let engine = engine_at(&socket);
    assert_eq!(executor.execute(&read).await.result.as_deref(), Ok("2: fn open_store() {}"));
    sandbox.close().await;
    assert_eq!(containers(&format!(" {} ", std::process::id())).await, [""; 0]);
    gone(engine).await;
}

#[tokio::test]
async fn containers_of_a_dead_worker_are_removed_at_start() {
    let base = workspace();
    let config = config(Choice::Docker, base.path());
    let Some(executor) = start(&config).await else { return };
    let described = executor.sandbox().unwrap().described().to_owned();
    let image = described.rsplit(' ').nth(1).unwrap().to_owned();
    let engine = bollard::Docker::connect_with_unix(ENGINE, 30, bollard::API_DEFAULT_VERSION).unwrap();
    let engine = engine.negotiate_version().await.unwrap();
    let dead = format!("another-boot pid:[1] {} 1", std::process::id());
    let made = ContainerCreateBody {
        image: Some(image),
        cmd: Some(vec!["/runner".to_owned()]),
        labels: Some([("org.vlinders.owner".to_owned(), dead.clone())].into()),
        ..ContainerCreateBody::default()
    };
    engine.create_container(None::<CreateContainerOptions>, made).await.unwrap();
    assert_eq!(containers(&dead).await.len(), 1);
    let other = start(&config).await.expect("it started before");
    assert_eq!(containers(&dead).await, [""; 0]);
    for executor in [executor, other] {
        executor.sandbox().unwrap().close().await;
    }
}

#[tokio::test]
async fn a_runtime_that_the_engine_does_not_know_is_refused_with_the_reason() {
    let base = workspace();
    let mut config = config(Choice::Docker, base.path());
    if start(&config).await.is_none() {
        return;
    }
    config.docker_runtime = Some("no-such-runtime".to_owned());
    let reason = tool_worker::Sandbox::start(&config).await.err().unwrap();
    assert!(reason.starts_with("the Docker engine does not know the runtime no-such-runtime"), "{reason}");
    assert!(!reason.contains("bubblewrap"), "nothing weaker is taken instead: {reason}");
}
