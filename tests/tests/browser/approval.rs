//! A call that waits for a person is allowed, edited and denied by clicks; the log says what was said.

use pipeline_tests::events;
use schemas::fact::Verdict;
use schemas::{Event, FactBody};
use serde_json::json;

use crate::browser::story;
use crate::{agent, played};

#[tokio::test]
async fn a_call_is_allowed_edited_and_denied_by_clicks() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    story(&system, "approval", async |browser| {
        let body = agent(&system, "Read three files.", &json!({"approve": ["read_file"]}));
        let (exec, _stream) = system.open("/internal/agent", body).await?;
        let read = |path: &str| ("read_file", json!({"path": path}));
        system.answer(exec, 1, "May I?", &[read("src/main.rs"), read("src/nothing.rs"), read("src/reader.rs")]).await?;
        browser.open(&format!("#/executions/{exec}")).await?;
        browser.until("return document.querySelectorAll('.asking').length === 3").await?;
        browser.shows(".page.one .strip", "waiting").await?;
        browser.picture("approval").await?;
        let call = |n: u32| format!("[data-key='1-tool-{n}'].asking");
        browser.press(&format!("{} .primary", call(0))).await?;
        browser.until("return document.querySelectorAll('.asking').length === 2").await?;
        browser.press(&format!("{} .row button:nth-of-type(2)", call(1))).await?;
        let edit = browser.find(&format!("{} textarea", call(1))).await?;
        edit.clear().await?;
        edit.send_keys("{\"path\": ").await?;
        browser.press(&format!("{} .primary", call(1))).await?;
        browser.shows(".asking .error", "This is not JSON").await?;
        browser.picture("approval-edit").await?;
        edit.clear().await?;
        edit.send_keys("{\"path\": \"src/liveness.rs\"}").await?;
        browser.press(&format!("{} .primary", call(1))).await?;
        browser.until("return document.querySelectorAll('.asking').length === 1").await?;
        browser.find(&format!("{} input[name=reason]", call(2))).await?.send_keys("not that one").await?;
        browser.press(&format!("{} .danger", call(2))).await?;
        browser.until("return document.querySelectorAll('.asking').length === 0").await?;
        system.answer(exec, 2, "Two were read.", &[]).await?;
        system.ended(exec).await?;
        browser.shows(".talk", "Two were read.").await?;
        browser.picture("approval-done").await?;
        let log = system.prove(exec).await?;
        let resolved: Vec<Verdict> = (events(&log).into_iter().flatten())
            .filter_map(|event| if let Event::ApprovalResolved(e) = event { Some(e.verdict) } else { None })
            .collect();
        assert_eq!(resolved, [Verdict::Allow, Verdict::Edit, Verdict::Deny]);
        let said = log.iter().filter_map(|stored| schemas::Fact::read(&stored.payload).ok());
        let reasons: Vec<Option<String>> = said
            .filter_map(
                |fact| if let FactBody::ApprovalDecided(decided) = fact.body { Some(decided.reason) } else { None },
            )
            .collect();
        assert_eq!(reasons, [None, None, Some("not that one".to_owned())]);
        Ok(())
    })
    .await
}
