//! The NATS configuration that is deployed: the whole pipeline works under it with every role as its own user, and no user
//! may do more than its part. Also TLS, and three nodes.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::{Client, ConnectOptions, Event};
use futures::StreamExt;
use pipeline_tests::{Deployed, PATIENCE, System, free_port, nats_server};
use runtime::bus::{self, Bus};
use runtime::config::Secret;
use schemas::permission::User;
use schemas::wire::encode;
use schemas::{FactBody, subject};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// A refusal comes within milliseconds; what is allowed says nothing, so it is waited for no longer.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

/// A plain connection as one of the server's users, and what the server refuses it.
struct As {
    client: Client,
    refused: mpsc::UnboundedReceiver<String>,
}

impl As {
    async fn user(system: &System, name: &str) -> anyhow::Result<Self> {
        let deployed = system.deployed.as_ref().context("NATS is deployed")?;
        let seed = std::fs::read_to_string(deployed.seed(name))?;
        let (told, refused) = mpsc::unbounded_channel();
        let options = ConnectOptions::with_nkey(seed.trim().to_owned()).event_callback(move |event| {
            let told = told.clone();
            async move {
                if let Event::ServerError(error) = event {
                    let _ = told.send(error.to_string());
                }
            }
        });
        let options = match name {
            "client" => options,
            role => options.custom_inbox_prefix(format!("_INBOX_{role}")),
        };
        Ok(Self { client: options.connect(system.nats_url()).await?, refused })
    }

    async fn may_not_publish(&mut self, subject: &str) -> anyhow::Result<()> {
        self.client.publish(subject.to_owned(), "x".into()).await?;
        self.is_refused("publish", subject).await
    }

    async fn may_not_subscribe(&mut self, subject: &str) -> anyhow::Result<()> {
        let _kept = self.client.subscribe(subject.to_owned()).await?;
        self.is_refused("subscription", subject).await
    }

    async fn is_refused(&mut self, what: &str, subject: &str) -> anyhow::Result<()> {
        self.client.flush().await?;
        let told = tokio::time::timeout(REFUSED_WITHIN, self.refused.recv()).await;
        let told = told.with_context(|| format!("nobody refused a {what} of {subject}"))?.context("connected")?;
        let told = told.to_lowercase();
        ensure!(told.contains("permissions violation") && told.contains(what), "{subject}: {told}");
        ensure!(told.contains(&subject.to_lowercase()), "{subject}: {told}");
        Ok(())
    }
}

#[tokio::test]
async fn the_pipeline_works_with_every_role_as_its_own_user() -> anyhow::Result<()> {
    let mut system = System::start_deployed().await?;
    let question = json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?",
        "workspace": system.workspace()});
    let (status, answer) = system.ask("/internal/agent", &question).await?;
    ensure!(status == 200, "{status} {answer}");
    let exec = answer["execution_id"].as_str().context("an execution")?.parse()?;
    system.prove(exec).await?;
    // One worker takes over from another as users of the same name.
    system.kill_role("inference-worker").await?;
    system.start_role("inference-worker").await?;
    let (status, answer) =
        system.ask("/internal/chat", &json!({"messages": [{"role": "user", "content": "hello"}]})).await?;
    ensure!(status == 200, "{status} {answer}");
    let indexed = json!({"workspace": system.workspace(), "deadline_ms": 60_000});
    let (status, answer) = system.ask("/internal/index", &indexed).await?;
    ensure!(status == 200, "{status} {answer}");
    for tool in [
        json!({"tool_name": "semantic_search", "arguments": {"query": "signs of life"}}),
        json!({"tool_name": "run_command", "arguments": {"command": ["true"]}}),
    ] {
        let mut call = tool;
        call["workspace"] = json!(system.workspace());
        let (status, answer) = system.ask("/internal/tools/execute", &call).await?;
        ensure!(status == 200, "{status} {answer}");
    }
    let agents = system.get("/internal/agents").send().await?;
    ensure!(agents.status().is_success(), "{}", agents.text().await?);
    // Nobody was refused anything on the way.
    let refused: Vec<String> = system.log().lines().filter(|l| l.contains("NATS refuses")).map(str::to_owned).collect();
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}

#[tokio::test]
async fn a_plain_client_submits_and_reads_and_does_nothing_else() -> anyhow::Result<()> {
    let system = System::start_deployed().await?;
    let mut client = As::user(&system, "client").await?;
    let exec = runtime::clock::execution_id();
    let mut fact = system.request(exec, "hello", &[]);
    let FactBody::ExecutionSubmitted(request) = &mut fact.body else { unreachable!("it is a request") };
    request.reply = Some(format!("vl.v1.reply.{exec}"));
    let mut ends = client.client.subscribe(format!("vl.v1.reply.{exec}")).await?;
    let mut tokens = client.client.subscribe(subject::tokens_all(exec)).await?;
    let mut seen = client.client.subscribe(format!("vl.v1.seen.*.{exec}.>")).await?;
    client.client.flush().await?;
    let stored = client.client.request(format!("vl.v1.submit.{exec}"), encode(&fact).into()).await?;
    let stored: Value = serde_json::from_slice(&stored.payload)?;
    assert_eq!(stored["stream"], json!(subject::log_stream(exec.partition())), "{stored}");
    let end = tokio::time::timeout(PATIENCE, ends.next()).await.context("no end came")?.context("connected")?;
    let end: Value = serde_json::from_slice(&end.payload)?;
    assert_eq!((&end["execution_id"], &end["status"]), (&json!(exec.to_string()), &json!("completed")), "{end}");
    let first = tokio::time::timeout(PATIENCE, tokens.next()).await.context("no token came")?;
    assert!(first.is_some() && seen.next().await.is_some());
    system.prove(exec).await?;

    for subject in [
        subject::fact(exec),
        subject::decision(exec),
        subject::inference_job("tiny", exec),
        subject::cancel(exec),
        "$JS.API.STREAM.LIST".to_owned(),
        "$KV.vl_config.agent".to_owned(),
    ] {
        client.may_not_publish(&subject).await?;
    }
    for subject in ["vl.v1.log.>", "vl.v1.job.>", ">", "vl.v1.rpc.embed"] {
        client.may_not_subscribe(subject).await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_role_is_refused_what_is_not_its_part() -> anyhow::Result<()> {
    let mut system = System::new()?;
    system.deploy()?;
    system.start_nats().await?;
    let exec = runtime::clock::execution_id();
    let log = subject::log_stream(exec.partition());
    for worker in ["inference-worker", "tool-worker", "analysis-worker"] {
        let mut worker = As::user(&system, worker).await?;
        worker.may_not_publish(&subject::decision(exec)).await?;
        worker.may_not_publish(&subject::inference_job("tiny", exec)).await?;
        worker.may_not_publish("$KV.vl_snapshots.3.x").await?;
        worker.may_not_publish(&format!("$JS.API.CONSUMER.CREATE.{log}.spy")).await?;
        worker.may_not_publish("$JS.API.STREAM.DELETE.VL_TOOL").await?;
        for others in ["_INBOX_gateway.>", "_INBOX.>", "vl.v1.log.>", "vl.v1.seen.>", "vl.v1.tok.>", ">"] {
            worker.may_not_subscribe(others).await?;
        }
    }
    let mut tools = As::user(&system, "tool-worker").await?;
    tools.may_not_publish("$JS.API.CONSUMER.MSG.NEXT.VL_INFER.pool-tiny").await?;
    tools.may_not_publish(&format!("vl.v1.tok.{exec}.1-infer-0")).await?;
    tools.may_not_subscribe("vl.v1.rpc.embed").await?;
    let mut gateway = As::user(&system, "gateway").await?;
    gateway.may_not_publish(&subject::decision(exec)).await?;
    gateway.may_not_publish(&format!("$JS.API.STREAM.MSG.DELETE.{log}")).await?;
    gateway.may_not_subscribe("_INBOX_orchestrator.>").await?;
    let mut orchestrator = As::user(&system, "orchestrator").await?;
    for verb in ["DELETE", "PURGE", "UPDATE"] {
        orchestrator.may_not_publish(&format!("$JS.API.STREAM.{verb}.{log}")).await?;
    }
    let mut auditor = As::user(&system, "auditor").await?;
    auditor.may_not_publish(&subject::fact(exec)).await?;

    for wrong in [
        bus::Config::default(),
        bus::Config {
            user: Some("gateway".into()),
            password: Some(Secret::new("guessed".into())),
            ..bus::Config::default()
        },
    ] {
        let error = Bus::connect(&bus::Config { url: system.nats_url(), ..wrong }, "nobody").await.err();
        let error = error.context("nobody comes in without a key")?.to_string().to_lowercase();
        assert!(error.contains("authorization violation"), "{error}");
    }
    assert_eq!(User::ALL.map(User::name).len(), 6, "a new user needs its refusals here");
    Ok(())
}

/// A directory with the certificate of an authority and one signed by it, for 127.0.0.1, under the names of `tls.conf`.
fn certificates(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    let authority_key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(directory.join("ca.crt"), authority.self_signed(&authority_key)?.pem())?;
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
    std::fs::write(directory.join("tls.crt"), certificate.pem())?;
    std::fs::write(directory.join("tls.key"), key.serialize_pem())?;
    Ok(())
}

/// Starts a nats-server with a deployed configuration file and waits for its port.
async fn server(directory: &Path, file: &str, name: &str, port: u16) -> anyhow::Result<Child> {
    let log = std::fs::File::create(directory.join("nats.log"))?;
    let child = Command::new(nats_server()?)
        .arg("-c")
        .arg(directory.join(file))
        .env("VL_NATS_NAME", name)
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let open = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    let told = || std::fs::read_to_string(directory.join("nats.log")).unwrap_or_default();
    tokio::time::timeout(PATIENCE, open)
        .await
        .with_context(|| format!("nats-server did not open its port:\n{}", told()))?;
    Ok(child)
}

/// The orchestrator's settings for these servers, with the certificates in `tls`.
fn orchestrator(deployed: &Deployed, url: String, tls: &Path, replicas: usize) -> bus::Config {
    bus::Config {
        url,
        nkey_file: Some(deployed.seed("orchestrator")),
        inbox_prefix: Some("_INBOX_orchestrator".into()),
        tls: true,
        ca_file: Some(tls.join("ca.crt")),
        certificate_file: Some(tls.join("tls.crt")),
        key_file: Some(tls.join("tls.key")),
        replicas,
        ..bus::Config::default()
    }
}

#[tokio::test]
async fn with_tls_both_sides_show_a_certificate() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (port, tls) = (free_port()?, directory.path().join("tls"));
    certificates(&tls)?;
    let (clients, monitoring) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", free_port()?));
    let store = directory.path().join("store").display().to_string();
    let places = [clients.as_str(), &monitoring, &store, &tls.display().to_string()];
    let deployed = Deployed::lay_out(directory.path(), places)?;
    let _server = server(directory.path(), "nats-tls.conf", "", port).await?;
    let config = orchestrator(&deployed, format!("nats://127.0.0.1:{port}"), &tls, 1);
    bus::provision(&Bus::connect(&config, "orchestrator").await?).await?;

    let without = bus::Config { certificate_file: None, key_file: None, ..config.clone() };
    assert!(Bus::connect(&without, "orchestrator").await.is_err(), "it shows no certificate of its own");
    let stranger = directory.path().join("stranger");
    certificates(&stranger)?;
    let strange = bus::Config { ca_file: Some(stranger.join("ca.crt")), ..config };
    assert!(
        Bus::connect(&strange, "orchestrator").await.is_err(),
        "the server's certificate is signed by nobody it knows"
    );
    Ok(())
}

#[tokio::test]
async fn three_nodes_keep_three_copies_and_do_without_one() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let tls = directory.path().join("tls");
    certificates(&tls)?;
    let ports: Vec<[u16; 3]> =
        (0..3).map(|_| Ok([free_port()?, free_port()?, free_port()?])).collect::<anyhow::Result<_>>()?;
    let mut servers = Vec::new();
    let mut keys = None;
    for (n, [clients, monitoring, routes]) in ports.iter().enumerate() {
        let own = directory.path().join(format!("nats-{n}"));
        let (at, seen, store) = (
            format!("127.0.0.1:{clients}"),
            format!("127.0.0.1:{monitoring}"),
            own.join("store").display().to_string(),
        );
        let deployed = Deployed::lay_out(&own, [&at, &seen, &store, &tls.display().to_string()])?;
        let cluster = std::fs::read_to_string(own.join("cluster.conf"))?;
        let mut others = std::fs::read_to_string(own.join("routes.conf"))?;
        for (other, [.., port]) in ports.iter().enumerate() {
            others = others.replace(&format!("nats-{other}:6222"), &format!("127.0.0.1:{port}"));
        }
        // Nodes of one machine are told apart by their ports alone.
        std::fs::write(own.join("cluster.conf"), cluster.replace("0.0.0.0:6222", &format!("127.0.0.1:{routes}")))?;
        std::fs::write(own.join("routes.conf"), others)?;
        // The nodes know the same keys.
        let first = keys.get_or_insert(deployed);
        if n > 0 {
            std::fs::copy(first.directory.join("keys.conf"), own.join("keys.conf"))?;
        }
        servers.push(server(&own, "cluster.conf", &format!("nats-{n}"), *clients).await?);
    }
    let deployed = keys.context("there are nodes")?;
    let url = ports.iter().map(|[port, ..]| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    let config = orchestrator(&deployed, url, &tls, 3);
    // Until the nodes have chosen a leader JetStream answers nobody.
    let ready = async {
        loop {
            if let Ok(bus) = Bus::connect(&config, "orchestrator").await
                && bus::provision(&bus).await.is_ok()
            {
                return bus;
            }
        }
    };
    let bus = tokio::time::timeout(PATIENCE * 2, ready).await.context("the cluster was not provisioned")?;
    let exec = runtime::clock::execution_id();
    let fact = System::new()?.request(exec, "hello", &[]);
    bus.append_fact(&fact).await?;
    servers[0].kill().await?;
    let later = runtime::clock::execution_id();
    let fact = System::new()?.request(later, "hello", &[]);
    let appended = async { while bus.append_fact(&fact).await.is_err() {} };
    tokio::time::timeout(PATIENCE, appended).await.context("two nodes of three take no facts")?;
    for exec in [exec, later] {
        let read = async {
            loop {
                if let Ok(messages) = bus.read_execution(exec, 0).await
                    && messages.len() == 1
                {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.with_context(|| format!("{exec} is not read from two nodes"))?;
    }
    Ok(())
}
