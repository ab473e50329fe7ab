//! A Chromium of our own, driven through chromedriver: opens pages, looks for what they show, presses and types, takes
//! pictures, and keeps the pages' errors and every address that they ask.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use futures::FutureExt;
use pipeline_tests::{PATIENCE, System, free_port};
use serde_json::{Value, json};
use thirtyfour::extensions::query::ElementQueryable;
use thirtyfour::{By, Capabilities, WebDriver, WebElement};
use tokio::process::{Child, Command};

/// The secret of every test's gateway.
pub(crate) const SECRET: &str = "test-secret";
/// The sizes of pictures: a desk, and a phone.
pub(crate) const DESK: (u32, u32) = (1_440, 900);
pub(crate) const PHONE: (u32, u32) = (390, 844);
/// How often a page is looked at while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One browser with one page, at the gateway of one system.
#[derive(Clone)]
pub(crate) struct Browser {
    driver: WebDriver,
    http: String,
}

/// Tells a story to a browser, then closes it, however the story ended: at the end nothing may have gone wrong on the
/// page, and nobody but the gateway may have been asked.
pub(crate) async fn story(
    system: &System,
    name: &str,
    tell: impl AsyncFnOnce(Browser) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(mut driver) = Driver::start().await? else { return Ok(()) };
    let session = connect(driver.port).await?;
    let browser = Browser { driver: session.clone(), http: system.http.clone() };
    let told = AssertUnwindSafe(tokio::time::timeout(3 * PATIENCE, tell(browser.clone()))).catch_unwind().await;
    let told = match told {
        Ok(told) => Ok(told.unwrap_or_else(|_| Err(anyhow!("the story took too long")))),
        Err(panic) => Err(panic),
    };
    let behaved = match &told {
        Ok(Ok(())) => browser.behaved().await,
        _ => browser.picture(&format!("{name}-failed")).await,
    };
    let _ = session.quit().await;
    let _ = driver.child.kill().await;
    let told = told.unwrap_or_else(|panic| resume_unwind(panic));
    told.and(behaved).with_context(|| format!("{name}\n{}", system.log()))
}

struct Driver {
    child: Child,
    port: u16,
}

impl Driver {
    /// Starts chromedriver. None where the programs are missing, which is said; in CI that is an error.
    #[expect(clippy::disallowed_methods, reason = "whether this is CI stands in the environment")]
    async fn start() -> anyhow::Result<Option<Self>> {
        let quiet = |program: &str| {
            let mut command = Command::new(program);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            command
        };
        let there =
            async |program: &str| quiet(program).arg("--version").status().await.is_ok_and(|status| status.success());
        if !there("chromedriver").await || !there("chromium").await {
            let missing = "chromium or chromedriver is missing: deploy/test installs both";
            ensure!(std::env::var("CI").as_deref() != Ok("true"), missing);
            println!("SKIPPED: {missing}");
            return Ok(None);
        }
        let port = free_port()?;
        let child = quiet("chromedriver").arg(format!("--port={port}")).spawn()?;
        let open = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, open).await.context("chromedriver did not open its port")?;
        Ok(Some(Self { child, port }))
    }
}

async fn connect(port: u16) -> anyhow::Result<WebDriver> {
    let (width, height) = DESK;
    let capabilities = json!({
        "goog:chromeOptions": {
            "args": [
                "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars",
                "--force-color-profile=srgb", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--no-first-run", "--lang=en-GB", format!("--window-size={width},{height}"),
            ],
            "perfLoggingPrefs": {"enableNetwork": true, "enablePage": false},
        },
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    });
    let Value::Object(capabilities) = capabilities else { bail!("capabilities are an object") };
    Ok(WebDriver::new(format!("http://127.0.0.1:{port}"), Capabilities::from(capabilities)).await?)
}

impl Browser {
    /// Opens a page of the console, with the secret as if it had been given before.
    pub(crate) async fn open(&self, page: &str) -> anyhow::Result<()> {
        self.driver.goto(format!("{}/console/icon.svg", self.http)).await?;
        self.run(&format!("sessionStorage.setItem('vlinders.secret', '{SECRET}')")).await?;
        self.go(page).await
    }

    /// Goes to a page of the console, loaded anew.
    pub(crate) async fn go(&self, page: &str) -> anyhow::Result<()> {
        self.driver.goto("about:blank").await.context("leave the page")?;
        Ok(self.driver.goto(format!("{}/console/{page}", self.http)).await?)
    }

    /// Runs a function's body in the page; returns what it returns.
    pub(crate) async fn run(&self, script: &str) -> anyhow::Result<Value> {
        Ok(self.driver.execute(script, Vec::<Value>::new()).await?.json().clone())
    }

    /// The same for one that calls the function that is its last argument.
    pub(crate) async fn run_until_called(&self, script: &str) -> anyhow::Result<Value> {
        Ok(self.driver.execute_async(script, Vec::<Value>::new()).await?.json().clone())
    }

    /// Waits for an element.
    pub(crate) async fn find(&self, css: &str) -> anyhow::Result<WebElement> {
        let found = self.driver.query(By::Css(css)).wait(PATIENCE, LOOK_EVERY).first().await;
        match found {
            Ok(element) => Ok(element),
            Err(error) => {
                let shown = self.run("return document.body?.innerText").await.unwrap_or_default();
                Err(error)
                    .with_context(|| format!("no {css} on a page that says\n{}", shown.as_str().unwrap_or_default()))
            }
        }
    }

    /// Waits for an element and presses it.
    pub(crate) async fn press(&self, css: &str) -> anyhow::Result<()> {
        // A page that draws anew may have put another element in its place meanwhile.
        for _ in 0..3 {
            if self.find(css).await?.click().await.is_ok() {
                return Ok(());
            }
        }
        Ok(self.find(css).await?.click().await?)
    }

    /// Waits until what an element shows holds a text; capitals are the style's affair.
    pub(crate) async fn shows(&self, css: &str, text: &str) -> anyhow::Result<()> {
        let (css, text) = (json!(css), json!(text.to_lowercase()));
        let holds = format!("e => (e.innerText ?? e.textContent).toLowerCase().includes({text})");
        let there = self.until(&format!("return [...document.querySelectorAll({css})].some({holds})")).await;
        there.with_context(|| format!("{css} shows {text}"))
    }

    /// Waits until a function's body returns something true.
    pub(crate) async fn until(&self, script: &str) -> anyhow::Result<()> {
        let wait = async {
            loop {
                let value = self.run(script).await?;
                if value.as_bool().unwrap_or(!value.is_null()) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let Ok(found) = tokio::time::timeout(PATIENCE, wait).await else {
            let shown = self.run("return location.hash + '\\n' + document.body.innerText").await?;
            bail!("never came true: {script}\non a page that says\n{}", shown.as_str().unwrap_or_default());
        };
        found
    }

    /// Presses keys as a person does, one after the other, wherever the focus is.
    pub(crate) async fn keys(&self, keys: &str) -> anyhow::Result<()> {
        let pressed = keys.chars().fold(self.driver.action_chain(), |chain, key| chain.key_down(key).key_up(key));
        Ok(pressed.perform().await?)
    }

    /// Makes the page as large as a desk's or a phone's.
    pub(crate) async fn size(&self, (width, height): (u32, u32)) -> anyhow::Result<()> {
        let phone = width < 500;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": if phone { 2 } else { 1 }, "mobile": phone});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics).await
    }

    /// Light or dark, as the system would have it.
    pub(crate) async fn colours(&self, scheme: &str) -> anyhow::Result<()> {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", &features).await
    }

    async fn devtools(&self, method: &str, parameters: &Value) -> anyhow::Result<()> {
        self.driver.cdp().send_raw(method, parameters).await?;
        Ok(())
    }

    /// Keeps a picture of the page, and says where.
    pub(crate) async fn picture(&self, name: &str) -> anyhow::Result<()> {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("console");
        std::fs::create_dir_all(&folder)?;
        let file = folder.join(format!("{name}.png"));
        std::fs::write(&file, self.driver.screenshot_as_png().await?)?;
        println!("{}", file.display());
        Ok(())
    }

    /// No error on the page, and nobody asked but the gateway.
    async fn behaved(&self) -> anyhow::Result<()> {
        for entry in self.driver.get_log("browser").await? {
            // The browser reports answers of 400 and above; those that a story provokes are answers, no errors of the page.
            let answered = entry.message.contains("the server responded with a status of");
            ensure!(entry.level != "SEVERE" || answered, "the page reports {}", entry.message);
        }
        for entry in self.driver.get_log("performance").await? {
            let event: Value = serde_json::from_str(&entry.message)?;
            let event = &event["message"];
            if event["method"] == "Network.requestWillBeSent" {
                let url = event["params"]["request"]["url"].as_str().unwrap_or_default();
                let ours =
                    url.starts_with(&self.http) || ["blob:", "data:", "about:"].iter().any(|own| url.starts_with(own));
                ensure!(ours, "the page asked {url}");
            }
        }
        Ok(())
    }
}
