//! A bucket of an S3-compatible server. Credentials and addresses come from the variables of the AWS tools.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use towpath_core::{Error, Result};

use towpath::net::certificate;

/// Bytes of a part. S3 takes 10,000 parts of an object, and the largest segment has 1 GiB.
const PART: usize = 8 << 20;

/// Parts of a file that are on their way at once.
const PARTS: usize = 4;

/// Most characters of an error of the client, which may have the body of an answer in it.
const ANSWER: usize = 400;

/// Timeout of one request, and of its retries.
const REQUEST: Duration = Duration::from_secs(60);
const RETRIES: Duration = Duration::from_secs(60);

/// Objects below a prefix of a bucket.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<AmazonS3>,
    prefix: Path,
    url: String,
}

impl fmt::Debug for Bucket {
    /// Without the client, which has credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.url).finish()
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Bucket {
    /// The bucket and prefix of `s3://BUCKET/PREFIX`.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("s3://").unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        if bucket.is_empty() || prefix.is_empty() || bucket.contains(['@', '?']) {
            return Err(Error::invalid(format!(
                "`{url}` names no bucket and prefix; expected `s3://BUCKET/PREFIX`"
            )));
        }
        certificate::install_provider();
        let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let options = ClientOptions::new()
            .with_timeout(REQUEST)
            // An address without TLS is only used when the variable says so.
            .with_allow_http(
                endpoint
                    .as_ref()
                    .is_some_and(|url| url.starts_with("http://")),
            );
        let mut builder = AmazonS3Builder::from_env()
            .with_client_options(options)
            .with_retry(RetryConfig {
                retry_timeout: RETRIES,
                ..RetryConfig::default()
            })
            .with_bucket_name(bucket);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let store = builder.build().map_err(|error| {
            Error::invalid(
                "S3 cannot be used; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for a server that is not AWS, AWS_ENDPOINT_URL",
            )
            .with_source(error)
        })?;
        let prefix = Path::parse(prefix).map_err(|error| {
            Error::invalid(format!("the prefix of `{url}` cannot be used")).with_source(error)
        })?;
        Ok(Self {
            store: Arc::new(store),
            url: format!("s3://{bucket}/{prefix}"),
            prefix,
        })
    }

    /// Every object, its name without the prefix, with its length.
    pub(super) async fn list(&self) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        let mut objects = self.store.list(Some(&self.prefix));
        while let Some(object) = objects
            .try_next()
            .await
            .map_err(|e| self.failed("list", e))?
        {
            let below: Vec<_> = match object.location.prefix_match(&self.prefix) {
                Some(parts) => parts.map(|part| part.as_ref().to_owned()).collect(),
                None => continue,
            };
            found.push((below.join("/"), object.size));
        }
        found.sort();
        Ok(found)
    }

    /// Begins an object, which is there once it is finished.
    pub(super) async fn upload(&self, name: &str) -> Result<Upload> {
        let upload = self.store.put_multipart(&self.at(name)).await;
        let upload = upload.map_err(|error| self.failed("write", error))?;
        Ok(Upload {
            writer: WriteMultipart::new_with_chunk_size(upload, PART),
            bucket: self.clone(),
        })
    }

    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        let put = self.store.put(&self.at(name), bytes.into()).await;
        put.map(drop).map_err(|error| self.failed("write", error))
    }

    pub(super) async fn read(&self, name: &str) -> Result<BoxStream<'static, Result<Bytes>>> {
        let bucket = self.clone();
        match self.store.get(&self.at(name)).await {
            Ok(found) => Ok(found
                .into_stream()
                .map_err(move |error| bucket.failed("read", error))
                .boxed()),
            Err(object_store::Error::NotFound { .. }) => {
                Err(Error::not_found(format!("`{name}` is missing")))
            }
            Err(error) => Err(self.failed("read", error)),
        }
    }

    pub(super) async fn delete(&self, name: &str) -> Result<()> {
        match self.store.delete(&self.at(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", error)),
        }
    }

    fn at(&self, name: &str) -> Path {
        let parts = name.split('/').map(object_store::path::PathPart::from);
        self.prefix.parts().chain(parts).collect()
    }

    /// Of the client's chain of errors, which repeats itself, the first and the last; of a server's answer the beginning.
    fn failed(&self, what: &str, error: object_store::Error) -> Error {
        let first: String = error.to_string().chars().take(ANSWER).collect();
        let mut last: &dyn std::error::Error = &error;
        while let Some(source) = last.source() {
            last = source;
        }
        let last: String = last.to_string().chars().take(ANSWER).collect();
        let reason = match first.contains(&last) {
            true => first,
            false => format!("{first}: {last}"),
        };
        Error::unavailable(format!("cannot {what} `{}`: {reason}", self.url))
    }
}

/// An object that is being written.
pub(super) struct Upload {
    writer: WriteMultipart,
    bucket: Bucket,
}

impl Upload {
    pub(super) async fn push(&mut self, bytes: Bytes) -> Result<()> {
        self.writer
            .wait_for_capacity(PARTS)
            .await
            .map_err(|error| self.bucket.failed("write", error))?;
        self.writer.put(bytes);
        Ok(())
    }

    pub(super) async fn abort(self) {
        if let Err(error) = self.writer.abort().await {
            tracing::debug!(%error, "parts of an object not removed");
        }
    }

    pub(super) async fn finish(self) -> Result<()> {
        let finished = self.writer.finish().await;
        finished
            .map(drop)
            .map_err(|error| self.bucket.failed("write", error))
    }
}
