//! The control plane's settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use daemon::config::{self, ConfigError, EnvAlias};
use daemon::secret::Secret;
use daemon::telemetry::TelemetrySettings;
use store::{KeyTable, StoreSettings};

/// The most worker threads.
const WORKERS_MAX: usize = 16;

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
    #[arg(long, env = "ORCHESTRATORD_WORKERS", value_name = "N", default_value = "0",
          value_parser = config::whole::<0, WORKERS_MAX>)]
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

    /// After how long a node that carries tasks and answers nothing, not even a ping, counts as cut off
    #[arg(long, env = "ORCHD_NODE_SILENCE_MS", value_name = "MS", default_value = "3000",
          value_parser = config::milliseconds)]
    pub node_silence_ms: Duration,

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
    #[arg(long, env = "ORCHD_ADMISSION_CAPACITY", value_name = "N", default_value = "100",
          value_parser = config::whole::<0, 1_000_000>)]
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
          value_parser = config::some_bytes)]
    pub body_max_bytes: u64,

    /// How long a client may take to send the head of a request
    #[arg(long, env = "ORCHD_HEAD_TIMEOUT_MS", value_name = "MS", default_value = "20000",
          value_parser = config::milliseconds)]
    pub head_timeout_ms: Duration,

    /// How long a client may take to send the body of a request
    #[arg(long, env = "ORCHD_BODY_TIMEOUT_MS", value_name = "MS", default_value = "60000",
          value_parser = config::milliseconds)]
    pub body_timeout_ms: Duration,

    /// How long a client may acknowledge nothing, or take nothing, before its connection is given up
    #[arg(long, env = "ORCHD_CLIENT_SILENCE_MS", value_name = "MS", default_value = "60000",
          value_parser = config::milliseconds)]
    pub client_silence_ms: Duration,

    /// How many client connections may be open at once
    #[arg(long, env = "ORCHD_CONNECTIONS_MAX", value_name = "N", default_value = "20000",
          value_parser = config::whole::<1, 1_000_000>)]
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

    /// Address of this control plane as sandboxes on its nodes reach it, for agents on its own models; by default the one
    /// that it listens on
    #[arg(long, env = "ORCHD_AGENTS_URL", value_name = "URL")]
    pub agents_url: Option<String>,

    /// Directory of the store; by default the user's data directory
    #[arg(long, env = "ORCHD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// How many ended tasks are kept; the oldest go first
    #[arg(long, env = "ORCHD_TASKS_MAX", value_name = "N", default_value = "100000",
          value_parser = config::whole::<1, 100_000_000>)]
    pub tasks_max: usize,

    /// How long ended tasks are kept
    #[arg(long, env = "ORCHD_TASKS_KEEP_SECS", value_name = "SECONDS", default_value = "604800",
          value_parser = config::seconds)]
    pub tasks_keep_secs: Duration,

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

    /// Agents that this process keeps itself, in profile home
    #[command(flatten)]
    pub agents: pool_managerd::AgentsSettings,

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
    /// Checks what its own parser does not: what may not be shown in an error, and lists of addresses.
    pub(crate) fn check(&self) -> Result<KeyTable, ConfigError> {
        let wrong = |setting: &str, text: String| Err(config::problem::<Self>(setting, text));
        for url in &self.pool_managers {
            if let Err(error) = url.parse::<upstream::Origin>() {
                return wrong("pool_managers", error.to_string());
            }
        }
        if let Some(Err(error)) = self
            .agents_url
            .as_ref()
            .map(|url| url.parse::<upstream::Origin>())
        {
            return wrong("agents_url", error.to_string());
        }
        if let Some(name) = self.pool_managers_dns.as_ref().filter(|name| !is_dns_name(name)) {
            let text = format!("{name:?} is no DNS name; right would be such as _remuda._tcp.example.org");
            return wrong("pool_managers_dns", text);
        }
        if self.api_token.as_ref().is_some_and(|token| !token.fits_header()) {
            let text = "is not right; a token has visible ASCII characters and no spaces".to_owned();
            return wrong("api_token", text);
        }
        KeyTable::from_settings(self.api_keys.as_ref().map_or("", Secret::expose))
            .map_err(|error| config::problem::<Self>("api_keys", error.to_string()))
    }

    /// The store's part, for its file.
    pub(crate) fn store(&self, path: PathBuf) -> StoreSettings {
        StoreSettings {
            tasks_max: self.tasks_max as u64,
            tasks_keep: self.tasks_keep_secs,
            ..StoreSettings::new(path)
        }
    }

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
            count => count,
        }
    }
}

/// Labels of letters, digits, `-` and `_`, with dots between them (RFC 1035, 2.3.4 for the lengths; RFC 2782 for `_`).
fn is_dns_name(name: &str) -> bool {
    let labels = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    labels.len() <= 253 && labels.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::config::{Sources, load};

    fn read(name: &str, value: &str) -> Result<(), String> {
        let sources = Sources::of(Vec::<String>::new(), [(name, value)]);
        let loaded = load::<Settings>(&sources).map_err(|error| error.to_string())?;
        loaded
            .settings
            .check()
            .map(drop)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_store_keeps_can_be_set() {
        let environment = [("ORCHD_TASKS_MAX", "7"), ("ORCHD_TASKS_KEEP_SECS", "1h")];
        let sources = Sources::of(Vec::<String>::new(), environment);
        let settings = load::<Settings>(&sources).unwrap().settings;
        let store = settings.store("x".into());
        assert_eq!((store.tasks_max, store.tasks_keep.as_secs()), (7, 3600));
        let sources = Sources::of(Vec::<String>::new(), Vec::<(String, String)>::new());
        let (unset, store) = (load::<Settings>(&sources).unwrap(), StoreSettings::new("x"));
        let unset = unset.settings.store("x".into());
        assert_eq!(
            (unset.tasks_max, unset.tasks_keep),
            (store.tasks_max, store.tasks_keep)
        );
    }

    #[test]
    fn nonsense_is_refused_with_the_name_and_what_would_be_right() {
        for (name, value, right) in [
            ("ORCHD_API_KEYS", ":::", "OWNER:ROLE=KEY"),
            ("ORCHD_API_KEYS", "a,bob:king=x", "none of user, admin, node"),
            ("ORCHD_POOL_MANAGERS", "here", "http or https"),
            ("ORCHD_POOL_MANAGERS", "http://a:1,ftp://b", "http or https"),
            ("ORCHD_POOL_MANAGERS_DNS", "a b", "_remuda._tcp"),
            ("ORCHD_POOL_MANAGERS_DNS", "..", "_remuda._tcp"),
            ("LLORCH_API_TOKEN", "a b", "no spaces"),
            ("ORCHESTRATORD_WORKERS", "17", "from 0 to 16"),
            ("ORCHD_CONNECTIONS_MAX", "0", "from 1 to"),
            ("ORCHD_CONNECTIONS_MAX", "18446744073709551615", "from 1 to"),
            ("ORCHD_ADMISSION_CAPACITY", "-1", "from 0 to"),
            ("ORCHD_BODY_MAX_BYTES", "0", "at least 1"),
        ] {
            let problem = read(name, value).unwrap_err();
            assert!(
                problem.contains(name) && problem.contains(right),
                "{name}={value}: {problem}"
            );
        }
        for (name, value) in [
            ("ORCHD_API_KEYS", "a,bob=b,carol:admin=c"),
            ("ORCHD_POOL_MANAGERS", "http://a:1,https://b:2"),
            ("ORCHD_POOL_MANAGERS_DNS", "_remuda._tcp.fleet.test."),
            ("ORCHD_ADMISSION_CAPACITY", "0"),
        ] {
            assert_eq!(read(name, value), Ok(()), "{name}={value}");
        }
    }
}
