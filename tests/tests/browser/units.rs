//! The pure parts of the console hold by themselves: reading streams, folding logs into spans, words for numbers.

use pipeline_tests::System;
use serde_json::json;

use crate::browser::story;

#[tokio::test]
async fn the_pure_parts_hold() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker", "analysis-worker", "tool-worker"]).await?;
    story(&system, "units", async |browser| {
        browser.open("#/health").await?;
        let result = browser.run_until_called(include_str!("units.js")).await?;
        assert_eq!(result["failed"], json!([]), "{result:#}");
        assert!(result["held"].as_u64() > Some(20), "{result:#}");
        println!("{} hold", result["held"]);
        Ok(())
    })
    .await
}
