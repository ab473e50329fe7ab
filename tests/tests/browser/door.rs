//! The console asks for the secret once, says when it is wrong, and keeps it where the reader wants it.

use pipeline_tests::System;
use reqwest::header;

use crate::browser::{SECRET, story};

#[tokio::test]
async fn a_wrong_secret_is_said_and_the_right_one_opens_the_console() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker", "analysis-worker", "tool-worker"]).await?;
    story(&system, "door", async |browser| {
        browser.go("").await?;
        browser.picture("door").await?;
        let secret = browser.find("input[name=secret]").await?;
        secret.send_keys("hush").await?;
        browser.press("button[type=submit]").await?;
        browser.shows("#said", "This is not the secret of this server.").await?;
        browser.picture("door-wrong").await?;
        secret.clear().await?;
        secret.send_keys(SECRET).await?;
        browser.press("button[type=submit]").await?;
        browser.find("nav a[aria-current=page]").await?;
        // The tab knows it, the browser does not.
        let kept = "return [sessionStorage.getItem('vlinders.secret'), localStorage.getItem('vlinders.secret')]";
        assert_eq!(browser.run(kept).await?, serde_json::json!([SECRET, null]));

        browser.run("sessionStorage.setItem('vlinders.secret', 'changed')").await?;
        browser.go("#/executions").await?;
        browser.shows("#said", "The gateway does not take this secret any more.").await?;
        browser.find("input[name=secret]").await?.send_keys(SECRET).await?;
        browser.press("input[name=keep]").await?;
        browser.press("button[type=submit]").await?;
        browser.find("nav a[aria-current=page]").await?;
        assert_eq!(browser.run("return localStorage.getItem('vlinders.secret')").await?, SECRET);
        browser.press("[aria-label='Forget the secret']").await?;
        browser.find("input[name=secret]").await?;
        assert_eq!(browser.run(kept).await?, serde_json::json!([null, null]));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn files_of_the_console_need_no_secret_and_bind_the_browser() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker", "analysis-worker", "tool-worker"]).await?;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let moved = client.get(format!("{}/console", system.http)).send().await?;
    assert_eq!((moved.status().as_u16(), moved.headers()[header::LOCATION].to_str()?), (308, "/console/"));
    let page = client.get(format!("{}/console/", system.http)).send().await?;
    assert_eq!(page.status(), 200);
    let headers = page.headers().clone();
    assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert!(headers[header::CONTENT_SECURITY_POLICY].to_str()?.starts_with("default-src 'none'; script-src 'self'; "));
    let again = client.get(format!("{}/console/", system.http)).header(header::IF_NONE_MATCH, &headers[header::ETAG]);
    assert_eq!(again.send().await?.status(), 304);
    assert_eq!(client.get(format!("{}/console/nothing.js", system.http)).send().await?.status(), 404);
    Ok(())
}
