//! What every Remuda process shares: settings, logs and traces, TLS, listening, shutdown, metrics.
//!
//! | module | what it owns |
//! |---|---|
//! | [`config`] | flags over environment over `remuda.toml` over defaults, from one declaration per setting |
//! | [`telemetry`] | log output, the OTLP exporter, W3C trace context |
//! | [`tls`], [`certs`] | rustls configurations, what a refusal means, a private CA |
//! | [`listen`] | listeners, the accept loop, the rule about open addresses |
//! | [`shutdown`], [`exit`] | signals, draining, exit codes |
//! | [`metrics`] | the registry behind `/metrics` |
//! | [`secret`], [`core_dumps`] | keeping secrets out of logs and dumps |
//! | [`open_files`] | the limit of open files |
//!
//! It knows nothing about pools, tasks or HTTP routes.
//!
//! A daemon's main reads like this:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::time::Duration;
//!
//! use daemon::config::{self, Sources};
//! use daemon::shutdown::Shutdown;
//! use daemon::telemetry::{self, TelemetrySettings};
//!
//! #[derive(Debug, clap::Args)]
//! struct Settings {
//!     #[command(flatten)]
//!     telemetry: TelemetrySettings,
//! }
//!
//! impl config::Settings for Settings {
//!     const SECTION: &'static str = "orchestratord";
//!     const ABOUT: &'static str = "The control plane";
//! }
//!
//! fn main() -> ExitCode {
//!     daemon::exit::run(|| {
//!         let settings = config::load::<Settings>(&Sources::process())?.settings;
//!         daemon::core_dumps::switch_off();
//!         daemon::tls::install_provider();
//!         let telemetry = telemetry::init("orchestratord", &settings.telemetry)?;
//!         let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//!         let outcome = runtime.block_on(async {
//!             let shutdown = Shutdown::new();
//!             shutdown.listen_to_signals()?;
//!             // listen, spawn with `shutdown.spawn(name, kind, task)`, ...
//!             let drained = shutdown.drain(Duration::from_secs(30)).await;
//!             anyhow::Ok(shutdown.outcome(drained)?)
//!         });
//!         drop(runtime);
//!         telemetry.shutdown(Duration::from_secs(2));
//!         outcome
//!     })
//! }
//! ```

pub mod certs;
pub mod config;
pub mod core_dumps;
pub mod exit;
pub mod listen;
pub mod metrics;
pub mod open_files;
pub mod secret;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
