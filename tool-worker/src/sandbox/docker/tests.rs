//! What is asked of an engine before anything is asked to run.

use bollard::models::{Runtime, SystemInfo};

use super::*;

fn engine() -> SystemInfo {
    SystemInfo {
        os_type: Some("linux".to_owned()),
        security_options: Some(vec!["name=seccomp,profile=default".to_owned(), "name=userns".to_owned()]),
        runtimes: Some([("runc".to_owned(), Runtime::default())].into()),
        memory_limit: Some(true),
        pids_limit: Some(false),
        ..SystemInfo::default()
    }
}

#[test]
fn only_what_the_engine_can_do_is_said_to_be_enforced() {
    let enforced = able(&engine(), None).unwrap();
    let named = |name| enforced.contains(&name);
    assert!(named("container") && named("memory-limit") && named("user-namespace"), "{enforced:?}");
    assert!(!named("process-limit") && !named("processor-limit") && !named("apparmor"), "{enforced:?}");
}

#[test]
fn an_engine_that_cannot_confine_is_refused_with_the_reason() {
    let no_seccomp = SystemInfo { security_options: Some(vec![]), ..engine() };
    assert!(able(&no_seccomp, None).unwrap_err().contains("without seccomp"));
    let windows = SystemInfo { os_type: Some("windows".to_owned()), ..engine() };
    assert!(able(&windows, None).unwrap_err().contains("Linux containers"));
    assert_eq!(
        able(&engine(), Some("runsc")).unwrap_err(),
        "the Docker engine does not know the runtime runsc of tools.docker_runtime (it knows runc); \
         install it and name it in /etc/docker/daemon.json"
    );
    assert!(able(&engine(), Some("runc")).is_ok());
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named() {
    let config = Config { docker_socket: "/nonexistent/docker.sock".into(), ..Config::default() };
    let program = Program::find(&config).await.unwrap();
    let found = Docker::find(&config, &program, &Tasks::new()).await;
    assert_eq!(found.err().unwrap(), "there is no Docker engine at /nonexistent/docker.sock");
}
