//! The control plane's settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use daemon::config::{self, EnvAlias};
use daemon::secret::Secret;
use daemon::telemetry::TelemetrySettings;

/// Everything that can be set, each once.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Address to listen on
    #[arg(
        long,
        env = "ORCHESTRATORD_ADDR",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:8080"
    )]
    pub addr: SocketAddr,

    /// Take reports from nodes on other machines; without it this process is its own node
    #[arg(long, env = "ORCHESTRATORD_CLOUD_PROFILE")]
    pub cloud_profile: bool,

    /// Let everybody who reaches the address use it, also from other machines
    #[arg(long, env = "ORCHESTRATORD_INSECURE")]
    pub insecure: bool,

    /// Worker threads, each with an own event loop; 0 stands for one per processor, four at the most
    #[arg(long, env = "ORCHESTRATORD_WORKERS", value_name = "N", default_value = "0")]
    pub workers: usize,

    /// After how long without a heartbeat a node is offline
    #[arg(long, env = "ORCHESTRATORD_NODE_TIMEOUT_MS", value_name = "MS", default_value = "30000",
          value_parser = config::milliseconds)]
    pub node_timeout_ms: Duration,

    /// How often silent nodes are looked for
    #[arg(long, env = "ORCHESTRATORD_STALE_CHECK_INTERVAL_SECS", value_name = "SECONDS", default_value = "10",
          value_parser = config::seconds)]
    pub stale_check_interval_secs: Duration,

    /// How often nodes are asked to send a heartbeat
    #[arg(long, env = "ORCHESTRATORD_HEARTBEAT_INTERVAL_MS", value_name = "MS", default_value = "10000",
          value_parser = config::milliseconds)]
    pub heartbeat_interval_ms: Duration,

    /// Nodes to poll, as URLs separated by commas
    #[arg(long, env = "ORCHD_POOL_MANAGERS", value_name = "URLS", value_delimiter = ',')]
    pub pool_managers: Vec<String>,

    /// A DNS SRV name whose targets are nodes to poll
    #[arg(long, env = "ORCHD_POOL_MANAGERS_DNS", value_name = "NAME")]
    pub pool_managers_dns: Option<String>,

    /// The DNS server to ask for that name, instead of the system's
    #[arg(long, env = "ORCHD_DNS_SERVER", value_name = "HOST:PORT")]
    pub dns_server: Option<SocketAddr>,

    /// How often nodes of a list or a DNS name are polled
    #[arg(long, env = "ORCHD_POOL_POLL_INTERVAL_MS", value_name = "MS", default_value = "5000",
          value_parser = config::milliseconds)]
    pub pool_poll_interval_ms: Duration,

    /// How many tasks may wait for one pool
    #[arg(
        long,
        env = "ORCHD_ADMISSION_CAPACITY",
        value_name = "N",
        default_value = "100"
    )]
    pub admission_capacity: usize,

    /// What happens to a task that finds that many waiting
    #[arg(
        long,
        env = "ORCHD_ADMISSION_POLICY",
        value_name = "POLICY",
        default_value = "reject"
    )]
    pub admission_policy: AdmissionPolicy,

    /// How long a task waits for a pool that has no replica that answers
    #[arg(long, env = "ORCHD_POOL_UNREADY_WAIT_MS", value_name = "MS", default_value = "30000",
          value_parser = config::milliseconds)]
    pub pool_unready_wait_ms: Duration,

    /// How long an engine may be silent in the middle of a task
    #[arg(long, env = "ORCHD_ENGINE_SILENCE_MS", value_name = "MS", default_value = "300000",
          value_parser = config::milliseconds)]
    pub engine_silence_ms: Duration,

    /// The longest request body
    #[arg(long, env = "ORCHD_BODY_MAX_BYTES", value_name = "BYTES", default_value = "16777216",
          value_parser = config::bytes)]
    pub body_max_bytes: u64,

    /// How long a client may take to send the head of a request
    #[arg(long, env = "ORCHD_HEAD_TIMEOUT_MS", value_name = "MS", default_value = "20000",
          value_parser = config::milliseconds)]
    pub head_timeout_ms: Duration,

    /// How long a client may take to send the body of a request
    #[arg(long, env = "ORCHD_BODY_TIMEOUT_MS", value_name = "MS", default_value = "60000",
          value_parser = config::milliseconds)]
    pub body_timeout_ms: Duration,

    /// How many client connections may be open at once
    #[arg(
        long,
        env = "ORCHD_CONNECTIONS_MAX",
        value_name = "N",
        default_value = "20000"
    )]
    pub connections_max: usize,

    /// How long a shutdown waits for tasks that still run
    #[arg(long, env = "ORCHD_DRAIN_TIMEOUT_MS", value_name = "MS", default_value = "30000",
          value_parser = config::milliseconds)]
    pub drain_timeout_ms: Duration,

    /// API keys, separated by commas, each as KEY or OWNER=KEY or OWNER:ROLE=KEY (roles: user, admin, node)
    #[arg(long, env = "ORCHD_API_KEYS", value_name = "KEYS")]
    pub api_keys: Option<Secret>,

    /// Token that nodes show to this control plane and it to them
    #[arg(long, env = "LLORCH_API_TOKEN", value_name = "TOKEN")]
    pub api_token: Option<Secret>,

    /// Directory of the store; by default the user's data directory
    #[arg(long, env = "ORCHD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Certificate of this control plane, PEM
    #[arg(long, env = "ORCHD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate, PEM
    #[arg(long, env = "ORCHD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Authority that signs the certificates of nodes, PEM
    #[arg(long, env = "ORCHD_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// A port of its own for /metrics, on the same address
    #[arg(long, env = "PROMETHEUS_METRICS_PORT", value_name = "PORT")]
    pub metrics_port: Option<u16>,

    /// Engines that this process keeps itself, in profile home
    #[command(flatten)]
    pub engines: engine_provisioner::Settings,

    /// Logs and traces
    #[command(flatten)]
    pub telemetry: TelemetrySettings,
}

/// What happens to a task that finds its queue full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AdmissionPolicy {
    /// It is refused.
    Reject,
    /// The oldest waiting batch task makes room for it.
    DropLru,
}

impl config::Settings for Settings {
    const SECTION: &'static str = "orchestratord";
    const ABOUT: &'static str = "The control plane: takes tasks, decides where they run, streams answers";
    const ALIASES: &'static [EnvAlias] = &[
        EnvAlias::same("addr", "ORCHD_BIND_ADDR"),
        EnvAlias::words(
            "cloud_profile",
            "ORCHD_PROFILE",
            &[("home", "false"), ("cloud", "true")],
        ),
    ];
    const PREFIXES: &'static [&'static str] = &["ORCHESTRATORD_", "ORCHD_"];
    const FOREIGN: &'static [&'static str] = &["ORCHESTRATORD_URL"];
}

impl Settings {
    /// The scheduler's part.
    pub(crate) fn scheduler(&self) -> scheduler::Settings {
        scheduler::Settings {
            queue_capacity: self.admission_capacity,
            policy: match self.admission_policy {
                AdmissionPolicy::Reject => scheduler::AdmissionPolicy::Reject,
                AdmissionPolicy::DropLru => scheduler::AdmissionPolicy::DropLru,
            },
            pool_unready_wait: self.pool_unready_wait_ms,
            ..scheduler::Settings::default()
        }
    }

    /// The registry's part.
    pub(crate) fn registry(&self) -> service_registry::Settings {
        service_registry::Settings {
            heartbeat_interval: self.heartbeat_interval_ms,
            stale_grace: self.heartbeat_interval_ms / 2,
            node_timeout: self.node_timeout_ms,
            check_interval: self.stale_check_interval_secs,
            ..service_registry::Settings::default()
        }
    }

    /// How many worker threads that makes.
    pub(crate) fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
            count => count.min(16),
        }
    }
}
