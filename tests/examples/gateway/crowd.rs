//! More clients than a gateway lets in, and one among many that does not read.

use std::time::Duration;

use anyhow::Context;
use futures::future::try_join_all;
use runtime::clock;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::load::{Connection, Options, rss_mib};
use super::processes::House;

/// Requests that the gateway lets in, and how many times as many clients come.
const OPEN_MAX: usize = 128;
const TIMES: usize = 4;
/// How long each crowd asks.
const SECONDS: Duration = Duration::from_secs(8);

/// What became of a client, or of a crowd.
#[derive(Default)]
struct Came {
    tokens: u64,
    /// When the last answer was whole: who was refused then is not waited for.
    last: Duration,
    refusals: usize,
    slowest: Duration,
    /// Refusals that did not say when to come again.
    silent: usize,
}

impl Came {
    fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.last.as_secs_f64()
    }
}

/// A crowd of so many.
async fn crowd(address: &str, clients: usize) -> anyhow::Result<Came> {
    let options = Options::read(&[address, "--tokens", "64"])?;
    let request = options.request();
    let since = clock::instant();
    let of_one = (0..clients).map(|_| async {
        let mut connection = Connection::open(address).await?;
        let mut came = Came::default();
        while clock::instant().duration_since(since) < SECONDS {
            match connection.ask(&request).await? {
                Ok(answered) => {
                    came.tokens += answered.tokens;
                    came.last = clock::instant().duration_since(since);
                }
                Err(refused) => {
                    (came.refusals, came.slowest) = (came.refusals + 1, came.slowest.max(refused.told_after));
                    came.silent += usize::from(refused.retry_after.is_none());
                    tokio::time::sleep(refused.retry_after.unwrap_or(Duration::from_secs(1))).await;
                    connection = Connection::open(address).await?;
                }
            }
        }
        anyhow::Ok(came)
    });
    Ok(try_join_all(of_one).await?.into_iter().fold(Came::default(), |all, one| Came {
        tokens: all.tokens + one.tokens,
        last: all.last.max(one.last),
        refusals: all.refusals + one.refusals,
        slowest: all.slowest.max(one.slowest),
        silent: all.silent + one.silent,
    }))
}

pub(crate) async fn overload() -> anyhow::Result<Value> {
    let house = House::start(64, 0).await?;
    let gateway = house.gateway(OPEN_MAX).await?;
    // The first is not counted: the processes grow into it.
    crowd(&gateway.said, OPEN_MAX).await?;
    let peak = crowd(&gateway.said, OPEN_MAX).await?.tokens_per_s();
    let came = crowd(&gateway.said, OPEN_MAX * TIMES).await?;
    Ok(json!({
        "clients": OPEN_MAX * TIMES,
        "peak_tokens_per_s": peak,
        "tokens_per_s": came.tokens_per_s(),
        "goodput": came.tokens_per_s() / peak,
        "refusals": came.refusals,
        "refusals_without_retry_after": came.silent,
        "slowest_refusal_ms": came.slowest.as_secs_f64() * 1e3,
    }))
}

/// Clients beside the one that does not read.
const READERS: usize = 99;
/// Of each answer; what the slow one leaves unread is more than sockets hold.
const LONG: &str = "8000";

pub(crate) async fn slow_reader() -> anyhow::Result<Value> {
    let house = House::start(64, 2_000).await?;
    let gateway = house.gateway(4_096).await?;
    let pid = gateway.pid().context("the gateway runs")?;
    let readers = || async {
        let options = Options::read(&[&gateway.said, "--tokens", "400"])?;
        let request = options.request();
        let one = (0..READERS).map(|_| async { Connection::open(&gateway.said).await?.ask(&request).await });
        let mut gaps = Vec::new();
        for answered in try_join_all(one).await? {
            let answered = answered.ok().context("a reader was refused")?;
            anyhow::ensure!(answered.tokens == 400, "an answer of {} tokens", answered.tokens);
            gaps.push(answered.gap.as_secs_f64() * 1e3);
        }
        gaps.sort_by(f64::total_cmp);
        anyhow::Ok((gaps[READERS / 2], gaps[READERS - 1]))
    };
    readers().await?;
    let (alone_p50, alone_max) = readers().await?;
    let before = rss_mib(pid);
    let mut unread = TcpStream::connect(&gateway.said).await?;
    unread.write_all(&Options::read(&[&gateway.said, "--tokens", LONG])?.request()).await?;
    let (beside_p50, beside_max) = readers().await?;
    let after = rss_mib(pid);
    drop(unread);
    Ok(json!({
        "readers": READERS,
        "gap_ms": {"alone": {"p50": alone_p50, "max": alone_max}, "beside": {"p50": beside_p50, "max": beside_max}},
        "rss_mib": {"before": before, "after": after},
    }))
}
