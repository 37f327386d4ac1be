//! What every driver does, and what it is asked with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use init_protocol::{NodeAddress, PROXY_ADDRESS, ProcessLimits, Start};
use thiserror::Error;

use crate::{AGENT_DIRECTORY, DOOR_DIRECTORY, HOME, SOCKET_NAME, SandboxId};

/// Makes and ends sandboxes, and does nothing else.
pub trait Driver: Send + Sync {
    /// Its name, for settings and metrics.
    fn name(&self) -> &'static str;

    /// Whether sandboxes can be made now, from this image where the driver needs one.
    fn check<'a>(&'a self, image: Option<&'a str>) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Makes a sandbox with init in it. May take minutes. When it answers, init need not have connected yet.
    fn create(&self, request: CreateRequest) -> BoxFuture<'_, Result<Created, DriverError>>;

    /// Ends a sandbox and removes all that is left of it. One that is gone already is no error.
    fn destroy<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), DriverError>>;

    /// All sandboxes that this driver has made here and not destroyed, also before a restart. Removes what is left of
    /// those that have ended by themselves.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, DriverError>>;
}

/// What to make.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Its name; the driver refuses one that is taken.
    pub id: SandboxId,
    /// How its init reaches the node; from [`crate::Expected::connect`].
    pub connect: Connect,
    /// The agent's install directory on this machine, to be read at [`crate::AGENT_DIRECTORY`].
    pub agent_directory: Option<PathBuf>,
    /// The image of drivers that need one.
    pub image: Option<String>,
    /// What it may use.
    pub limits: Limits,
    /// The environment that every process in it begins with. No secrets: those go into an exec's own environment.
    pub environment: Vec<(String, String)>,
    /// The program that becomes its process 1.
    pub init: InitProgram,
}

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes and memory file systems together.
    pub memory_bytes_max: u64,
    /// Processes and threads.
    pub processes_max: u64,
    /// Open files of each process.
    pub open_files_max: u64,
    /// CPU time, in thousandths of one CPU.
    pub cpu_milli: u64,
    /// The memory file system of the home.
    pub home_bytes_max: u64,
    /// The memory file system of `/tmp`; one more of the same kind is `/dev/shm`, a quarter as large.
    pub tmp_bytes_max: u64,
    /// The memory file system of the workspace.
    pub workspace_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            memory_bytes_max: 4096 * MIB,
            processes_max: 512,
            open_files_max: 4096,
            cpu_milli: 4000,
            home_bytes_max: 512 * MIB,
            tmp_bytes_max: 512 * MIB,
            workspace_bytes_max: 1024 * MIB,
        }
    }
}

impl Limits {
    /// What init limits itself. Per process, so it is less exact than a cgroup.
    ///
    /// The number of processes counts all of the same user in the same user namespace: it is only for drivers whose
    /// sandboxes have a namespace each, or one sandbox could use up another's.
    pub(crate) fn for_processes(&self, processes: bool, memory: bool) -> ProcessLimits {
        ProcessLimits {
            processes_max: processes.then_some(self.processes_max),
            open_files_max: Some(self.open_files_max),
            data_bytes_max: memory.then_some(self.memory_bytes_max),
            file_bytes_max: None,
        }
    }
}

/// How an init reaches its node.
#[derive(Clone)]
pub struct Connect {
    pub(crate) token: String,
    /// Where.
    pub door: Door,
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("door", &self.door)
            .finish_non_exhaustive()
    }
}

/// Where a node waits for one init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// A directory on this machine that holds a socket; drivers make it appear at [`crate::DOOR_DIRECTORY`].
    Directory(PathBuf),
    /// TCP with TLS, from anywhere.
    Tls {
        /// Host and port.
        address: String,
        /// The name in the node's certificate.
        server_name: String,
        /// The CA that the certificate comes from, in PEM form.
        ca_pem: String,
    },
}

impl Connect {
    /// The value of [`init_protocol::START_VARIABLE`] for the init of `id`. Holds the token: it goes where only the
    /// sandbox and root can read it.
    pub fn start_variable(&self, id: &SandboxId, limits: ProcessLimits) -> String {
        let node = match &self.door {
            Door::Directory(_) => NodeAddress::Unix(format!("{DOOR_DIRECTORY}/{SOCKET_NAME}")),
            Door::Tls {
                address,
                server_name,
                ca_pem,
            } => NodeAddress::Tls {
                address: address.clone(),
                server_name: server_name.clone(),
                ca_pem: ca_pem.clone(),
            },
        };
        let start = Start {
            sandbox: id.as_str().to_owned(),
            node,
            token: self.token.clone(),
            limits,
            proxy_address: PROXY_ADDRESS.to_owned(),
        };
        serde_json::to_string(&start).expect("strings and numbers can be written")
    }
}

/// The program that becomes process 1, on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitProgram {
    /// Its file.
    pub path: PathBuf,
    /// Its arguments: a program that is also something else needs to be told.
    pub arguments: Vec<String>,
}

/// The init to use: the one that is set, or `remuda-init` beside this program, or this program with `own_arguments`.
///
/// # Errors
/// When this program does not know where it is.
pub fn default_init_program(set: Option<&Path>, own_arguments: &[&str]) -> std::io::Result<InitProgram> {
    if let Some(path) = set {
        return Ok(InitProgram {
            path: path.to_owned(),
            arguments: Vec::new(),
        });
    }
    let own = std::env::current_exe()?;
    let beside = own.with_file_name("remuda-init");
    Ok(if beside.is_file() {
        InitProgram {
            path: beside,
            arguments: Vec::new(),
        }
    } else {
        InitProgram {
            path: own,
            arguments: own_arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
        }
    })
}

/// What every process in a sandbox begins with, and then what was asked for.
pub(crate) fn base_environment(given: &[(String, String)]) -> Vec<(String, String)> {
    let path =
        format!("{AGENT_DIRECTORY}/node_modules/.bin:{AGENT_DIRECTORY}/bin:/usr/local/bin:/usr/bin:/bin");
    let own = [
        ("HOME", HOME),
        ("USER", "agent"),
        ("LANG", "C.UTF-8"),
        ("PATH", path.as_str()),
    ];
    own.into_iter()
        .filter(|(name, _)| !given.iter().any(|(other, _)| other == name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .chain(given.iter().cloned())
        .collect()
}

/// A sandbox was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// How long the driver took.
    pub took: Duration,
}

/// A sandbox that a driver knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub id: SandboxId,
    /// When it was made.
    pub created: SystemTime,
}

/// A driver could not do what it was asked.
#[derive(Debug, Error)]
pub enum DriverError {
    /// There is one of this name.
    #[error("there is already a sandbox {0}")]
    Taken(SandboxId),
    /// The machine lacks something, or a setting is wrong. Another attempt will not help.
    #[error("sandboxes cannot be made here: {0}")]
    Unusable(String),
    /// This one could not be made; another may.
    #[error("cannot make the sandbox {id}: {why}")]
    Create {
        /// Which.
        id: SandboxId,
        /// What the driver's program said.
        why: String,
    },
    /// The system refused something.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A remote driver's far side.
    #[error("the {driver} driver's service: {why}")]
    Service {
        /// Which driver.
        driver: &'static str,
        /// What it said.
        why: String,
    },
}

impl DriverError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// An error and its causes in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
