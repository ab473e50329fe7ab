//! Measures the edge: tokens streamed through the whole pipeline (gateway, log, orchestrator, queue) from an engine that costs
//! nothing, by a client that reads any server with OpenAI's API. `deploy/bench/run gateway` runs it beside its peers.
//!
//!     gateway load ADDR:PORT --concurrent N --seconds S|--requests R [--key K] [--model M] [--tokens T] [--pids NAME=PID,…]
//!     gateway stub                               the floor: the same events from a server that has nothing to do
//!     gateway serve NATS [OPEN_MAX]              a gateway with the secret `bench`
//!     gateway decide NATS                        an orchestrator
//!     gateway engine NATS TOKENS EVERY_US        a worker whose answers have so many tokens, one each so many µs
//!     gateway resume | overload | slow           faults and crowds, with processes of its own
//!
//! `stub`, `serve`, `decide` and `engine` print a line when they are ready, and end when their standard input does.

mod crowd;
mod engine;
mod load;
mod processes;
mod resume;
mod stub;

use std::time::Duration;

use anyhow::bail;
use runtime::Runtime;
use runtime::bus::{self, Bus};

/// The secret of measured gateways.
const SECRET: &str = "bench";
/// The model of the engine, which is its pool.
const MODEL: &str = "stub";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (what, rest) = arguments.split_first().unwrap_or((&"", &[]));
    // The client has one thread, so that it takes no more of the machine than it must.
    let threads = match *what {
        "load" => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        _ => tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
    };
    threads.block_on(async {
        match (*what, rest) {
            ("load", rest) => println!("{}", load::run(&load::Options::read(rest)?).await?),
            ("stub", []) => stub::serve().await?,
            ("serve", [nats]) => serve(nats, None).await?,
            ("serve", [nats, open_max]) => serve(nats, Some(open_max.parse()?)).await?,
            ("decide", [nats]) => decide(nats).await?,
            ("engine", [nats, tokens, every_us]) => {
                engine::serve(connect(nats).await?, tokens.parse()?, Duration::from_micros(every_us.parse()?)).await?;
            }
            ("resume", []) => println!("{}", resume::run().await?),
            ("overload", []) => println!("{}", crowd::overload().await?),
            ("slow", []) => println!("{}", crowd::slow_reader().await?),
            _ => bail!("see the beginning of main.rs for what can be measured"),
        }
        Ok(())
    })
}

async fn connect(nats: &str) -> anyhow::Result<Runtime> {
    let config = bus::Config { url: nats.to_owned(), ..bus::Config::default() };
    let bus = Bus::connect(&config, "bench").await?;
    bus::provision(&bus).await?;
    Ok(Runtime::new(bus))
}

async fn serve(nats: &str, open_max: Option<usize>) -> anyhow::Result<()> {
    let (runtime, default) = (connect(nats).await?, gateway::Config::default());
    let requests_open_max = open_max.unwrap_or(default.requests_open_max);
    let config = gateway::Config { http: "127.0.0.1:0".to_owned(), requests_open_max, ..default };
    let edge = gateway::serve(config, gateway::Secrets::new(SECRET), runtime).await?;
    println!("{}", edge.http);
    until_closed().await
}

async fn decide(nats: &str) -> anyhow::Result<()> {
    orchestrator::serve(orchestrator::Config::default(), connect(nats).await?).await?;
    println!("ready");
    until_closed().await
}

/// Waits for the end of standard input: whoever started this is gone or done.
async fn until_closed() -> anyhow::Result<()> {
    // A thread of its own: there is nothing else to read here.
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(())
}
