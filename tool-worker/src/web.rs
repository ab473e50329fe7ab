//! The tools that look at the web: `web_search` asks the one configured provider, `fetch_page` fetches what it is told.
//!
//! They run in the worker, since a box has no network; every request goes through the [`Fetcher`]. What a page holds is
//! taken apart in a box, because whoever wrote it may have meant us.

mod provider;

use std::sync::Arc;

use schemas::fact::Sandbox;
use serde_json::{Map, Value};

use crate::config::Config;
use crate::failure::Failure;
use crate::fetch::{Fetcher, Page, Question};
use provider::Provider;
pub use provider::{Kind, Settings};

/// Name of the tier, as it is written in results.
pub(crate) const TIER: &str = "fetcher";
/// What holds for every request.
const ENFORCED: [&str; 5] = ["public-addresses", "size-limit", "time-limit", "text-only", "no-cookies"];
/// Results asked for unless the call says otherwise.
const RESULTS_DEFAULT: usize = 5;

/// Looks at the web. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Web {
    fetcher: Fetcher,
    provider: Option<Arc<Provider>>,
    pages: bool,
}

impl Web {
    /// Checks the configuration and reads the key.
    ///
    /// # Errors
    /// The text names the setting and what belongs there.
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        config.fetch.check()?;
        let provider = config.search.as_ref().map(Provider::new).transpose()?.map(Arc::new);
        Ok(Self { fetcher: Fetcher::new(&config.fetch), provider, pages: config.fetch.pages })
    }

    /// Why `web_search` cannot be used; none when it can.
    pub(crate) fn search_unavailable(&self) -> Option<String> {
        let next = "no search provider is configured on this server (whoever runs it can: setting tools.search)";
        self.provider.is_none().then(|| next.to_owned())
    }

    /// Why `fetch_page` cannot be used; none when it can.
    pub(crate) fn pages_unavailable(&self) -> Option<String> {
        let next = "this server fetches no pages (whoever runs it can allow it: setting tools.fetch.pages)";
        (!self.pages).then(|| next.to_owned())
    }

    /// `web_search`: titles, addresses and excerpts.
    pub(crate) async fn search(&self, arguments: &Map<String, Value>) -> Result<String, Failure> {
        let query = arguments.get("query").and_then(Value::as_str).unwrap_or_default();
        let max = arguments.get("max").and_then(Value::as_u64).and_then(|max| usize::try_from(max).ok());
        let provider = self.provider.as_ref().ok_or_else(|| Failure::refused("no search provider is configured"))?;
        provider.search(&self.fetcher, query, max.unwrap_or(RESULTS_DEFAULT)).await
    }

    /// What lies at an address.
    pub(crate) async fn page(&self, arguments: &Map<String, Value>) -> Result<Page, Failure> {
        let url = arguments.get("url").and_then(Value::as_str).unwrap_or_default();
        let page = self.fetcher.fetch(&Question::page(url)).await?;
        if page.status.is_success() {
            return Ok(page);
        }
        Err(Failure::bad_request(format!("{} answered {}; there is nothing to read", page.url, page.status)))
    }

    /// What held for a request.
    pub(crate) fn report() -> Sandbox {
        Sandbox { tier: TIER.to_owned(), enforced: ENFORCED.map(str::to_owned).to_vec() }
    }
}
