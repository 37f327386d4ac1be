//! Says when spans stop leaving, and when they leave again: once each, not for every batch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// An exporter whose failures are seen in the log.
#[derive(Debug)]
pub(super) struct Watched<E> {
    inner: E,
    endpoint: String,
    failing: AtomicBool,
}

impl<E> Watched<E> {
    pub(super) fn new(inner: E, endpoint: &str) -> Self {
        Self {
            inner,
            endpoint: endpoint.to_owned(),
            failing: AtomicBool::new(false),
        }
    }

    /// Whether this result is news.
    fn is_news(&self, result: &OTelSdkResult) -> bool {
        self.failing.swap(result.is_err(), Ordering::Relaxed) != result.is_err()
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.inner.export(batch).await;
        if self.is_news(&result) {
            match &result {
                Ok(()) => tracing::info!(endpoint = self.endpoint, "spans are taken again"),
                Err(error) => {
                    tracing::warn!(endpoint = self.endpoint, %error, "spans are not taken and are dropped meanwhile");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[test]
    fn only_a_change_is_news() {
        let watched = Watched::new((), "http://127.0.0.1:4318");
        let failed = || Err(OTelSdkError::InternalFailure("nobody there".to_owned()));
        let news: Vec<bool> = [Ok(()), failed(), failed(), Ok(()), Ok(()), failed()]
            .iter()
            .map(|result| watched.is_news(result))
            .collect();
        assert_eq!(news, [false, true, false, true, false, true]);
    }
}
