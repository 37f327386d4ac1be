//! The node daemon's settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::config::{self, ConfigError, ConfigFile, EnvAlias};
use daemon::secret::Secret;
use daemon::telemetry::TelemetrySettings;
use pool_registry_types::{MachineId, NodeId, PoolId};

use crate::agents::AgentsSettings;
use crate::fleet::Launch;
use crate::machine::host_name;
use crate::pools::PoolSettings;

/// Everything that can be set, each once.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Address to listen on
    #[arg(
        long,
        env = "POOL_MANAGERD_ADDR",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9200"
    )]
    pub addr: SocketAddr,

    /// Register with control planes on other machines
    #[arg(long, env = "POOL_MANAGERD_CLOUD_PROFILE")]
    pub cloud_profile: bool,

    /// This node's name [default: the host name]
    #[arg(long, env = "POOL_MANAGERD_NODE_ID", value_name = "ID")]
    pub node_id: Option<NodeId>,

    /// The name of the hardware under it [default: the node's name]
    #[arg(long, env = "POOL_MANAGERD_MACHINE_ID", value_name = "ID")]
    pub machine_id: Option<MachineId>,

    /// Where control planes reach this node (http://HOST:9200)
    #[arg(long, env = "POOL_MANAGERD_ADDRESS", value_name = "URL")]
    pub address: Option<String>,

    /// Pools of the settings file that this node keeps, separated by commas [default: all]
    #[arg(long, env = "POOL_MANAGERD_POOLS", value_name = "IDS", value_delimiter = ',')]
    pub pools: Vec<PoolId>,

    /// How often to send a heartbeat when a control plane has no wish
    #[arg(long, env = "POOL_MANAGERD_HEARTBEAT_INTERVAL_SECS", value_name = "SECONDS", default_value = "10",
          value_parser = config::seconds)]
    pub heartbeat_interval_secs: Duration,

    /// Directory of handoffs and engines [default: that of --handoff-dir]
    #[arg(long, env = "POOL_MANAGERD_RUNTIME_DIR", value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,

    /// How often that directory is scanned where the file system tells of no changes
    #[arg(long, env = "POOL_MANAGERD_WATCH_INTERVAL_MS", value_name = "MS", default_value = "1000",
          value_parser = config::milliseconds)]
    pub watch_interval_ms: Duration,

    /// Delete the handoffs of processes that are gone
    #[arg(long, env = "POOL_MANAGERD_AUTO_DELETE_HANDOFF")]
    pub auto_delete_handoff: bool,

    /// How often the GPUs are looked at
    #[arg(long, env = "POOL_MANAGERD_GPU_DISCOVERY_INTERVAL_MS", value_name = "MS", default_value = "10000",
          value_parser = config::milliseconds)]
    pub gpu_discovery_interval_ms: Duration,

    /// How often an engine that is well is probed
    #[arg(long, env = "POOL_MANAGERD_PROBE_INTERVAL_MS", value_name = "MS", default_value = "2000",
          value_parser = config::milliseconds)]
    pub probe_interval_ms: Duration,

    /// How long an engine may take to answer a probe
    #[arg(long, env = "POOL_MANAGERD_PROBE_TIMEOUT_MS", value_name = "MS", default_value = "2000",
          value_parser = config::milliseconds)]
    pub probe_timeout_ms: Duration,

    /// Control planes to register with, as URLs separated by commas
    #[arg(long, env = "ORCHESTRATORD_URL", value_name = "URLS", value_delimiter = ',')]
    pub orchestratord_url: Vec<String>,

    /// Where to post pool-ready and pool-lost, besides those who register for it
    #[arg(long, env = "POOL_MANAGERD_ORCHESTRATORD_CALLBACK_URL", value_name = "URL")]
    pub orchestratord_callback_url: Option<String>,

    /// Token that control planes show to this node and it to them
    #[arg(long, env = "LLORCH_API_TOKEN", value_name = "TOKEN")]
    pub api_token: Option<Secret>,

    /// Certificate of this node, PEM
    #[arg(long, env = "POOL_MANAGERD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate, PEM
    #[arg(long, env = "POOL_MANAGERD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Authority that signs the certificates of control planes, PEM
    #[arg(long, env = "POOL_MANAGERD_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Let everybody who reaches the address use it, also from other machines
    #[arg(long, env = "POOL_MANAGERD_INSECURE")]
    pub insecure: bool,

    /// How long a shutdown waits for tasks that still run
    #[arg(long, env = "POOL_MANAGERD_DRAIN_TIMEOUT_MS", value_name = "MS", default_value = "30000",
          value_parser = config::milliseconds_or_zero)]
    pub drain_timeout_ms: Duration,

    /// Leave the engines running at a shutdown, for the next daemon to adopt
    #[arg(long, env = "POOL_MANAGERD_KEEP_ENGINES")]
    pub keep_engines: bool,

    /// How long engines that were left go on without a daemon
    #[arg(long, env = "POOL_MANAGERD_ENGINES_WAIT_MS", value_name = "MS", default_value = "45000",
          value_parser = config::milliseconds)]
    pub engines_wait_ms: Duration,

    /// The engine-provisioner program [default: the one beside this program, else on PATH]
    #[arg(long, env = "POOL_MANAGERD_ENGINE_PROVISIONER", value_name = "PATH")]
    pub engine_provisioner: Option<PathBuf>,

    /// How many connections may be open at once
    #[arg(long, env = "POOL_MANAGERD_CONNECTIONS_MAX", value_name = "N", default_value = "10000",
          value_parser = config::whole::<1, 1_000_000>)]
    pub connections_max: usize,

    /// The longest request body
    #[arg(long, env = "POOL_MANAGERD_BODY_MAX_BYTES", value_name = "BYTES", default_value = "64MiB",
          value_parser = config::some_bytes)]
    pub body_max_bytes: u64,

    /// How long a connection may take to bring its first request, TLS included
    #[arg(long, env = "POOL_MANAGERD_HEAD_TIMEOUT_MS", value_name = "MS", default_value = "15000",
          value_parser = config::milliseconds)]
    pub head_timeout_ms: Duration,

    /// How long a control plane may take to send the body of a request
    #[arg(long, env = "POOL_MANAGERD_BODY_TIMEOUT_MS", value_name = "MS", default_value = "60000",
          value_parser = config::milliseconds)]
    pub body_timeout_ms: Duration,

    /// Worker threads; 0 stands for one per processor, four at the most
    #[arg(long, env = "POOL_MANAGERD_WORKERS", value_name = "N", default_value = "0",
          value_parser = config::whole::<0, 64>)]
    pub workers: usize,

    /// A port of its own for /metrics, on the same address
    #[arg(long, env = "PROMETHEUS_METRICS_PORT", value_name = "PORT")]
    pub metrics_port: Option<u16>,

    /// Agents: their sandboxes and homes
    #[command(flatten)]
    pub agents: AgentsSettings,

    /// Engines: where they are got and kept
    #[command(flatten)]
    pub engines: engine_provisioner::Settings,

    /// Logs and traces
    #[command(flatten)]
    pub telemetry: TelemetrySettings,
}

impl config::Settings for Settings {
    const SECTION: &'static str = "pool-managerd";
    const ABOUT: &'static str = "The node daemon: keeps pools at target and is the one door to their engines";
    const ALIASES: &'static [EnvAlias] = &[EnvAlias::same("addr", "POOL_MANAGERD_BIND_ADDR")];
    const PREFIXES: &'static [&'static str] = &["POOL_MANAGERD_", "ENGINE_PROVISIONER_"];
}

/// What names this node.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    /// Its name.
    pub node_id: NodeId,
    /// The hardware under it.
    pub machine_id: MachineId,
    /// Where control planes reach it.
    pub address: String,
}

impl Settings {
    /// Checks what only shows when several settings are seen together.
    pub fn identity(&self) -> Result<NodeIdentity, ConfigError> {
        let wrong = |setting: &str, text: &str| config::problem::<Self>(setting, text);
        let node_id = match &self.node_id {
            Some(node_id) => node_id.clone(),
            None => host_name()
                .and_then(|name| NodeId::new(name).ok())
                .ok_or_else(|| {
                    wrong(
                        "node_id",
                        "this machine has no host name that could stand for it; set one",
                    )
                })?,
        };
        let machine_id = match &self.machine_id {
            Some(machine_id) => machine_id.clone(),
            None => MachineId::new(node_id.as_str()).expect("a node's name is fit for a machine"),
        };
        if self.cloud_profile && self.orchestratord_url.is_empty() {
            let text = "is required with POOL_MANAGERD_CLOUD_PROFILE: the control planes to register with";
            return Err(wrong("orchestratord_url", text));
        }
        for url in &self.orchestratord_url {
            if let Err(error) = url.parse::<upstream::Origin>() {
                return Err(wrong("orchestratord_url", &error.to_string()));
            }
        }
        let callback_url = self.orchestratord_callback_url.as_deref();
        if let Some(Err(error)) = callback_url.map(str::parse::<upstream::Origin>) {
            return Err(wrong("orchestratord_callback_url", &error.to_string()));
        }
        if self.api_token.as_ref().is_some_and(|token| !token.fits_header()) {
            let text = "is not right; a token has visible ASCII characters and no spaces";
            return Err(wrong("api_token", text));
        }
        let scheme = if self.tls_cert.is_some() { "https" } else { "http" };
        let address = match &self.address {
            Some(address) => match address.parse::<upstream::Origin>() {
                Ok(_) => address.trim_end_matches('/').to_owned(),
                Err(error) => return Err(wrong("address", &error.to_string())),
            },
            None if self.cloud_profile => {
                let text = "is required with POOL_MANAGERD_CLOUD_PROFILE: the URL at which control planes reach this node";
                return Err(wrong("address", text));
            }
            None => format!("{scheme}://{}", self.addr),
        };
        Ok(NodeIdentity {
            node_id,
            machine_id,
            address,
        })
    }

    /// The pools of the file that this node keeps.
    pub fn pool_settings(&self, file: &ConfigFile) -> Result<Vec<PoolSettings>, ConfigError> {
        let mut pools: Vec<PoolSettings> = file.section("pools")?.unwrap_or_default();
        for id in &self.pools {
            if !pools.iter().any(|pool| pool.id == *id) {
                let text = format!("names {id}, and the settings file has no [[pools]] with this id");
                return Err(config::problem::<Self>("pools", text));
            }
        }
        if !self.pools.is_empty() {
            pools.retain(|pool| self.pools.contains(&pool.id));
        }
        Ok(pools)
    }

    /// Where engines are got and kept, with this node's runtime directory.
    pub fn engine_settings(&self) -> engine_provisioner::Settings {
        let handoff_dir = self
            .runtime_dir
            .clone()
            .unwrap_or_else(|| self.engines.handoff_dir.clone());
        engine_provisioner::Settings {
            handoff_dir,
            ..self.engines.clone()
        }
    }

    /// Engines are kept by processes of their own.
    pub fn launch(&self) -> Launch {
        let beside = || {
            let own = std::env::current_exe().ok()?;
            let program = own.parent()?.join("engine-provisioner");
            program.is_file().then_some(program)
        };
        let program = self.engine_provisioner.clone().or_else(beside);
        let program = program.unwrap_or_else(|| Path::new("engine-provisioner").to_owned());
        Launch::Subprocess {
            program,
            gone_after: self.engines_wait_ms,
        }
    }

    /// How many worker threads that makes.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
            count => count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use daemon::config::{Sources, load};

    fn read(environment: &[(&str, &str)]) -> Result<(Settings, ConfigFile), String> {
        let sources = Sources::of(Vec::<String>::new(), environment.iter().copied());
        let loaded = load::<Settings>(&sources).map_err(|error| error.to_string())?;
        Ok((loaded.settings, loaded.file))
    }

    #[test]
    fn the_walk_throughs_environment_is_understood() {
        let (settings, _) = read(&[
            ("POOL_MANAGERD_CLOUD_PROFILE", "true"),
            ("POOL_MANAGERD_NODE_ID", "test-node"),
            ("POOL_MANAGERD_ADDRESS", "http://localhost:9200"),
            ("ORCHESTRATORD_URL", "http://localhost:8080"),
            ("POOL_MANAGERD_ADDR", "0.0.0.0:9200"),
        ])
        .unwrap();
        let identity = settings.identity().unwrap();
        assert_eq!(
            (identity.node_id.as_str(), identity.machine_id.as_str()),
            ("test-node", "test-node")
        );
        assert_eq!(identity.address, "http://localhost:9200");
        assert_eq!(settings.orchestratord_url, ["http://localhost:8080"]);
        assert_eq!(
            settings.engine_settings().handoff_dir,
            Path::new(".runtime/engines")
        );
    }

    #[test]
    fn second_names_and_lists_work() {
        let (settings, _) = read(&[
            ("POOL_MANAGERD_BIND_ADDR", "127.0.0.1:1"),
            ("POOL_MANAGERD_RUNTIME_DIR", "/run/x"),
            ("ORCHESTRATORD_URL", "http://a:1,http://b:2"),
        ])
        .unwrap();
        assert_eq!(settings.addr.port(), 1);
        assert_eq!(settings.engine_settings().handoff_dir, Path::new("/run/x"));
        assert_eq!(settings.orchestratord_url.len(), 2);
        assert_eq!(settings.identity().unwrap().address, "http://127.0.0.1:1");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let check = |environment: &[(&str, &str)], expect: &str| {
            let problem = match read(environment) {
                Ok((settings, file)) => settings
                    .identity()
                    .map(|_| ())
                    .and_then(|()| settings.pool_settings(&file).map(|_| ()))
                    .expect_err(&format!("{environment:?} is wrong"))
                    .to_string(),
                Err(problem) => problem,
            };
            assert!(problem.contains(expect), "{problem}");
        };
        let cloud = ("POOL_MANAGERD_CLOUD_PROFILE", "true");
        check(&[cloud], "ORCHESTRATORD_URL");
        check(
            &[cloud, ("ORCHESTRATORD_URL", "http://h")],
            "POOL_MANAGERD_ADDRESS",
        );
        check(&[("ORCHESTRATORD_URL", "localhost:8080")], "ORCHESTRATORD_URL");
        check(&[("POOL_MANAGERD_NODE_ID", "a b")], "POOL_MANAGERD_NODE_ID");
        check(
            &[("POOL_MANAGERD_ADR", "127.0.0.1:1")],
            "did you mean POOL_MANAGERD_ADDR",
        );
        check(&[("POOL_MANAGERD_POOLS", "p")], "POOL_MANAGERD_POOLS");
        for (name, value, right) in [
            (
                "POOL_MANAGERD_ORCHESTRATORD_CALLBACK_URL",
                "here",
                "http or https",
            ),
            ("POOL_MANAGERD_CONNECTIONS_MAX", "0", "from 1 to"),
            ("POOL_MANAGERD_WORKERS", "65", "from 0 to 64"),
            ("POOL_MANAGERD_BODY_MAX_BYTES", "0", "at least 1"),
            ("LLORCH_API_TOKEN", "a b", "no spaces"),
            ("ENGINE_PROVISIONER_GPU_MASK", "gpu0", "numbers between commas"),
            ("HF_ENDPOINT", "hub", "http"),
            ("REMUDA_LOG", "inof", "info"),
        ] {
            check(&[(name, value)], name);
            check(&[(name, value)], right);
        }
    }
}
