//! Every page on a desk and on a phone, light and dark: nothing overflows, text can be read, the keyboard is enough.

use pipeline_tests::System;
use serde_json::{Value, json};

use crate::browser::{DESK, PHONE, story};
use crate::{agent, lists};

const PAGES: [(&str, &str); 5] = [
    ("executions", "main h1"),
    ("workers", ".worker, .notice"),
    ("models", ".models tbody tr"),
    ("dead-letters", ".empty"),
    ("health", ".cards .card"),
];

/// What sticks out of the page to the right, if anything.
const OVERFLOW: &str = "const wide = document.documentElement.scrollWidth > innerWidth + 1;
    return wide ? [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, pre, .segments, .entries'))
        .slice(0, 3).map(e => e.outerHTML.slice(0, 200)).join('\\n') || 'something' : null";

/// Texts with too little contrast for WCAG AA (4.5, or 3 where they are large), against the nearest ground that is painted.
const FAINT: &str = include_str!("contrast.js");

#[tokio::test]
async fn every_page_fits_and_can_be_read_on_a_desk_and_a_phone_in_light_and_dark() -> anyhow::Result<()> {
    let system = System::start().await?;
    let (exec, _stream) = system
        .open("/internal/agent", agent(&system, "Where is Liveness defined?", &json!({"max_iterations": 3})))
        .await?;
    system.ended(exec).await?;
    story(&system, "looks", async |browser| {
        browser.open("#/executions").await?;
        let one = format!("executions/{exec}");
        let pages = PAGES.into_iter().chain([(one.as_str(), ".waterfall .rows li")]);
        for (page, ready) in pages {
            for (place, size) in [("desk", DESK), ("phone", PHONE)] {
                for scheme in ["light", "dark"] {
                    browser.size(size).await?;
                    browser.colours(scheme).await?;
                    browser.go(&format!("#/{page}")).await?;
                    browser.find(ready).await?;
                    browser.until("return !document.querySelector('[aria-busy=true]')").await?;
                    let name = page.split('/').next().filter(|_| page == one).map_or(page, |_| "execution");
                    browser.picture(&format!("{name}-{place}-{scheme}")).await?;
                    assert_eq!(browser.run(OVERFLOW).await?, Value::Null, "{page} on a {place}");
                    assert_eq!(browser.run(FAINT).await?, json!([]), "{page} in {scheme} on a {place}");
                    let nameless = "return [...document.querySelectorAll('button, a, input, select, textarea')].filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.title || e.type === 'hidden')).map(e => e.outerHTML)";
                    assert_eq!(browser.run(nameless).await?, json!([]), "{page}: every control has a name");
                }
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_keyboard_is_enough() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker", "analysis-worker"]).await?;
    let first = system.submit("First?").await?;
    let second = system.submit("Second?").await?;
    for exec in [first, second] {
        system.log_until(exec, |log| log.len() >= 2).await?;
    }
    story(&system, "keyboard", async |browser| {
        browser.open("#/health").await?;
        browser.find(".cards .card").await?;
        browser.keys("?").await?;
        browser.shows("dialog.shortcuts", "Everywhere").await?;
        browser.picture("shortcuts").await?;
        browser.keys("\u{e00c}").await?;
        browser.until("return !document.querySelector('dialog')").await?;
        browser.keys("gw").await?;
        browser.until("return location.hash === '#/workers'").await?;
        browser.keys("t").await?;
        browser.until("return document.documentElement.dataset.theme === 'light'").await?;
        browser.keys("t").await?;
        browser.until("return document.documentElement.dataset.theme === 'dark' && localStorage.getItem('vlinders.theme') === 'dark'").await?;
        browser.keys("t").await?;
        browser.keys("ge").await?;
        if lists(&system).await? {
            browser.until("return document.querySelectorAll('.executions tbody tr').length === 2").await?;
            browser.keys("j").await?;
            browser.until("return document.activeElement.closest('tr')?.classList.contains('selected')").await?;
            // Where the focus is can be seen.
            browser.until("return getComputedStyle(document.activeElement).outlineStyle === 'solid'").await?;
            browser.picture("keyboard").await?;
            browser.keys("j\u{e007}").await?;
        } else {
            browser.find(".by-id input").await?.send_keys(&format!("{first}\u{e007}")).await?;
        }
        browser.until(&format!("return location.hash === '#/executions/{first}'")).await?;
        browser.shows(".page.one h1", "First?").await?;
        browser.keys("3").await?;
        browser.until("return document.querySelector('[role=tab][aria-selected=true]').innerText === 'State'").await?;
        browser.keys("u").await?;
        browser.until("return location.hash === '#/executions'").await?;
        Ok(())
    })
    .await
}
