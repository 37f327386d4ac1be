//! What agent pools need to know: settings of the node and of each pool, checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agents::Profile;
use agents::install::image_name;
use daemon::config;
use egress::{EgressPolicy, PolicyError, Resolve, SystemResolver};
use homes::{AgentName, KeyError, KeyRing, MasterKey};
use pool_registry_types::PoolId;
use sandbox::{InitProgram, Limits};
use serde::Deserialize;
use workspaces::StoreSettings;

use super::drivers::DriverKind;
use crate::pools::PoolSettings;

/// Warm sandboxes of a pool that says nothing.
const WARM_DEFAULT: usize = 10;
/// The most warm sandboxes of one pool.
const WARM_MAX: usize = 1000;
/// Runs at once of a pool that says nothing, and at most.
const RUNS_DEFAULT: u32 = 8;
const RUNS_MAX: u32 = 1024;
/// Where Docker's daemon usually listens.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
const MIB: u64 = 1024 * 1024;
/// Files, directories and links of a workspace.
const WORKSPACE_ENTRIES_MAX: u64 = 50_000;

/// Settings of the node for all its agent pools.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentsSettings {
    /// Directory of agents: sandboxes, homes, the master key [default: `agents` in the user's data directory]
    #[arg(long, env = "POOL_MANAGERD_AGENTS_DIR", value_name = "DIR")]
    pub agents_dir: Option<PathBuf>,

    /// Directory in which CLIs are installed [default: `remuda/agents` in the user's cache directory]
    #[arg(long, env = "POOL_MANAGERD_AGENTS_INSTALL_DIR", value_name = "DIR")]
    pub agents_install_dir: Option<PathBuf>,

    /// Directory of sealed homes [default: `homes` in the directory of agents]
    #[arg(long, env = "POOL_MANAGERD_HOMES_DIR", value_name = "DIR")]
    pub homes_dir: Option<PathBuf>,

    /// Directory of workspaces [default: `workspaces` in the directory of agents]
    #[arg(long, env = "POOL_MANAGERD_WORKSPACES_DIR", value_name = "DIR")]
    pub workspaces_dir: Option<PathBuf>,

    /// How much a workspace may hold
    #[arg(long, env = "POOL_MANAGERD_WORKSPACE_MAX_BYTES", value_name = "BYTES", default_value = "67108864",
          value_parser = config::some_bytes)]
    pub workspace_max_bytes: u64,

    /// How many workspaces an owner has; the one that was not used for the longest time makes room for another
    #[arg(long, env = "POOL_MANAGERD_WORKSPACES_PER_OWNER", value_name = "N", default_value = "16",
          value_parser = config::whole::<1, 1000>)]
    pub workspaces_per_owner: usize,

    /// How long a workspace is kept that is not used
    #[arg(long, env = "POOL_MANAGERD_WORKSPACE_IDLE_SECS", value_name = "SECONDS", default_value = "86400",
          value_parser = config::seconds)]
    pub workspace_idle_secs: Duration,

    /// File with the master key of homes [default: `master.key` in the directory of agents, made on first use]
    #[arg(long, env = "POOL_MANAGERD_MASTER_KEY_FILE", value_name = "FILE")]
    pub master_key_file: Option<PathBuf>,

    /// Environment variable that holds the master key of homes
    #[arg(long, env = "POOL_MANAGERD_MASTER_KEY_ENV", value_name = "NAME")]
    pub master_key_env: Option<String>,

    /// Command that prints the master key of homes: program and arguments, separated by commas
    #[arg(
        long,
        env = "POOL_MANAGERD_MASTER_KEY_COMMAND",
        value_name = "COMMAND",
        value_delimiter = ','
    )]
    pub master_key_command: Vec<String>,

    /// Directory with further agent profiles, which replace built-in ones of the same name
    #[arg(long, env = "POOL_MANAGERD_PROFILES_DIR", value_name = "DIR")]
    pub profiles_dir: Option<PathBuf>,

    /// The remuda-init program [default: the one beside this program]
    #[arg(long, env = "POOL_MANAGERD_INIT_PROGRAM", value_name = "PATH")]
    pub init_program: Option<PathBuf>,

    /// Socket of the Docker daemon, for pools with `driver = "docker"`
    #[arg(long, env = "POOL_MANAGERD_DOCKER_SOCKET", value_name = "PATH", default_value = DOCKER_SOCKET)]
    pub docker_socket: PathBuf,

    /// How many sandboxes may exist at once
    #[arg(long, env = "POOL_MANAGERD_SANDBOXES_MAX", value_name = "N", default_value = "256",
          value_parser = config::whole::<1, 10_000>)]
    pub sandboxes_max: usize,

    /// Memory that all sandboxes together may take [default: three quarters of the machine's]
    #[arg(long, env = "POOL_MANAGERD_SANDBOXES_MEMORY_MAX_BYTES", value_name = "BYTES",
          value_parser = config::some_bytes)]
    pub sandboxes_memory_max_bytes: Option<u64>,

    /// How long an idle agent is kept running for its owner at most
    #[arg(long, env = "POOL_MANAGERD_HOT_IDLE_SECS", value_name = "SECONDS", default_value = "900",
          value_parser = config::seconds)]
    pub hot_idle_secs: Duration,

    /// Upstream proxies for agents, as URLs separated by commas; without them they go out directly
    #[arg(
        long,
        env = "POOL_MANAGERD_AGENT_PROXIES",
        value_name = "URLS",
        value_delimiter = ','
    )]
    pub agent_proxies: Vec<String>,

    /// Warm sandboxes of each pool of OpenAI's agents, where the pool does not say
    #[arg(long, env = "WARM_POOL_OPENAI_SIZE", value_name = "N", value_parser = config::whole::<0, WARM_MAX>)]
    pub warm_pool_openai_size: Option<usize>,

    /// Warm sandboxes of each pool of Anthropic's agents, where the pool does not say
    #[arg(long, env = "WARM_POOL_ANTHROPIC_SIZE", value_name = "N", value_parser = config::whole::<0, WARM_MAX>)]
    pub warm_pool_anthropic_size: Option<usize>,

    /// Warm sandboxes of each pool of Google's agents, where the pool does not say
    #[arg(long, env = "WARM_POOL_GOOGLE_SIZE", value_name = "N", value_parser = config::whole::<0, WARM_MAX>)]
    pub warm_pool_google_size: Option<usize>,
}

impl AgentsSettings {
    /// What a node is given. `own_arguments` are what this program must be told to be a sandbox's init, when there is no
    /// remuda-init beside it.
    pub fn config(&self, own_arguments: &[&str]) -> AgentsConfig {
        let init = sandbox::default_init_program(self.init_program.as_deref(), own_arguments);
        let default = AgentsConfig::default();
        let key = if let Some(file) = &self.master_key_file {
            KeySource::File(file.clone())
        } else if let Some(name) = &self.master_key_env {
            KeySource::Environment(name.clone())
        } else if !self.master_key_command.is_empty() {
            KeySource::Command(self.master_key_command.clone())
        } else {
            KeySource::Own
        };
        AgentsConfig {
            directory: self.agents_dir.clone().unwrap_or(default.directory),
            installed: self.agents_install_dir.clone().unwrap_or(default.installed),
            homes: self.homes_dir.clone(),
            workspaces: WorkspaceSettings {
                directory: self.workspaces_dir.clone(),
                bytes_max: self.workspace_max_bytes,
                per_owner_max: self.workspaces_per_owner,
                idle_max: self.workspace_idle_secs,
            },
            key,
            profiles: self.profiles_dir.clone(),
            init: init.unwrap_or(default.init),
            docker_socket: self.docker_socket.clone(),
            sandboxes_max: self.sandboxes_max,
            memory_max_bytes: self.sandboxes_memory_max_bytes,
            hot_idle_max: self.hot_idle_secs,
            proxies: self.agent_proxies.clone(),
            warm: WarmDefaults {
                openai: self.warm_pool_openai_size,
                anthropic: self.warm_pool_anthropic_size,
                google: self.warm_pool_google_size,
            },
            resolver: default.resolver,
        }
    }
}

/// How workspaces are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceSettings {
    /// Where. None: in the directory of agents.
    pub directory: Option<PathBuf>,
    /// How much one may hold.
    pub bytes_max: u64,
    /// How many an owner has.
    pub per_owner_max: usize,
    /// How long one is kept that is not used.
    pub idle_max: Duration,
}

impl Default for WorkspaceSettings {
    fn default() -> Self {
        Self {
            directory: None,
            bytes_max: 64 * MIB,
            per_owner_max: 16,
            idle_max: Duration::from_secs(24 * 3600),
        }
    }
}

/// Where the master key of homes comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file in the directory of agents, made on first use.
    Own,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// What a command prints.
    Command(Vec<String>),
}

/// Warm sandboxes by provider, where the pool does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmDefaults {
    /// OpenAI's agents.
    pub openai: Option<usize>,
    /// Anthropic's agents.
    pub anthropic: Option<usize>,
    /// Google's agents.
    pub google: Option<usize>,
}

impl WarmDefaults {
    fn of(&self, provider: &str) -> usize {
        let said = match provider {
            "openai" => self.openai,
            "anthropic" => self.anthropic,
            "google" => self.google,
            _ => None,
        };
        said.unwrap_or(WARM_DEFAULT)
    }
}

/// What a node needs to know for agent pools.
#[derive(Clone, Debug)]
pub struct AgentsConfig {
    /// Where sandboxes' state, homes and the node's own master key lie.
    pub directory: PathBuf,
    /// Where CLIs are installed.
    pub installed: PathBuf,
    /// Where sealed homes lie. None: in the directory.
    pub homes: Option<PathBuf>,
    /// How workspaces are kept.
    pub workspaces: WorkspaceSettings,
    /// The master key.
    pub key: KeySource,
    /// Further profiles.
    pub profiles: Option<PathBuf>,
    /// What becomes process 1 of a sandbox.
    pub init: InitProgram,
    /// Where the Docker daemon listens.
    pub docker_socket: PathBuf,
    /// Sandboxes at most.
    pub sandboxes_max: usize,
    /// Memory of all sandboxes together. None: three quarters of the machine's.
    pub memory_max_bytes: Option<u64>,
    /// How long an idle agent is kept running for its owner at most.
    pub hot_idle_max: Duration,
    /// Upstream proxies.
    pub proxies: Vec<String>,
    /// Warm sandboxes where a pool does not say.
    pub warm: WarmDefaults,
    /// What finds the addresses of hosts for sandboxes.
    pub resolver: Arc<dyn Resolve>,
}

impl Default for AgentsConfig {
    fn default() -> Self {
        let init = sandbox::default_init_program(None, &[]).unwrap_or(InitProgram {
            path: PathBuf::from("remuda-init"),
            arguments: Vec::new(),
        });
        Self {
            directory: user_directory("XDG_DATA_HOME", ".local/share").join("agents"),
            installed: user_directory("XDG_CACHE_HOME", ".cache").join("agents"),
            homes: None,
            workspaces: WorkspaceSettings::default(),
            key: KeySource::Own,
            profiles: None,
            init,
            docker_socket: PathBuf::from(DOCKER_SOCKET),
            sandboxes_max: 256,
            memory_max_bytes: None,
            hot_idle_max: Duration::from_secs(900),
            proxies: Vec::new(),
            warm: WarmDefaults::default(),
            resolver: Arc::new(SystemResolver),
        }
    }
}

impl AgentsConfig {
    /// How workspaces are kept, with the place.
    pub fn workspace_store(&self) -> StoreSettings {
        let own = || self.directory.join("workspaces");
        StoreSettings {
            directory: self.workspaces.directory.clone().unwrap_or_else(own),
            limits: workspaces::Limits {
                bytes_max: self.workspaces.bytes_max,
                entries_max: WORKSPACE_ENTRIES_MAX,
            },
            per_owner_max: self.workspaces.per_owner_max,
            idle_max: self.workspaces.idle_max,
        }
    }

    /// The master key; makes the node's own when it is not there yet. Blocks.
    pub(super) fn keys(&self) -> Result<KeyRing, KeyError> {
        let key = match &self.key {
            KeySource::File(path) => MasterKey::from_file(path)?,
            KeySource::Environment(name) => MasterKey::from_environment(name)?,
            KeySource::Command(command) => MasterKey::from_command(command)?,
            KeySource::Own => {
                let path = self.directory.join("master.key");
                if !path.exists() {
                    MasterKey::generate()?.write_new(&path)?;
                }
                MasterKey::from_file(&path)?
            }
        };
        Ok(KeyRing::new(key))
    }
}

/// Our directory among the user's: where `variable` says, else at the usual place.
fn user_directory(variable: &str, usual: &str) -> PathBuf {
    let from = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    from(variable)
        .or_else(|| from("HOME").map(|home| home.join(usual)))
        .map_or_else(|| PathBuf::from(".runtime"), |base| base.join("remuda"))
}

/// What a sandbox of a pool may use, as it is written. Sizes in MiB.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Memory of all its processes and files.
    pub memory_mib: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Open files of each process.
    pub open_files: Option<u64>,
    /// CPU time, in thousandths of one CPU.
    pub cpu_milli: Option<u64>,
    /// The home.
    pub home_mib: Option<u64>,
    /// `/tmp`.
    pub tmp_mib: Option<u64>,
    /// Workspaces.
    pub workspace_mib: Option<u64>,
}

impl LimitSettings {
    fn limits(&self) -> Limits {
        let usual = Limits::default();
        let bytes = |mib: Option<u64>, usual| mib.map_or(usual, |mib| mib.saturating_mul(MIB));
        Limits {
            memory_bytes_max: bytes(self.memory_mib, usual.memory_bytes_max),
            processes_max: self.processes.unwrap_or(usual.processes_max),
            open_files_max: self.open_files.unwrap_or(usual.open_files_max),
            cpu_milli: self.cpu_milli.unwrap_or(usual.cpu_milli),
            home_bytes_max: bytes(self.home_mib, usual.home_bytes_max),
            tmp_bytes_max: bytes(self.tmp_mib, usual.tmp_bytes_max),
            workspace_bytes_max: bytes(self.workspace_mib, usual.workspace_bytes_max),
        }
    }
}

/// One agent pool, checked.
#[derive(Clone, Debug)]
pub struct AgentPool {
    /// The pool's name.
    pub(crate) id: PoolId,
    /// What it was checked from; read again when the pool is reloaded.
    pub(super) settings: PoolSettings,
    /// How its CLI is installed, started and read.
    pub(super) profile: Profile,
    /// The agent's name, for homes.
    pub(super) agent: AgentName,
    /// What makes its sandboxes.
    pub(super) driver: DriverKind,
    /// The image of its sandboxes, with the CLI in it, where the driver needs one.
    pub(super) image: Option<String>,
    /// Warm sandboxes to keep.
    pub(super) warm: usize,
    /// Runs at once.
    pub(super) runs_max: u32,
    /// What its sandboxes may use.
    pub(super) limits: Limits,
    /// Where its sandboxes may connect to.
    pub(super) egress: EgressPolicy,
}

/// What is wrong with an agent pool.
#[derive(Debug, thiserror::Error)]
pub enum AgentPoolProblem {
    /// No agent.
    #[error("needs `agent`, such as \"claude\": it is of kind \"agent\"")]
    NoAgent,
    /// A key of engine pools.
    #[error("`{0}` is for pools with an engine, and this pool is of kind \"agent\"")]
    OnlyWithEngine(&'static str),
    /// A key of agent pools.
    #[error("`{0}` is for pools of kind \"agent\"")]
    OnlyWithAgent(&'static str),
    /// A driver that there is not.
    #[error("`driver` is {0:?}; there are \"bubblewrap\" and \"docker\"")]
    Driver(String),
    /// An image for a driver that uses none.
    #[error("`image` is for pools with driver = \"docker\"; bubblewrap uses the installed agent")]
    Image,
    /// A number out of range.
    #[error("`{key}` is {value}; {min} to {max} are possible")]
    Range {
        /// Which key.
        key: &'static str,
        /// What it is.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// The profile.
    #[error(transparent)]
    Profile(#[from] agents::ProfileError),
    /// The profile's name.
    #[error("the agent's name cannot be used")]
    Name(#[from] homes::NameError),
    /// A host or a network.
    #[error("`{key}`")]
    Egress {
        /// Which key.
        key: &'static str,
        /// What is wrong.
        #[source]
        source: PolicyError,
    },
}

/// Checks an agent pool. Reads its profile.
pub(crate) fn check(settings: &PoolSettings, config: &AgentsConfig) -> Result<AgentPool, AgentPoolProblem> {
    if let Some(name) = settings.set_for_engines() {
        return Err(AgentPoolProblem::OnlyWithEngine(name));
    }
    let agent = settings.agent.as_deref().ok_or(AgentPoolProblem::NoAgent)?;
    let driver = match settings.driver.as_deref() {
        None => DriverKind::default(),
        Some(name) => DriverKind::named(name).ok_or_else(|| AgentPoolProblem::Driver(name.to_owned()))?,
    };
    let profile = Profile::find(agent, config.profiles.as_deref())?;
    let image = match (driver, settings.image.clone()) {
        (DriverKind::Bubblewrap, None) => None,
        (DriverKind::Bubblewrap, Some(_)) => return Err(AgentPoolProblem::Image),
        (DriverKind::Docker, image) => Some(image.unwrap_or_else(|| image_name(&profile))),
    };
    let warm = settings.warm.unwrap_or_else(|| config.warm.of(&profile.provider));
    within("warm", warm as u64, 0, WARM_MAX as u64)?;
    let runs_max = settings.runs_max.unwrap_or(RUNS_DEFAULT);
    within("runs_max", runs_max.into(), 1, RUNS_MAX.into())?;
    let mut egress = EgressPolicy::new();
    for host in profile.egress.hosts.iter().chain(&settings.allowed_hosts) {
        let allowed = egress.allow(host);
        egress = allowed.map_err(|source| AgentPoolProblem::Egress {
            key: "allowed_hosts",
            source,
        })?;
    }
    for network in &settings.allowed_networks {
        let permitted = egress.permit_network(network);
        egress = permitted.map_err(|source| AgentPoolProblem::Egress {
            key: "allowed_networks",
            source,
        })?;
    }
    Ok(AgentPool {
        id: settings.id.clone(),
        settings: settings.clone(),
        driver,
        image,
        agent: AgentName::new(&profile.name)?,
        warm,
        runs_max,
        limits: settings.limits.clone().unwrap_or_default().limits(),
        egress,
        profile,
    })
}

fn within(key: &'static str, value: u64, min: u64, max: u64) -> Result<(), AgentPoolProblem> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(AgentPoolProblem::Range { key, value, min, max })
}

/// Where the sandboxes' inits connect.
pub(super) fn rendezvous_directory(config: &AgentsConfig) -> &Path {
    &config.directory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AgentPool, String> {
        let settings: PoolSettings = toml::from_str(&format!("id = 'p'\nkind = 'agent'\n{text}"))
            .map_err(|error| error.message().to_owned())?;
        check(&settings, &AgentsConfig::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pool_is_what_its_profile_and_its_settings_say() {
        let pool = read("agent = 'claude'").unwrap();
        assert_eq!((pool.warm, pool.runs_max), (WARM_DEFAULT, RUNS_DEFAULT));
        assert_eq!(pool.limits, Limits::default());
        let pool =
            read("agent = 'codex'\nwarm = 3\nruns_max = 2\n[limits]\nmemory_mib = 1024\nprocesses = 64")
                .unwrap();
        assert_eq!((pool.warm, pool.runs_max), (3, 2));
        assert_eq!(
            (pool.limits.memory_bytes_max, pool.limits.processes_max),
            (1 << 30, 64)
        );
        let pool = read("agent = 'codex'\ndriver = 'docker'").unwrap();
        assert_eq!(pool.image, Some(image_name(&pool.profile)));
        let pool = read("agent = 'codex'\ndriver = 'docker'\nimage = 'mine:1'").unwrap();
        assert_eq!(
            (pool.driver, pool.image.as_deref()),
            (DriverKind::Docker, Some("mine:1"))
        );
        let warm = WarmDefaults {
            openai: Some(1),
            anthropic: None,
            google: Some(0),
        };
        assert_eq!(
            ["openai", "anthropic", "google", "x"].map(|of| warm.of(of)),
            [1, 10, 0, 10]
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let check = |text: &str, expect: &str| {
            let problem = read(text).map(|_| ()).unwrap_err();
            assert!(problem.contains(expect), "{text}: {problem}");
        };
        check("", "needs `agent`");
        check(
            "agent = 'claude'\nmodel = 'm'",
            "`model` is for pools with an engine",
        );
        check(
            "agent = 'claude'\ndriver = 'nomad'",
            "there are \"bubblewrap\" and \"docker\"",
        );
        check(
            "agent = 'claude'\nimage = 'x'",
            "`image` is for pools with driver",
        );
        check("agent = 'claude'\nwarm = 1001", "`warm` is 1001; 0 to 1000");
        check("agent = 'claude'\nruns_max = 0", "`runs_max` is 0; 1 to 1024");
        check(
            "agent = 'claude'\nallowed_hosts = ['https://x']",
            "`allowed_hosts`",
        );
        check(
            "agent = 'claude'\nallowed_networks = ['10.0.0.0/40']",
            "`allowed_networks`",
        );
        check("agent = 'clod'", "there is no agent profile named \"clod\"");
        check("agent = 'claude'\n[limits]\nmemory = 1", "unknown field `memory`");
        let engine: PoolSettings = toml::from_str("id = 'p'\nmodel = 'm'\nwarm = 1").unwrap();
        let problem = crate::pools::check_pools(vec![engine], None, &AgentsConfig::default());
        let problem = problem.map(|_| ()).unwrap_err().to_string();
        assert!(
            problem.contains("`warm` is for pools of kind \"agent\""),
            "{problem}"
        );
    }

    #[test]
    fn the_nodes_own_key_is_made_once_and_for_it_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let config = AgentsConfig {
            directory: directory.path().to_owned(),
            ..AgentsConfig::default()
        };
        let first = config.keys().unwrap().current().id();
        assert_eq!(config.keys().unwrap().current().id(), first);
        let mode = std::fs::metadata(directory.path().join("master.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let missing = AgentsConfig {
            key: KeySource::Environment("REMUDA_NO_SUCH_KEY".to_owned()),
            ..config
        };
        assert!(missing.keys().is_err());
    }
}
