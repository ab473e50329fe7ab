//! Measures indexing and finding code, with real processes, a real nats-server and the real embedding model. Each prints one
//! line of JSON. `deploy/bench/run code` runs them all and compares with the goals.
//!
//!     code words SOURCES FILES           so many files of a tree indexed without vectors, then again unchanged; searches
//!     code vectors SOURCES FILES ROUNDS  so many files with vectors; then a file edited, until it is found by what is new
//!     code retrieval QUESTIONS SOURCES   of questions, how many have a right file among the first five
//!
//! SOURCES is a directory of crates' sources, as cargo keeps them.

mod indexing;
mod retrieval;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().with_context(|| format!("{text} is no number"));
    let report = match arguments[..] {
        ["words", sources, files] => indexing::words(Path::new(sources), number(files)?).await?,
        ["vectors", sources, files, rounds] => {
            indexing::vectors(Path::new(sources), number(files)?, number(rounds)?).await?
        }
        ["retrieval", questions, sources] => retrieval::asked(Path::new(questions), Path::new(sources)).await?,
        _ => bail!("usage: code words SOURCES FILES | vectors SOURCES FILES ROUNDS | retrieval QUESTIONS SOURCES"),
    };
    println!("{report}");
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}
