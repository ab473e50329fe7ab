//! A Qdrant server, or a peer that speaks its protocol.

use std::time::Duration;

use analysis_worker::vectors::{Collection, Error, Filter, Server, VectorStore};
use runtime::clock;
use runtime::config::Secret;

use crate::conformance::conformance;
use crate::peer::Peer;

const TIMEOUT: Duration = Duration::from_secs(20);

/// The real server that is to be asked, if one is named, and the key that it wants.
#[expect(clippy::disallowed_methods, reason = "a switch for whoever has a server")]
fn real() -> Option<(String, Option<Secret>)> {
    Some((std::env::var("QDRANT_URL").ok()?, std::env::var("QDRANT_API_KEY").ok().map(Secret::new)))
}

fn collection(dimensions: usize) -> Collection {
    Collection { name: "code_embeddings".to_owned(), dimensions, indexed: vec!["file_path".to_owned()] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_keeps_all_promises() {
    if let Some((url, key)) = real() {
        return conformance(&Server::new(&url, key.as_ref(), TIMEOUT).expect("a URL")).await;
    }
    let peer = Peer::start("127.0.0.1:0", None).await;
    conformance(&Server::new(&peer.url(), None, TIMEOUT).expect("a URL")).await;
    peer.stop().await;
}

#[tokio::test]
async fn a_server_that_is_down_is_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let timeout = Duration::from_millis(500);
    let url = format!("http://127.0.0.1:{port}");
    let store = Server::new(&url, None, timeout).expect("a URL");
    let began = clock::instant();
    let error = store.count("code_embeddings", &Filter::everything()).await.expect_err("nobody is there");
    assert!(matches!(&error, Error::Unreachable { at, .. } if at.contains(&url)), "{error}");
    assert!(error.to_string().contains("Failed to connect"), "{error}");
    let took = clock::instant().duration_since(began);
    assert!(took < timeout * 3, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_comes_back_is_not_noticed() {
    let peer = Peer::start("127.0.0.1:0", None).await;
    let address = peer.address.to_string();
    let store = Server::new(&peer.url(), None, TIMEOUT).expect("a URL");
    store.ensure(&collection(3)).await.expect("it is there");
    peer.stop().await;
    let wanted = collection(3);
    let asked = store.ensure(&wanted);
    let back = async {
        // The first tries fail.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Peer::start(&address, None).await
    };
    let (answer, peer) = tokio::join!(asked, back);
    assert_eq!(answer, Ok(()));
    assert_eq!(store.count("code_embeddings", &Filter::everything()).await, Ok(0));
    peer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_is_shown_and_a_wrong_one_is_told() {
    let peer = Peer::start("127.0.0.1:0", Some("sk-right")).await;
    let with = |key: &str| Server::new(&peer.url(), Some(&Secret::new(key.to_owned())), TIMEOUT).expect("a URL");
    assert_eq!(with("sk-right").ensure(&collection(3)).await, Ok(()));
    for store in [with("sk-wrong"), Server::new(&peer.url(), None, TIMEOUT).expect("a URL")] {
        let error = store.ensure(&collection(3)).await.expect_err("it is refused");
        assert!(matches!(&error, Error::Refused(why) if why.contains("analysis.vectors.api_key")), "{error}");
        assert!(!error.to_string().contains("sk-"), "{error}");
    }
    peer.stop().await;
}
