//! Limits of the node, and what one pool wants.

use std::time::Duration;

use crate::ProfileHash;

/// Limits for all pools of a node together.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sandboxes at most, whatever state they are in.
    pub sandboxes_max: usize,
    /// Memory of all sandboxes together, in bytes.
    pub memory_bytes_max: u64,
    /// Memory that idle sandboxes kept for their owners may take of it, in bytes.
    pub hot_memory_bytes_max: u64,
    /// Sandboxes starting at once.
    pub starts_max: usize,
    /// Least time between two starts that nobody waits for.
    pub start_spacing: Duration,
    /// A start that takes longer has failed.
    pub start_timeout: Duration,
    /// Wait after a pool's first failed start; doubles with each further one.
    pub start_backoff_min: Duration,
    /// Longest wait after a failed start.
    pub start_backoff_max: Duration,
    /// Sandboxes of which the pool gets rid by its own choice, at once.
    pub ends_max: usize,
    /// An end that is not confirmed is asked for again after this time.
    pub end_retry: Duration,
    /// Time between two health checks of a sandbox.
    pub check_interval: Duration,
    /// A check that is not answered in this time has failed.
    pub check_timeout: Duration,
    /// Checks on their way at once.
    pub checks_max: usize,
    /// A sandbox older than this is replaced.
    pub age_max: Duration,
    /// Runs of one owner in one sandbox at once.
    pub runs_max: u32,
    /// An idle sandbox is kept for its owner at least this long, when there is room.
    pub hot_idle_min: Duration,
    /// An idle sandbox is kept for its owner at most this long.
    pub hot_idle_max: Duration,
    /// How long to wait for the end of the adoption after the start of the node.
    pub adoption_timeout: Duration,
    /// Owners whose recent use is remembered, in each pool.
    pub owners_remembered_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sandboxes_max: 256,
            memory_bytes_max: 8 << 30,
            hot_memory_bytes_max: 4 << 30,
            starts_max: 4,
            start_spacing: Duration::from_millis(20),
            start_timeout: Duration::from_secs(60),
            start_backoff_min: Duration::from_secs(1),
            start_backoff_max: Duration::from_secs(60),
            ends_max: 16,
            end_retry: Duration::from_secs(10),
            check_interval: Duration::from_secs(30),
            check_timeout: Duration::from_secs(10),
            checks_max: 64,
            age_max: Duration::from_secs(12 * 3600),
            runs_max: 8,
            hot_idle_min: Duration::from_secs(60),
            hot_idle_max: Duration::from_secs(15 * 60),
            adoption_timeout: Duration::from_secs(30),
            owners_remembered_max: 4096,
        }
    }
}

/// What one pool wants.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// Its name, for whoever looks.
    pub name: Box<str>,
    /// Which profile its sandboxes are made from.
    pub profile: ProfileHash,
    /// How many warm sandboxes to keep.
    pub target: usize,
    /// Memory of a sandbox that nobody has, in bytes, until it was measured.
    pub warm_bytes: u64,
    /// Memory of a sandbox with its owner's CLI in it, in bytes. What is measured counts once it is more, or once the
    /// sandbox is idle.
    pub owned_bytes: u64,
}
