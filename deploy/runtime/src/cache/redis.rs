//! Results and leases in a Redis server, or one that speaks its protocol. Whatever must not be torn apart is one script.
//!
//! | key | value | lives |
//! |---|---|---|
//! | `PREFIX:results:HASH`, `PREFIX:tool_results:HASH` | the fence, and the result | as long as results are kept |
//! | `PREFIX:lease:results:HASH`, … | the number of the lease | until it is given back, or not renewed |
//! | `PREFIX:leases` | the greatest number given out | for good |

use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, FromRedisValue, RedisResult, Script, ScriptInvocation, cmd};
use bytes::Bytes;
use schemas::stream::LEASE_TTL;
use tokio::sync::OnceCell;

use super::{Answer, Space, told};
use crate::config::Secret;

/// Numbers grow by the server's clock, so that they grow on when it comes back without its memory.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('EXISTS', KEYS[1]) == 1 then return false end
         local time = redis.call('TIME')
         local last = tonumber(redis.call('GET', KEYS[2]) or '0')
         local number = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
         redis.call('SET', KEYS[2], number)
         redis.call('SET', KEYS[1], number, 'PX', ARGV[1])
         return number",
    )
});
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
         return redis.call('PEXPIRE', KEYS[1], ARGV[2])",
    )
});
static GIVE_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")
});
/// The fence stands in front, in digits of one length: compared as texts they are compared as numbers.
static PUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local fence = string.sub(ARGV[1], 1, 16)
         if fence ~= '0000000000000000' and redis.call('GETRANGE', KEYS[1], 0, 15) > fence then return 0 end
         redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
         return 1",
    )
});

pub(super) struct Redis {
    client: Client,
    connection: OnceCell<ConnectionManager>,
    prefix: String,
    place: String,
    timeout: Duration,
}

impl Redis {
    pub(super) fn new(url: &Secret, prefix: &str, timeout: Duration) -> Result<Self, String> {
        let client = Client::open(url.expose()).map_err(|error| format!("cache.redis: {}", error.category()))?;
        let place = client.get_connection_info().addr().to_string();
        Ok(Self { client, connection: OnceCell::new(), prefix: prefix.to_owned(), place, timeout })
    }

    /// Where the server is, without its password.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) async fn ping(&self) -> Answer<()> {
        self.call(async |connection| cmd("PING").query_async::<String>(connection).await).await.map(|_| ())
    }

    pub(super) async fn get(&self, space: Space, key: &str) -> Answer<Option<Bytes>> {
        let found: Option<Vec<u8>> =
            self.call(async |connection| cmd("GET").arg(self.key(space, key)).query_async(connection).await).await?;
        Ok(found.map(Bytes::from))
    }

    pub(super) async fn put(&self, space: Space, key: &str, framed: &[u8], keep: Duration) -> Answer<bool> {
        let mut script = PUT.key(self.key(space, key));
        script.arg(framed).arg(milliseconds(keep));
        self.run(&script).await
    }

    pub(super) async fn take(&self, space: Space, key: &str) -> Answer<Option<u64>> {
        let mut script = TAKE.key(self.lease(space, key));
        script.key(format!("{}:leases", self.prefix)).arg(milliseconds(LEASE_TTL));
        self.run(&script).await
    }

    pub(super) async fn renew(&self, space: Space, key: &str, number: u64) -> Answer<bool> {
        let mut script = RENEW.key(self.lease(space, key));
        script.arg(number).arg(milliseconds(LEASE_TTL));
        self.run(&script).await
    }

    pub(super) async fn give_back(&self, space: Space, key: &str, number: u64) -> Answer<()> {
        let mut script = GIVE_BACK.key(self.lease(space, key));
        script.arg(number);
        self.run::<u64>(&script).await.map(|_| ())
    }

    async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Answer<T> {
        self.call(async |connection| script.invoke_async(connection).await).await
    }

    /// Asks, within the bound of one call: who waits could have begun by then.
    async fn call<T, F>(&self, ask: F) -> Answer<T>
    where
        F: AsyncFnOnce(&mut ConnectionManager) -> RedisResult<T>,
    {
        let asked = async {
            let config = ConnectionManagerConfig::new()
                .set_number_of_retries(0)
                .set_connection_timeout(Some(self.timeout))
                .set_response_timeout(Some(self.timeout));
            let connect = || std::future::ready(ConnectionManager::new_lazy_with_config(self.client.clone(), config));
            let mut connection = self.connection.get_or_try_init(connect).await?.clone();
            ask(&mut connection).await
        };
        within(self.timeout, asked).await.map_err(|why| format!("Redis at {}: {why}", self.place))
    }

    fn key(&self, space: Space, key: &str) -> String {
        let space = match space {
            Space::Results => "results",
            Space::ToolResults => "tool_results",
        };
        format!("{}:{space}:{key}", self.prefix)
    }

    fn lease(&self, space: Space, key: &str) -> String {
        let key = self.key(space, key);
        format!("{}:lease{}", self.prefix, &key[self.prefix.len()..])
    }
}

async fn within<T>(timeout: Duration, asked: impl Future<Output = RedisResult<T>>) -> Answer<T> {
    match tokio::time::timeout(timeout, asked).await {
        Ok(answer) => answer.map_err(told),
        Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
