//! Objects: content by the hash of its bytes, in the object store. Putting one twice stores it once; what is read is
//! held against its name before anybody sees it.

use async_nats::jetstream::object_store::{self, GetErrorKind, InfoErrorKind, ObjectMetadata, ObjectStore};
use schemas::object::{OBJECT_BYTES_MAX, Reference};
use schemas::stream;
use tokio::io::AsyncReadExt;

use super::{Bus, Error};

/// Bytes of one chunk: small enough for any server, large enough that few are synchronised to disk one by one.
const CHUNK_BYTES: usize = 512 << 10;
/// How long putting or getting one object may take.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Why an object cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is none of this name.
    #[error("object {0} is missing: it was never stored, or deleted behind the log's back")]
    Missing(String),
    /// Its bytes are not those that its name says.
    #[error("object {0} is damaged: its bytes do not have the hash of its name")]
    Damaged(String),
    /// It is larger than objects may be.
    #[error("{0} bytes are more than an object may have ({OBJECT_BYTES_MAX})")]
    TooLarge(usize),
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] Error),
}

impl Bus {
    /// Stores a content under its hash, unless it is there. When this returns, it is on disk.
    ///
    /// # Errors
    /// When it is too large, or not known to be stored. Asking again is safe.
    pub async fn put_object(&self, content: &[u8], media: &str) -> Result<Reference, ObjectError> {
        if content.len() > OBJECT_BYTES_MAX {
            return Err(ObjectError::TooLarge(content.len()));
        }
        let reference = Reference::to(content, media);
        // Boxed, like the reading: the client's own future is some twenty kilobytes.
        let put = Box::pin(async {
            let store = self.objects().await?;
            match store.info(&reference.sha256).await {
                Ok(info) if !info.deleted && info.size as u64 == reference.bytes => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == InfoErrorKind::NotFound => {}
                Err(error) => return Err(Error::broken(error)),
            }
            let meta = ObjectMetadata {
                name: reference.sha256.clone(),
                description: Some(media.to_owned()),
                chunk_size: Some(CHUNK_BYTES),
                ..ObjectMetadata::default()
            };
            let mut bytes = content;
            store.put(meta, &mut bytes).await.map(drop).map_err(|error| refused(&error.to_string()))
        });
        timely(put).await?;
        Ok(reference)
    }

    /// The content of an object and its media type.
    ///
    /// # Errors
    /// When it is missing, is not what its name says, or the server does not answer.
    pub async fn object(&self, sha256: &str) -> Result<(Vec<u8>, String), ObjectError> {
        let missing = || ObjectError::Missing(sha256.to_owned());
        if !schemas::object::is_name(sha256) {
            return Err(missing());
        }
        let get = Box::pin(async {
            let store = self.objects().await?;
            let mut object = match store.get(sha256).await {
                Ok(object) => object,
                Err(error) if error.kind() == GetErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::broken(error)),
            };
            let media = object.info().description.clone().unwrap_or_default();
            let mut content = Vec::with_capacity(object.info().size.min(OBJECT_BYTES_MAX));
            match object.read_to_end(&mut content).await {
                Ok(_) => {}
                // Chunks that are not as they were: the hash says so, too.
                Err(error) if error.to_string().to_lowercase().contains("digest") => {}
                Err(error) => return Err(Error::broken(error)),
            }
            Ok(Some((content, media)))
        });
        let (content, media) = timely(get).await?.ok_or_else(missing)?;
        if Reference::to(&content, &media).sha256 != sha256 {
            return Err(ObjectError::Damaged(sha256.to_owned()));
        }
        Ok((content, media))
    }

    /// The text that a reference stands for.
    ///
    /// # Errors
    /// When it cannot be had, or is no text.
    pub async fn text(&self, reference: &Reference) -> Result<String, ObjectError> {
        let (content, _) = self.object(&reference.sha256).await?;
        String::from_utf8(content).map_err(|_| ObjectError::Damaged(reference.sha256.clone()))
    }

    async fn objects(&self) -> Result<ObjectStore, Error> {
        self.js.get_object_store(stream::BUCKET_OBJECTS).await.map_err(Error::broken)
    }

    /// Creates the bucket where it is not there. It keeps what the log refers to, and like the log it forgets nothing.
    pub(super) async fn ensure_objects(&self) -> Result<(), Error> {
        if self.objects().await.is_ok() {
            return Ok(());
        }
        let config = object_store::Config {
            bucket: stream::BUCKET_OBJECTS.to_owned(),
            description: Some("content of the log that is too large for a message, by SHA-256".to_owned()),
            // Full means that the disk is: the server sets nothing aside.
            max_bytes: -1,
            num_replicas: self.replicas,
            compression: true,
            ..object_store::Config::default()
        };
        match self.js.create_object_store(config).await {
            Ok(_) => Ok(()),
            Err(_) if self.objects().await.is_ok() => Ok(()),
            Err(e) => Err(Error::Broken(format!("create bucket {}: {e}", stream::BUCKET_OBJECTS))),
        }
    }
}

async fn timely<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or(Err(Error::Timeout(TIMEOUT)))
}

/// A put that was refused; the client tells why only in words.
fn refused(why: &str) -> Error {
    let full = why.contains("maximum") || why.contains("resource") || why.contains("storage");
    if full { Error::Full(why.to_owned()) } else { Error::Broken(why.to_owned()) }
}
