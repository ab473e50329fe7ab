//! The secrets that callers show: one, or two while an old one is replaced by a new one.
//!
//! A file holds one a line and is read again when it changes, so that secrets rotate while requests go on: add the new
//! one, let the callers change, take the old one away.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use runtime::Tasks;
use runtime::config::Secret;
use subtle::{Choice, ConstantTimeEq};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Secrets that count. Cheap to clone; clones see what changes.
#[derive(Clone, Debug)]
pub struct Secrets {
    file: Option<PathBuf>,
    current: Arc<RwLock<Vec<Secret>>>,
}

impl Secrets {
    /// The secrets of a text, one a line.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { file: None, current: Arc::new(RwLock::new(lines(text))) }
    }

    /// The same, which stand in a file that is followed.
    #[must_use]
    pub fn of_file(text: &str, file: PathBuf) -> Self {
        Self { file: Some(file), ..Self::new(text) }
    }

    /// Whether these bytes are one of the secrets, found out in a time that does not depend on how they differ.
    pub(crate) fn hold(&self, given: &[u8]) -> bool {
        let current = self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let fits = |secret: &Secret| given.ct_eq(secret.expose().as_bytes());
        bool::from(current.iter().map(fits).fold(Choice::from(0), |any, fits| any | fits))
    }

    /// Reads the file whenever it changes. One that cannot be read, or holds no secret, changes nothing.
    pub(crate) fn follow(&self, tasks: &Tasks) {
        let Some(file) = self.file.clone() else { return };
        let this = self.clone();
        tasks.spawn_background(async move {
            let changed = || std::fs::metadata(&file).and_then(|found| found.modified()).ok();
            let mut seen: Option<SystemTime> = changed();
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let now = changed();
                if now == seen {
                    continue;
                }
                seen = now;
                match std::fs::read_to_string(&file).map(|text| lines(&text)) {
                    Ok(secrets) if !secrets.is_empty() => {
                        tracing::info!(file = %file.display(), secrets = secrets.len(), "the secrets were read again");
                        *this.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = secrets;
                    }
                    Ok(_) => tracing::warn!(file = %file.display(), "the file holds no secret; the old ones count"),
                    Err(error) => {
                        tracing::warn!(file = %file.display(), %error, "the secrets cannot be read; the old ones count");
                    }
                }
            }
        });
    }
}

fn lines(text: &str) -> Vec<Secret> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| Secret::new(line.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_secret_and_nothing_else_is() {
        let secrets = Secrets::new("old\n\n  new \n");
        assert!(secrets.hold(b"old") && secrets.hold(b"new"));
        for wrong in ["", "ol", "old\n", "older", "old\n\n  new \n"] {
            assert!(!secrets.hold(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(!Secrets::new("").hold(b""));
    }
}
