//! Starts that cannot succeed: each ends with the right exit code, says what to do, and leaves nothing half-done.

use std::path::{Path, PathBuf};

use anyhow::Context;
use pipeline_tests::{Ended, PATIENCE, System, Up, bare_nats, free_port, processes_about, repository, run};
use schemas::permission::User;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// It ended with this code and said all of this.
fn said(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    let last = ended.stderr.lines().rfind(|line| line.starts_with("vlinders: ")).unwrap_or_default();
    let message = &ended.stderr[ended.stderr.find(last).unwrap_or_default()..];
    for part in parts {
        assert!(message.contains(part), "{part:?} is missing in {message:?}");
    }
    assert!(!ended.stdout.contains("\"ready\""), "{ended:?}");
}

/// `vlinders up` with data in `data`, on a free port unless it is told another.
async fn up(data: &Path, arguments: &[&str]) -> anyhow::Result<Ended> {
    let data = data.to_str().context("temporary directories have plain names")?;
    let http: &[&str] = if arguments.contains(&"--http") { &[] } else { &["--http", "127.0.0.1:0"] };
    run(&[&["up", "--json", "--data", data], http, arguments].concat()).await
}

/// Nothing runs on, and nobody is led there.
fn nothing_left(data: &Path) -> anyhow::Result<()> {
    assert_eq!(processes_about(data)?, [""; 0], "a process was left behind");
    assert!(!data.join("endpoint.json").exists(), "clients are led to a process that is gone");
    Ok(())
}

/// A copy of the shipped model that can be damaged.
fn copied_model(to: &Path) -> anyhow::Result<PathBuf> {
    let model = to.join("damaged");
    std::fs::create_dir_all(&model)?;
    for entry in std::fs::read_dir(repository().join("inference-worker/models/tiny"))?.filter_map(Result::ok) {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), model.join(entry.file_name()))?;
        }
    }
    Ok(model)
}

#[tokio::test]
async fn a_damaged_model_is_named_with_its_file_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let model = copied_model(directory.path())?;
    let path = model.to_str().context("plain")?.to_owned();

    std::fs::rename(model.join("tokenizer.json"), directory.path().join("kept"))?;
    said(
        &up(&data, &["--models", &path]).await?,
        1,
        &["load the model in", "tokenizer.json", "complete the directory"],
    );
    nothing_left(&data)?;

    std::fs::rename(directory.path().join("kept"), model.join("tokenizer.json"))?;
    let weights = std::fs::File::options().write(true).open(model.join("model.safetensors"))?;
    weights.set_len(weights.metadata()?.len() - 1)?;
    said(&up(&data, &["--models", &path]).await?, 1, &["model.safetensors: truncated", "--models"]);
    nothing_left(&data)?;

    let nowhere = directory.path().join("nowhere").display().to_string();
    said(&up(&data, &["--models", &nowhere]).await?, 2, &["read the model directory", "nowhere"]);
    nothing_left(&data)
}

#[tokio::test]
async fn a_mistake_in_the_configuration_or_a_taken_port_is_named() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let config = directory.path().join("config.toml");
    let file = config.to_str().context("plain")?;
    for (text, parts) in [
        ("[gateway]\nhtpp = \"127.0.0.1:0\"\n", ["[gateway]", "config.toml", "`htpp`", "`http`"]),
        ("[gatway]\nhttp = \"127.0.0.1:0\"\n", ["[gatway]", "config.toml", "sections are", "gateway"]),
        ("[gateway\n", ["config.toml", "line 1", "gateway", "]"]),
    ] {
        std::fs::write(&config, text)?;
        said(&up(&data, &["--config", file]).await?, 2, &parts);
        nothing_left(&data)?;
    }

    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    said(&up(&data, &["--http", &address]).await?, 1, &[&address, "choose another port with --http"]);
    nothing_left(&data)?;

    let nowhere = directory.path().join("nowhere").display().to_string();
    said(&up(&data, &["--workspace", &nowhere]).await?, 1, &["workspace root", "nowhere", "cannot be used"]);
    nothing_left(&data)
}

#[tokio::test]
async fn a_second_up_on_the_same_data_leaves_the_first_alone() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let first = Up::start(&data).await?;
    said(&up(&data, &[]).await?, 2, &["another vlinders runs with data in", "choose another --data"]);
    assert!(data.join("endpoint.json").is_file(), "clients still find the first");
    let http = first.ready["http"].as_str().context("an address")?;
    assert_eq!(reqwest::get(format!("{http}/health")).await?.status(), 200);
    first.kill().await?;
    let gone = async {
        while !processes_about(&data)?.is_empty() {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, gone).await.context("the private nats-server outlives its parent")??;

    // A start that fails takes away what a kill left, too.
    assert!(data.join("endpoint.json").exists(), "a kill leaves it");
    let nowhere = directory.path().join("nowhere").display().to_string();
    said(&up(&data, &["--workspace", &nowhere]).await?, 1, &["workspace root"]);
    nothing_left(&data)?;

    // What a kill leaves is taken over: the same data starts again, and ends in order.
    let second = Up::start(&data).await?;
    assert_eq!(second.stop().await?, Some(0));
    nothing_left(&data)
}

/// Speaks as much of the protocol as a client needs to learn the server's version.
async fn old_server(listener: tokio::net::TcpListener) -> anyhow::Result<()> {
    let serve = |mut connection: tokio::net::TcpStream| async move {
        let info = r#"{"server_id":"OLD","version":"2.9.0","proto":1,"host":"127.0.0.1","port":4222,"headers":true,"max_payload":1048576,"jetstream":true}"#;
        connection.write_all(format!("INFO {info}\r\n").as_bytes()).await?;
        let (reading, mut writing) = connection.split();
        let mut lines = BufReader::new(reading).lines();
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("PING") {
                writing.write_all(b"PONG\r\n").await?;
            }
        }
        anyhow::Ok(())
    };
    let mut served = futures::stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => served.push(serve(accepted?.0)),
            Some(_) = futures::StreamExt::next(&mut served) => {}
        }
    }
}

#[tokio::test]
async fn a_nats_server_that_does_not_do_is_named_with_what_it_lacks() -> anyhow::Result<()> {
    let port = free_port()?;
    let url = format!("nats://127.0.0.1:{port}");
    let orchestrator = ["orchestrator", "--json", "--nats", &url];
    said(&run(&orchestrator).await?, 1, &[&url, "is nats-server running there", "nats-server -js"]);

    let server = bare_nats(port, &[]).await?;
    said(&run(&orchestrator).await?, 1, &["no JetStream", "start it with `-js`"]);
    drop(server);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("nats://{}", listener.local_addr()?);
    let arguments = ["orchestrator", "--json", "--nats", &url];
    let ended = tokio::select! {
        ended = run(&arguments) => ended?,
        served = old_server(listener) => return served,
    };
    said(&ended, 1, &["nats-server 2.9.0 is too old", "2.12 or newer"]);
    Ok(())
}

#[tokio::test]
async fn a_stream_of_another_nature_is_refused_and_left_as_it_is() -> anyhow::Result<()> {
    let mut system = System::new()?;
    system.start_nats().await?;
    let context = async_nats::jetstream::new(system.nats().await?);
    let wrong = async_nats::jetstream::stream::Config {
        name: "VL_LOG_3".to_owned(),
        subjects: vec!["vl.v1.log.3.>".to_owned()],
        storage: async_nats::jetstream::stream::StorageType::Memory,
        ..Default::default()
    };
    let mut made = context.create_stream(wrong).await?;
    let before = made.info().await?.config.clone();
    let ended = system.on_nats(User::Orchestrator, &["orchestrator", "--json"]).await?;
    said(&ended, 1, &["stream VL_LOG_3 exists and differs", "storage: needs File, is Memory", "nothing was changed"]);
    assert_eq!(made.info().await?.config, before);
    Ok(())
}
