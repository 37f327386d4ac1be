//! Logs and traces of a process.
//!
//! Logs go to standard error: for people on a terminal, JSON otherwise. Spans leave the process only when an OTLP
//! endpoint is set; then they are batched in a bounded queue by a thread of their own and dropped when the receiver
//! cannot keep up, so that nothing on the way of a task ever waits for it. Without an endpoint there is no exporter and
//! [`tracing_enabled`] is false: code on a hot path asks it before making a span.
//!
//! Ids are fields with one spelling each, which is in [`field`]. A value in a log is never a secret: secrets are
//! [`Secret`](crate::secret::Secret) and show nothing.

mod export;
pub mod trace_context;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// The one spelling of each id in logs and traces.
pub mod field {
    /// Ties together everything that one request of a client caused.
    pub const CORRELATION_ID: &str = "correlation_id";
    /// A task.
    pub const TASK_ID: &str = "task_id";
    /// A pool.
    pub const POOL_ID: &str = "pool_id";
    /// A replica.
    pub const REPLICA_ID: &str = "replica_id";
    /// A node.
    pub const NODE_ID: &str = "node_id";
}

/// Spans waiting to be sent; more are dropped.
const SPANS_QUEUED_MAX: usize = 4096;
const SPANS_PER_EXPORT_MAX: usize = 512;
const EXPORT_EVERY: Duration = Duration::from_secs(1);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

static TRACING_ENABLED: AtomicBool = AtomicBool::new(false);

/// Whether spans go anywhere. One relaxed load: cheap enough for every request.
#[inline]
pub fn tracing_enabled() -> bool {
    TRACING_ENABLED.load(Ordering::Relaxed)
}

/// Settings that every daemon has; flatten them into its own.
#[derive(Debug, Clone, clap::Args)]
pub struct TelemetrySettings {
    /// What to log: a level (error, warn, info, debug, trace) or targets with levels (info,orchestratord=debug)
    #[arg(long, env = "REMUDA_LOG", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log: String,

    /// How logs look
    #[arg(
        long,
        env = "REMUDA_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "auto"
    )]
    pub log_format: LogFormat,

    /// Where spans are sent, as OTLP over HTTP (http://127.0.0.1:4318); none are made without it
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = crate::config::http_address)]
    pub otlp_endpoint: Option<String>,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            log: "info".to_owned(),
            log_format: LogFormat::Auto,
            otlp_endpoint: None,
        }
    }
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    Auto,
    /// For people.
    People,
    /// One JSON object a line.
    Json,
}

/// Telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter refuses its settings.
    #[error("cannot send spans to {endpoint}")]
    Exporter {
        /// Where to.
        endpoint: String,
        /// Why.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Somebody else has set up logging in this process.
    #[error("logging is set up already")]
    AlreadySet(#[source] TryInitError),
}

/// What has to be ended in order, so that the last spans leave.
#[derive(Debug)]
#[must_use = "the last spans are sent by shutdown()"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Sets up logs and, with an endpoint, traces for the whole process. `service` becomes `service.name`.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(service: &'static str, settings: &TelemetrySettings) -> Result<Telemetry, TelemetryError> {
    let provider = match &settings.otlp_endpoint {
        Some(endpoint) => Some(provider(service, endpoint)?),
        None => None,
    };
    // Only our own instrumentation is at this level: HTTP libraries make their spans below it.
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(service))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(LevelFilter::INFO)
    });
    let filter = EnvFilter::try_new(&settings.log).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry()
        .with(logs(settings.log_format).with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(TelemetryError::AlreadySet)?;
    TRACING_ENABLED.store(provider.is_some(), Ordering::Relaxed);
    Ok(Telemetry { provider })
}

impl Telemetry {
    /// Sends what is left, for at most `deadline`. Blocks: call it when the runtime has ended.
    pub fn shutdown(self, deadline: Duration) {
        TRACING_ENABLED.store(false, Ordering::Relaxed);
        let Some(provider) = self.provider else { return };
        if let Err(error) = provider.shutdown_with_timeout(deadline) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

fn logs(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let people = match format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::People => true,
        LogFormat::Json => false,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if people {
        layer
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .boxed()
    } else {
        layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(true)
            .boxed()
    }
}

fn provider(service: &'static str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    // The exporter's HTTP client may need TLS.
    crate::tls::install_provider();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|source| TelemetryError::Exporter {
            endpoint: endpoint.to_owned(),
            source,
        })?;
    let batch = BatchConfigBuilder::default()
        .with_max_queue_size(SPANS_QUEUED_MAX)
        .with_max_export_batch_size(SPANS_PER_EXPORT_MAX)
        .with_scheduled_delay(EXPORT_EVERY)
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(
            BatchSpanProcessor::builder(export::Watched::new(exporter, endpoint))
                .with_batch_config(batch)
                .build(),
        )
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}

fn log_filter(text: &str) -> Result<String, String> {
    // A bare word that is no level would be taken for a target: nothing would be logged but that.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let bare = |part: &&str| !part.contains(['=', '[', ']', '{', '}']);
    let unknown = text
        .split(',')
        .map(str::trim)
        .filter(bare)
        .find(|word| !is_level(word));
    let problem = match (unknown, EnvFilter::try_new(text)) {
        (None, Ok(_)) => return Ok(text.to_owned()),
        (Some(word), _) => format!("{word:?} is no level"),
        (None, Err(error)) => error.to_string(),
    };
    Err(format!(
        "{problem}; right would be info, or info,orchestratord=debug"
    ))
}

#[cfg(test)]
mod tests;
