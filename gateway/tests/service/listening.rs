//! How the gateway listens: TLS, certificates of clients, secrets that change, and clients that take their time.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use gateway::{Config, Secrets, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::House;

/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, PEM.
fn signed(by: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, by).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn tls(directory: &Path, server: &Authority, clients: Option<&Authority>, client_required: bool) -> Tls {
    let (certificate, key) = signed(server, "localhost");
    let write = |name: &str, text: &str| {
        let file = directory.join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    Tls {
        certificate_file: write("server.pem", &certificate),
        key_file: write("server.key", &key),
        client_ca_file: clients.map(|clients| write("clients.pem", &clients.pem())),
        client_required,
    }
}

/// Asks `path` over TLS, with a client's certificate if there is one: the status.
async fn over_tls(house: &House, server: &Authority, client: Option<(String, String)>, head: &str) -> Option<u16> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    let stream = TcpStream::connect(house.url.trim_start_matches("https://")).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.ok()?;
    let head = format!("GET /internal/agents HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{head}\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it answers").ok()?;
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_certificate_stands_for_the_secret() {
    let directory = tempfile::tempdir().unwrap();
    let (server, clients) = (authority(), authority());
    let tls = tls(directory.path(), &server, Some(&clients), false);
    let config = Config { tls: Some(tls), ..Config::default() };
    let Some(house) = House::start_with(config, Secrets::new("hush")).await else { return };
    let secret = "x-internal-auth: hush\r\n";
    assert_eq!(over_tls(&house, &server, None, secret).await, Some(200));
    assert_eq!(over_tls(&house, &server, None, "").await, Some(403));
    assert_eq!(over_tls(&house, &server, Some(signed(&clients, "api")), "").await, Some(200));
    // Signed by somebody else: no handshake, so no question.
    assert_eq!(over_tls(&house, &server, Some(signed(&server, "api")), secret).await, None);
    // Nor does another's name for the server convince a client.
    assert_eq!(over_tls(&house, &authority(), None, secret).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_can_be_required_and_wrong_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (server, clients) = (authority(), authority());
    let tls = tls(directory.path(), &server, Some(&clients), true);
    let config = Config { tls: Some(tls.clone()), ..Config::default() };
    let Some(house) = House::start_with(config, Secrets::new("hush")).await else { return };
    assert_eq!(over_tls(&house, &server, None, "x-internal-auth: hush\r\n").await, None);
    assert_eq!(over_tls(&house, &server, Some(signed(&clients, "api")), "").await, Some(200));

    let error = |tls: Tls| async {
        let config = Config { http: "127.0.0.1:0".to_owned(), tls: Some(tls), ..Config::default() };
        let runtime = runtime::Runtime { metrics: Default::default(), ..house.runtime.clone() };
        gateway::serve(config, Secrets::new("hush"), runtime).await.expect_err("refused").to_string()
    };
    let said = error(Tls { certificate_file: "/nowhere.pem".into(), ..tls.clone() }).await;
    assert!(said.contains("/nowhere.pem"), "{said}");
    let said = error(Tls { certificate_file: tls.key_file.clone(), ..tls.clone() }).await;
    assert!(said.contains("there is none in it") && said.contains("server.key"), "{said}");
    let said = error(Tls { client_ca_file: None, ..tls }).await;
    assert!(said.contains("client_required"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_change_while_requests_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "old\n").unwrap();
    let Some(house) = House::start_with(Config::default(), Secrets::of_file("old\n", file.clone())).await else {
        return;
    };
    let status = |secret: &'static str| {
        let request = house.http.get(format!("{}/internal/agents", house.url)).header("x-internal-auth", secret);
        async { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!((status("old").await, status("new").await), (200, 403));
    let rewrite = |text: &str| {
        let new = directory.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    rewrite("old\nnew\n");
    let taken = async {
        while status("new").await != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("the new secret is taken");
    assert_eq!(status("old").await, 200, "both count");
    rewrite("new\n");
    let gone = async {
        while status("old").await != 403 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the old secret is gone");
    assert_eq!(status("new").await, 200);
    // The same as an API key of OpenAI's clients, in their shape.
    let models = || house.http.get(format!("{}/v1/models", house.url));
    assert_eq!(models().bearer_auth("new").send().await.unwrap().status(), 200);
    let refused = models().bearer_auth("old").send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "invalid_api_key");
}

/// Sends these bytes and nothing more: what comes back until the other side closes.
async fn slowly(house: &House, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(house.url.trim_start_matches("http://")).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // What is left unread on the other side makes the close a reset; what was said before counts.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_finishes_its_request_is_let_go() {
    let config = Config { head_timeout_s: 1, body_timeout_s: 1, connections_max: 2, ..Config::default() };
    let Some(house) = House::start_with(config, Secrets::new("hush")).await else { return };
    // Two of them hold all connections; whoever comes next is served as soon as they are gone.
    let (head, also, others) = tokio::join!(
        slowly(&house, b"POST /internal/chat HTTP/1.1\r\nhost: a\r\nx-internal-"),
        slowly(&house, b"P"),
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            house.http.get(format!("{}/health", house.url)).send().await.unwrap().status()
        }
    );
    assert!(!head.contains("200") && !also.contains("200"), "{head} {also}");
    assert_eq!(others, 200);
    let mut request = Vec::new();
    write!(request, "POST /internal/chat HTTP/1.1\r\nhost: a\r\nx-internal-auth: hush\r\n").unwrap();
    write!(request, "connection: close\r\ncontent-length: 100\r\n\r\n{{").unwrap();
    let body = slowly(&house, &request).await;
    assert!(body.starts_with("HTTP/1.1 408") && body.contains("body_too_slow"), "{body}");
    // A body that is no text is no JSON.
    let broken = house.http.post(format!("{}/internal/chat", house.url)).header("x-internal-auth", "hush");
    let broken: Value = broken.body(b"{\"messages\": \"\xff\"}".to_vec()).send().await.unwrap().json().await.unwrap();
    assert_eq!(broken["code"], json!("malformed_json"), "{broken}");
}
