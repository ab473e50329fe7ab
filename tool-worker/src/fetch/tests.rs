//! Servers of our own, and everything that must not be fetched.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::scripted::{Scripted, answer};

/// Names for tests: what each resolves to, one answer after the other, the last for ever.
fn names(names: &[(&str, &[&str])]) -> (Resolve, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let table: Vec<(String, Vec<String>)> = names
        .iter()
        .map(|(name, addresses)| ((*name).to_owned(), addresses.iter().map(|a| (*a).to_owned()).collect()))
        .collect();
    let table = Arc::new(Mutex::new(table));
    let resolve: Resolve = Arc::new(move |name, port| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut table = table.lock().unwrap();
        let found = table.iter_mut().find(|(known, _)| *known == name).map(|(_, addresses)| match addresses.len() {
            1 => addresses[0].clone(),
            _ => addresses.remove(0),
        });
        let found = found.ok_or_else(|| io::Error::other("no such name"));
        Box::pin(async move {
            Ok(found?.split(',').map(|address| SocketAddr::new(address.parse().unwrap(), port)).collect())
        })
    });
    (resolve, asked)
}

fn fetcher(settings: &Settings, resolve: Resolve) -> Fetcher {
    Fetcher::with(settings, RootCertStore::empty(), resolve, for_real())
}

fn for_real() -> Connect {
    Arc::new(|address| Box::pin(TcpStream::connect(address)))
}

/// Public addresses, each played by a server of this test, and all addresses that a connection was made to. What nobody
/// plays is connected to for real.
fn internet(played: &[(&str, &Scripted)]) -> (Connect, Arc<Mutex<Vec<SocketAddr>>>) {
    let connected: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let played: Vec<(SocketAddr, SocketAddr)> =
        played.iter().map(|(address, server)| (address.parse().unwrap(), server.address)).collect();
    let noted = connected.clone();
    let connect: Connect = Arc::new(move |address| {
        noted.lock().unwrap().push(address);
        let player = played.iter().find(|(public, _)| *public == address).map_or(address, |(_, player)| *player);
        Box::pin(TcpStream::connect(player))
    });
    (connect, connected)
}

/// May ask this server.
fn allowing(server: &Scripted) -> Settings {
    Settings { allow: vec![server.address.to_string()], ..Settings::default() }
}

async fn fetched(settings: &Settings, url: &str) -> Result<Page, Fault> {
    fetched_by(settings, &Question::page(url)).await
}

async fn fetched_by(settings: &Settings, question: &Question) -> Result<Page, Fault> {
    fetcher(settings, names(&[]).0).fetch(question).await
}

/// A server that nobody may reach: it fails the test if somebody did.
struct Forbidden(TcpListener);

impl Forbidden {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    fn assert_untouched(&self) {
        assert_eq!(self.0.accept().map(|_| ()).unwrap_err().kind(), io::ErrorKind::WouldBlock, "somebody connected");
    }
}

#[tokio::test]
async fn a_page_is_fetched_with_what_it_says_of_itself() {
    let page = answer("200 OK", "content-type: text/html; charset=utf-8\r\nset-cookie: a=b\r\n", "<p>hello é</p>");
    let server = Scripted::saying(page);
    let page = fetched(&allowing(&server), &server.url("/x?y=1#z")).await.unwrap();
    assert_eq!((page.text.as_str(), page.html, page.status.as_u16()), ("<p>hello é</p>", true, 200));
    assert_eq!(page.url, server.url("/x?y=1"));
    let asked = server.asked();
    assert!(asked[0].starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[0].contains(&format!("host: {}\r\n", server.address)), "{asked:?}");
    assert!(asked[0].contains("user-agent: vlinders/") && !asked[0].contains("cookie"), "{asked:?}");
}

#[tokio::test]
async fn no_spelling_of_a_private_address_is_connected_to() {
    let forbidden = Forbidden::new();
    let port = forbidden.port();
    // Its port is usual here, so that nothing but the address speaks against it.
    let settings = Settings { ports: vec![port, 80], ..Settings::default() };
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[2002:7f00:1::]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
    ] {
        let (connect, connected) = internet(&[]);
        let fetcher = Fetcher::with(&settings, RootCertStore::empty(), names(&[]).0, connect);
        let fault = fetcher.fetch(&Question::page(&format!("http://{host}:{port}/"))).await.unwrap_err();
        assert!(matches!(&fault, Fault::Refused(why) if why.contains("only public addresses")), "{host}: {fault}");
        assert!(connected.lock().unwrap().is_empty(), "{host}");
    }
    forbidden.assert_untouched();
}

#[tokio::test]
async fn a_name_is_judged_by_every_address_it_stands_for() {
    let forbidden = Forbidden::new();
    let settings = Settings { ports: vec![forbidden.port()], ..Settings::default() };
    let (resolve, _) = names(&[
        ("private.test", &["127.0.0.1"]),
        ("mixed.test", &["1.1.1.1,127.0.0.1"]),
        ("mapped.test", &["::ffff:127.0.0.1"]),
        ("metadata.test", &["169.254.169.254"]),
    ]);
    let fetcher = fetcher(&settings, resolve);
    for name in ["private.test", "mixed.test", "mapped.test", "metadata.test", "PRIVATE.test"] {
        let url = format!("http://{name}:{}/", forbidden.port());
        let fault = fetcher.fetch(&Question::page(&url)).await.unwrap_err();
        assert!(matches!(&fault, Fault::Refused(why) if why.contains("only public addresses")), "{name}: {fault}");
    }
    let unknown = fetcher.fetch(&Question::page(&format!("http://unknown.test:{}/", forbidden.port()))).await;
    assert_eq!(unknown.unwrap_err().to_string(), "unknown.test was not found: no such name");
    forbidden.assert_untouched();
}

#[tokio::test]
async fn a_name_that_changes_its_mind_reaches_nothing_but_what_was_judged() {
    let forbidden = Forbidden::new();
    let page = |text: &str| Scripted::saying(answer("200 OK", "content-type: text/plain\r\n", text));
    let (public, port) = (page("public"), forbidden.port());
    let settings = Settings { ports: vec![port], ..Settings::default() };
    let judged = format!("1.1.1.1:{port}");
    let question = Question::page(&format!("http://rebind.test:{port}/"));

    // Public when it is judged, private when it is asked again, as it would be by whoever resolves to connect.
    let (resolve, asked) = names(&[("rebind.test", &["1.1.1.1", "127.0.0.1"])]);
    let (connect, connected) = internet(&[(&judged, &public)]);
    let fetcher = Fetcher::with(&settings, RootCertStore::empty(), resolve, connect);
    assert_eq!(fetcher.fetch(&question).await.unwrap().text, "public");
    assert_eq!(asked.load(Ordering::SeqCst), 1, "one request, one answer");
    // The next request asks anew, and refuses what it hears.
    let fault = fetcher.fetch(&question).await.unwrap_err();
    assert!(matches!(&fault, Fault::Refused(why) if why.contains("only public addresses")), "{fault}");
    assert_eq!(*connected.lock().unwrap(), [judged.parse().unwrap()]);

    // The same name again in a redirect, which by then is private.
    let again = answer("302 Found", &format!("location: http://rebind.test:{port}/next\r\n"), "");
    let turning = Scripted::saying(again);
    let (resolve, asked) = names(&[("rebind.test", &["1.1.1.1", "127.0.0.1"])]);
    let (connect, connected) = internet(&[(&judged, &turning)]);
    let fetcher = Fetcher::with(&settings, RootCertStore::empty(), resolve, connect);
    let fault = fetcher.fetch(&question).await.unwrap_err();
    assert!(matches!(&fault, Fault::Refused(why) if why.contains("only public addresses")), "{fault}");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "every redirect is judged anew");
    assert_eq!(*connected.lock().unwrap(), [judged.parse().unwrap()]);
    forbidden.assert_untouched();
}

#[tokio::test]
async fn a_public_page_is_followed_to_another_public_one() {
    let end = Scripted::saying(answer("200 OK", "content-type: text/plain\r\n", "the end"));
    let begin = Scripted::saying(answer("302 Found", "location: http://second.test/\r\n", ""));
    let (resolve, _) = names(&[("first.test", &["1.1.1.1"]), ("second.test", &["2606:4700::1111,8.8.8.8"])]);
    let (connect, connected) = internet(&[("1.1.1.1:80", &begin), ("[2606:4700::1111]:80", &end)]);
    let fetcher = Fetcher::with(&Settings::default(), RootCertStore::empty(), resolve, connect);
    let page = fetcher.fetch(&Question::page("http://first.test/")).await.unwrap();
    assert_eq!((page.text.as_str(), page.url.as_str()), ("the end", "http://second.test/"));
    assert_eq!(*connected.lock().unwrap(), ["1.1.1.1:80".parse().unwrap(), "[2606:4700::1111]:80".parse().unwrap()]);
}

#[tokio::test]
async fn whoever_runs_the_server_may_name_one_that_is_anywhere() {
    let own = Scripted::saying(answer("200 OK", "content-type: application/json\r\n", "{}"));
    let question = Question { accept: Accept::Json, ..Question::page(&own.url("/")) };
    let fault = fetched_by(&Settings::default(), &question).await.unwrap_err();
    assert!(matches!(fault, Fault::Refused(_)), "{fault}");
    let named = Question { named_by_owner: true, ..question };
    assert_eq!(fetched_by(&Settings::default(), &named).await.unwrap().text, "{}");
}

#[tokio::test]
async fn redirects_are_judged_like_the_first_request() {
    let forbidden = Forbidden::new();
    let port = forbidden.port();
    let targets = [
        (format!("http://127.0.0.1:{port}/"), "only public addresses"),
        (format!("//[::1]:{port}/"), "only public addresses"),
        (format!("http://private.test:{port}/"), "only public addresses"),
        ("http://1.1.1.1:22/".to_owned(), "port 22 is not asked"),
        ("file:///etc/passwd".to_owned(), "file: is not fetched"),
        (format!("http://a:b@127.0.0.1:{port}/"), "a user or password"),
        ("http://".to_owned(), "is no URL"),
    ];
    for (location, said) in targets {
        let server = Scripted::saying(answer("302 Found", &format!("location: {location}\r\n"), ""));
        let settings = Settings { ports: vec![port], ..allowing(&server) };
        let (resolve, _) = names(&[("private.test", &["127.0.0.1"])]);
        let fault = fetcher(&settings, resolve).fetch(&Question::page(&server.url("/"))).await.unwrap_err();
        assert!(fault.to_string().contains(said), "{location}: {fault}");
    }
    forbidden.assert_untouched();
}

#[tokio::test]
async fn nobody_is_redirected_to_a_server_that_its_owner_may_ask() {
    let own = Scripted::saying(answer("200 OK", "content-type: text/plain\r\n", "secret"));
    let other = Scripted::saying(answer("307 Temporary Redirect", &format!("location: {}\r\n", own.url("/")), ""));
    let allow = vec![own.address.to_string(), other.address.to_string()];
    let settings = Settings { allow, ports: vec![80, own.address.port()], ..Settings::default() };
    let fault = fetched(&settings, &other.url("/")).await.unwrap_err();
    assert!(fault.to_string().contains("only public addresses"), "{fault}");
    assert!(own.asked().is_empty());
    assert_eq!(fetched(&settings, &own.url("/")).await.unwrap().text, "secret");
}

#[tokio::test]
async fn redirects_end_somewhere() {
    let server = Scripted::start(|request, stream| {
        let n: usize = request.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        let location = format!("location: /{}\r\n", n + 1);
        let said = if n == 5 {
            answer("200 OK", "content-type: text/plain\r\n", "there")
        } else {
            answer("301 Moved", &location, "")
        };
        stream.write_all(&said).unwrap();
    });
    let page = fetched(&allowing(&server), &server.url("/0")).await.unwrap();
    assert_eq!((page.text.as_str(), page.url), ("there", server.url("/5")));
    let settings = Settings { redirects_max: 4, ..allowing(&server) };
    let fault = fetched(&settings, &server.url("/0")).await.unwrap_err();
    assert!(fault.to_string().ends_with("redirects more than 4 times"), "{fault}");
    let none = Settings { redirects_max: 0, ..allowing(&server) };
    assert!(fetched(&none, &server.url("/0")).await.unwrap_err().to_string().contains("which is not followed"));
}

#[tokio::test]
async fn what_is_meant_for_one_server_is_shown_to_no_other() {
    let other = Scripted::saying(answer("200 OK", "content-type: text/plain\r\n", "got it"));
    let server = Scripted::saying(answer("302 Found", &format!("location: {}\r\n", other.url("/")), ""));
    let allow = vec![server.address.to_string(), other.address.to_string()];
    let settings = Settings { allow, ..Settings::default() };
    let headers = [(header::AUTHORIZATION, "Bearer key".parse().unwrap())].into_iter().collect();
    let question = Question { headers, ..Question::page(&server.url("/")) };
    let fault = fetcher(&settings, names(&[]).0).fetch(&question).await.unwrap_err();
    assert!(fault.to_string().contains("which is not followed"), "{fault}");
    assert!(server.asked()[0].contains("authorization: Bearer key") && other.asked().is_empty());
}

#[tokio::test]
async fn what_is_too_large_or_endless_is_given_up() {
    let settings = |server: &Scripted| Settings { bytes_max: 10_000, timeout_ms: 5_000, ..allowing(server) };
    let large = Scripted::saying(answer("200 OK", "content-type: text/plain\r\n", "x".repeat(10_001)));
    let endless = Scripted::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n");
        while stream.write_all(b"3e8\r\n").and_then(|()| stream.write_all(&[b'x'; 1000])).is_ok() {
            if stream.write_all(b"\r\n").is_err() {
                return;
            }
        }
    });
    for server in [&large, &endless] {
        let fault = fetched(&settings(server), &server.url("/")).await.unwrap_err();
        assert_eq!(fault, Fault::TooLarge { bytes_max: 10_000 });
    }
    let exact = Scripted::saying(answer("200 OK", "content-type: text/plain\r\n", "x".repeat(10_000)));
    assert_eq!(fetched(&settings(&exact), &exact.url("/")).await.unwrap().text.len(), 10_000);
    let head = Scripted::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"x-more: and more\r\n").is_ok() {}
    });
    let fault = fetched(&settings(&head), &head.url("/")).await.unwrap_err();
    assert!(matches!(fault, Fault::Broken(_)), "{fault}");
}

#[tokio::test]
async fn a_bomb_does_not_go_off() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(bomb.len() < 100_000, "it is small as long as it is packed");
    let packed = "content-type: text/plain\r\ncontent-encoding: gzip\r\n";
    let server = Scripted::saying(answer("200 OK", packed, bomb));
    let fault = fetched(&allowing(&server), &server.url("/")).await.unwrap_err();
    assert_eq!(fault, Fault::TooLarge { bytes_max: 2 << 20 });
    let harmless = Scripted::saying(answer("200 OK", packed, gzip(b"unpacked")));
    assert_eq!(fetched(&allowing(&harmless), &harmless.url("/")).await.unwrap().text, "unpacked");
    let mut cut = gzip(b"cut in the middle of it");
    cut.truncate(15);
    let broken = Scripted::saying(answer("200 OK", packed, cut));
    assert!(matches!(fetched(&allowing(&broken), &broken.url("/")).await, Err(Fault::Broken(_))));
    let unknown = Scripted::saying(answer("200 OK", "content-type: text/plain\r\ncontent-encoding: br\r\n", "?"));
    let fault = fetched(&allowing(&unknown), &unknown.url("/")).await.unwrap_err();
    assert_eq!(fault.to_string(), "it is packed with br, which was not asked for");
}

#[tokio::test]
async fn silence_and_dawdling_end_with_the_time() {
    let wait = |stream: &mut std::net::TcpStream| drop(stream.read(&mut [0]));
    let silent = Scripted::start(move |_, stream| wait(stream));
    let stuck = Scripted::start(move |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\nhalf");
        wait(stream);
    });
    for server in [&silent, &stuck] {
        let settings = Settings { timeout_ms: 200, ..allowing(server) };
        let fault = fetched(&settings, &server.url("/")).await.unwrap_err();
        assert!(matches!(fault, Fault::Timeout { .. }), "{fault}");
        assert_eq!(Failure::from(fault).class, schemas::fact::FailureClass::Timeout);
    }
    let hung_up = Scripted::start(|_, _| {});
    let fault = fetched(&allowing(&hung_up), &hung_up.url("/")).await.unwrap_err();
    assert!(matches!(&fault, Fault::Broken(why) if why.starts_with("the connection broke")), "{fault}");
}

#[tokio::test]
async fn what_is_no_text_is_not_even_read() {
    let server = Scripted::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 999999999\r\n\r\n");
        while stream.write_all(&[0; 1000]).is_ok() {}
    });
    let fault = fetched(&allowing(&server), &server.url("/")).await.unwrap_err();
    assert_eq!(fault.to_string(), "it is image/png; only text can be read (HTML, plain text, JSON, XML)");
    let missing = Scripted::saying(answer("404 Not Found", "", ""));
    assert_eq!(fetched(&allowing(&missing), &missing.url("/")).await.unwrap().status.as_u16(), 404);
}

#[tokio::test]
async fn only_a_trusted_server_of_that_name_is_believed() {
    let issued = rcgen::generate_simple_self_signed(vec!["trusted.test".to_owned()]).unwrap();
    let certificate = issued.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Whoever does not trust us hangs up here.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(&answer("200 OK", "content-type: text/plain\r\n", "secret")).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    };
    let fetches = async {
        let allow = vec![format!("trusted.test:{port}"), format!("other.test:{port}")];
        let settings = Settings { allow, ..Settings::default() };
        let names = || names(&[("trusted.test", &["127.0.0.1"]), ("other.test", &["127.0.0.1"])]).0;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let trusting = Fetcher::with(&settings, roots, names(), for_real());
        let asked = |name: &str| Question::page(&format!("https://{name}:{port}/"));
        assert_eq!(trusting.fetch(&asked("trusted.test")).await.unwrap().text, "secret");
        for (fetcher, name) in [(&trusting, "other.test"), (&fetcher(&settings, names()), "trusted.test")] {
            let fault = fetcher.fetch(&asked(name)).await.unwrap_err();
            assert!(matches!(&fault, Fault::Broken(why) if why.contains("is not trusted")), "{fault}");
        }
    };
    tokio::select! {
        () = fetches => {}
        () = serve => {}
    }
}
