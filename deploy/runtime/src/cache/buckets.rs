//! Results and leases in buckets of the bus. A lease is an entry that its bucket forgets when it is not renewed; its number
//! is the revision with which it was made, which the server counts up for the whole bucket.

use async_nats::jetstream::kv::{CreateErrorKind, Entry, Operation, Store, UpdateErrorKind};
use bytes::Bytes;
use schemas::stream::BUCKET_LEASES;
use tokio::sync::OnceCell;

use super::{Answer, fence, told};
use crate::Bus;

/// Tries against others who put at the same moment.
const TRIES: u32 = 8;

pub(super) struct Buckets {
    bus: Bus,
    results: OnceCell<Store>,
    tool_results: OnceCell<Store>,
    leases: OnceCell<Store>,
}

impl Buckets {
    pub(super) fn new(bus: Bus) -> Self {
        let (results, tool_results, leases) = Default::default();
        Self { bus, results, tool_results, leases }
    }

    /// A bucket, opened when it is first used.
    async fn bucket(&self, name: &'static str) -> Answer<&Store> {
        let cell = match name {
            schemas::stream::BUCKET_RESULTS => &self.results,
            BUCKET_LEASES => &self.leases,
            _ => &self.tool_results,
        };
        cell.get_or_try_init(|| self.bus.bucket(name)).await.map_err(told)
    }

    pub(super) async fn ping(&self) -> Answer<()> {
        if self.bus.is_connected() { Ok(()) } else { Err("the bus is not connected".to_owned()) }
    }

    pub(super) async fn get(&self, bucket: &'static str, key: &str) -> Answer<Option<Bytes>> {
        self.bucket(bucket).await?.get(key).await.map_err(told)
    }

    /// Writes a framed value; under a lease only over what an earlier one has put.
    pub(super) async fn put(&self, bucket: &'static str, key: &str, framed: Bytes, leased: bool) -> Answer<bool> {
        let bucket = self.bucket(bucket).await?;
        if !leased {
            return bucket.put(key, framed).await.map(|_| true).map_err(told);
        }
        for _ in 0..TRIES {
            let written = match there(bucket, key).await? {
                Some(entry) if fence(&entry.value) > fence(&framed) => return Ok(false),
                Some(entry) => match bucket.update(key, framed.clone(), entry.revision).await {
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => None,
                    written => Some(written.map_err(told)?),
                },
                None => match bucket.create(key, framed.clone()).await {
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => None,
                    written => Some(written.map_err(told)?),
                },
            };
            if written.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The number of a new lease; none when there is one.
    pub(super) async fn take(&self, bucket: &'static str, key: &str) -> Answer<Option<u64>> {
        match self.bucket(BUCKET_LEASES).await?.create(name(bucket, key), Bytes::new()).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(told(error)),
        }
    }

    /// Lets a lease last anew; says whether it still stood.
    pub(super) async fn renew(&self, bucket: &'static str, key: &str, number: u64) -> Answer<bool> {
        let (leases, name) = (self.bucket(BUCKET_LEASES).await?, name(bucket, key));
        let Some(entry) = there(leases, &name).await?.filter(|entry| is(entry, number)) else { return Ok(false) };
        match leases.update(&name, number.to_string().into(), entry.revision).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(told(error)),
        }
    }

    pub(super) async fn give_back(&self, bucket: &'static str, key: &str, number: u64) -> Answer<()> {
        let (leases, name) = (self.bucket(BUCKET_LEASES).await?, name(bucket, key));
        match there(leases, &name).await? {
            // Refused when it has lapsed and another one stands there meanwhile.
            Some(entry) if is(&entry, number) => {
                leases.delete_expect_revision(&name, Some(entry.revision)).await.map_err(told)
            }
            _ => Ok(()),
        }
    }
}

/// What stands under a key now.
async fn there(bucket: &Store, key: &str) -> Answer<Option<Entry>> {
    let entry = bucket.entry(key).await.map_err(told)?;
    Ok(entry.filter(|entry| entry.operation == Operation::Put))
}

/// A lease that was renewed holds its number, one that was not is its own.
fn is(entry: &Entry, number: u64) -> bool {
    match entry.value.is_empty() {
        true => entry.revision == number,
        false => *entry.value == *number.to_string().as_bytes(),
    }
}

fn name(bucket: &str, key: &str) -> String {
    format!("{bucket}.{key}")
}
