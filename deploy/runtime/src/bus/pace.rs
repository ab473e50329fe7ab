//! How fast the server takes what a connection publishes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, Subject, Subscriber};
use futures::StreamExt;
use tokio::sync::Mutex;

/// How long a round may take before nobody waits for it any more.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// Round trips over one connection, shared by all that wait.
///
/// The server works through what a connection sends in its order, so what was published before an echo was asked for is
/// taken when the echo comes back. One echo is under way at a time: the next serves all that have asked meanwhile.
pub(super) struct Pace {
    client: Client,
    asked: AtomicU64,
    echo: Mutex<Echo>,
}

#[derive(Default)]
struct Echo {
    /// Where echoes come back, once there was one.
    replies: Option<(Subject, Subscriber)>,
    /// Echoes asked for.
    sent: u64,
    /// Who asked up to this number need not wait.
    served: u64,
    /// The newest echo came back.
    came: bool,
}

impl Pace {
    pub(super) fn new(client: &Client) -> Self {
        Self { client: client.clone(), asked: AtomicU64::new(0), echo: Mutex::default() }
    }

    /// Waits until the server has taken what was published before, at most for two rounds; false when it has not. Cancel
    /// safe.
    pub(super) async fn taken(&self) -> bool {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut echo = self.echo.lock().await;
        if echo.served < mine {
            let upto = self.asked.load(Ordering::SeqCst);
            let round = echo.round(&self.client);
            let came = tokio::time::timeout(BEHIND_MAX, round).await.ok().flatten();
            echo.came = came.is_some();
            echo.served = upto;
        }
        echo.came
    }
}

impl Echo {
    /// One round trip; none when the connection is closed.
    async fn round(&mut self, client: &Client) -> Option<()> {
        let (inbox, replies) = match &mut self.replies {
            Some(there) => there,
            none => {
                let inbox = Subject::from(client.new_inbox());
                let replies = client.subscribe(inbox.clone()).await.ok()?;
                none.insert((inbox, replies))
            }
        };
        self.sent += 1;
        let number = self.sent.to_be_bytes();
        client.publish(inbox.clone(), number.to_vec().into()).await.ok()?;
        // An echo that nobody waited for any more may come first.
        while replies.next().await?.payload[..] != number {}
        Some(())
    }
}
