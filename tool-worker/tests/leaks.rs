//! Many calls, one after another and all at once, leave nothing behind: no descriptor, no process, no mount, no container.
//! `VLINDERS_TEST_CALLS` sets how many.

#![expect(unreachable_pub, reason = "the module is shared by several test programs")]

mod boxes;

use boxes::{TIERS, call, config, no_traces_but, start, traces, workspace};
use futures::StreamExt;
use runtime::clock;
use serde_json::json;

/// Calls unless the environment says otherwise.
const CALLS: usize = 200;
/// Calls at once, as many as a worker may have slots.
const AT_ONCE: usize = 64;

#[expect(clippy::disallowed_methods, reason = "how long a test may take is said in the environment")]
fn calls() -> usize {
    std::env::var("VLINDERS_TEST_CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(CALLS)
}

#[tokio::test]
async fn many_calls_leave_nothing_behind() {
    for tier in TIERS {
        let base = workspace();
        let before = traces().await;
        let Some(executor) = start(&config(tier, base.path())).await else { continue };
        let read = call("read_file", json!({"path": "a.rs", "end": 1}));
        let started = clock::instant();
        let one = |_| executor.execute(&read);
        let at_once = futures::stream::iter(0..AT_ONCE).map(one).buffer_unordered(AT_ONCE);
        let after = futures::stream::iter(AT_ONCE..calls()).map(one).buffer_unordered(4);
        let outcomes: Vec<_> = at_once.chain(after).collect().await;
        println!("{tier:?}: {} calls in {:?}", outcomes.len(), clock::instant().duration_since(started));
        for outcome in outcomes {
            assert_eq!(outcome.result.as_deref(), Ok("1: use std::fs;"), "{tier:?}");
        }
        executor.sandbox().unwrap().close().await;
        drop(executor);
        no_traces_but(&before).await;
    }
}
