//! The handoff: the file by which an engine that has come up announces itself to its node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{PoolId, ReplicaId};

/// The schema that this version writes. A file without one is of the original, smaller shape.
pub const HANDOFF_SCHEMA: u32 = 1;

/// What stands in `<pool>_<replica>.json`.
///
/// A handoff is a hint and never a proof: whoever reads one probes the URL before it believes that an engine is there.
/// The first six fields are the original's; a file that has only these is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handoff {
    /// The pool that the engine belongs to.
    pub pool_id: PoolId,
    /// The engine's name within the pool.
    pub replica_id: ReplicaId,
    /// The engine recipe's name, such as `llamacpp`.
    pub engine: String,
    /// Where the engine answers, such as `http://127.0.0.1:8081`.
    pub url: String,
    /// The engine's own version.
    #[serde(default)]
    pub engine_version: String,
    /// How many tasks the engine takes at once. None: the engine is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The schema of the fields below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
    /// The model that the engine was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The GPUs that the engine was given, as the driver counts them ("0,1").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_mask: Option<String>,
    /// The engine's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The process that keeps the engine, when that is another one than the reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor_pid: Option<u32>,
    /// When the engine's process started, in clock ticks since boot (field 22 of `/proc/PID/stat`): with `pid` and
    /// `boot_id` this names one process for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time_ticks: Option<u64>,
    /// The boot in which the process runs (`/proc/sys/kernel/random/boot_id`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// What the engine was started from; a replica whose settings have changed has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_hash: Option<String>,
    /// Fields of a newer schema, kept as they came.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Handoff {
    /// The file's name: `<pool>_<replica>.json`.
    pub fn file_name(pool_id: &PoolId, replica_id: &ReplicaId) -> String {
        format!("{pool_id}_{replica_id}.json")
    }
}
