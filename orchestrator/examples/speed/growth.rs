//! What long executions leave on disk: 100 model calls, each with 5 KB of new content (its answer and the result of
//! the tool it asked for), against the content itself. The server compresses a block of the log when it is full, so
//! one execution alone is seen uncompressed, and many in one partition as they are kept.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use runtime::Runtime;
use runtime::bus::Kind;
use schemas::chat::ToolSpec;
use serde_json::{Value, json};

use crate::agents::{end, submit};
use crate::execution_of;
use crate::stub::{Said, Stub};

const MODEL_CALLS: u32 = 100;
/// Of an answer, and of a tool's result.
const CONTENT_BYTES: usize = 2_500;

/// Text that no compression makes much of: compressing is not what is measured.
fn noise(seed: u64) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(LETTERS[(state >> 32) as usize % 64])
    };
    (0..CONTENT_BYTES).map(|_| next()).collect()
}

fn say(turn: u32) -> Said {
    let seed = u64::from(turn) * 2;
    Said { text: noise(seed), calls: usize::from(turn < MODEL_CALLS), result: noise(seed + 1) }
}

pub(crate) async fn run(runtime: Runtime, store: &Path, executions: usize) -> anyhow::Result<Value> {
    let before = size(store)?;
    let _stub = Stub::start(runtime.clone(), say).await?;
    for _ in 0..executions {
        let exec = execution_of(0);
        let mut live = runtime.bus.live(exec).await?;
        submit(&runtime, exec, vec![ToolSpec::new("tool_0", "", json!({}))]).await?;
        end(&runtime, exec, &mut live).await?;
        let facts = runtime.bus.read_execution(exec, 0).await?.iter().filter(|m| m.kind == Kind::Fact).count();
        ensure!(facts == 2 * MODEL_CALLS as usize, "the execution ended early, after {facts} facts");
    }
    // The server writes its indexes a moment later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stored = size(store)? - before;
    let useful = (2 * u64::from(MODEL_CALLS) - 1) * CONTENT_BYTES as u64 * executions as u64;
    Ok(json!({"stored_bytes": stored, "useful_bytes": useful, "stored_over_useful": stored as f64 / useful as f64}))
}

/// Bytes of all files in a directory.
fn size(directory: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        sum += match entry.metadata() {
            Ok(file) if file.is_dir() => size(&entry.path())?,
            Ok(file) => file.len(),
            // Gone since it was listed.
            Err(_) => 0,
        };
    }
    Ok(sum)
}
