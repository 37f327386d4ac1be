//! What a driver tells init at its start, in one variable of the environment.
//!
//! Not on a command line, which everybody can read: a driver passes it where only the sandbox's own user and root can.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PROXY_ADDRESS;

/// The variable's name.
pub const START_VARIABLE: &str = "REMUDA_INIT";

/// All that init must know before it has a connection. Written as JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Which sandbox it is.
    pub sandbox: String,
    /// Where the node listens.
    pub node: NodeAddress,
    /// What proves the first connection.
    pub token: String,
    /// What each process is limited to. A process can only lower it.
    pub limits: ProcessLimits,
    /// Where init listens for the programs' connections; only a driver whose sandboxes share a network changes it.
    #[serde(default = "usual_proxy_address")]
    pub proxy_address: String,
}

fn usual_proxy_address() -> String {
    PROXY_ADDRESS.to_owned()
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start")
            .field("sandbox", &self.sandbox)
            .field("node", &self.node)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Where a node listens for inits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeAddress {
    /// A socket in the sandbox's file system.
    Unix(String),
    /// TCP with TLS.
    Tls {
        /// Host and port.
        address: String,
        /// The name in the node's certificate.
        server_name: String,
        /// The CA that the certificate must come from, in PEM form.
        ca_pem: String,
    },
}

/// Limits that hold for each process, or for the sandbox's user. None leaves what is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessLimits {
    /// Processes and threads of the sandbox's user (`RLIMIT_NPROC`).
    pub processes_max: Option<u64>,
    /// Open files of each process (`RLIMIT_NOFILE`).
    pub open_files_max: Option<u64>,
    /// Private writable memory of each process (`RLIMIT_DATA`), where no cgroup limits memory.
    pub data_bytes_max: Option<u64>,
    /// The largest file (`RLIMIT_FSIZE`).
    pub file_bytes_max: Option<u64>,
}
