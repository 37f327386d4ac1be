//! What an operator can set.

use std::path::PathBuf;
use std::time::Duration;

/// The store's settings.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The file. It and its `-wal` and `-shm` are readable for this user only.
    pub path: PathBuf,
    /// How many ended tasks are kept.
    pub tasks_max: u64,
    /// How long ended tasks are kept.
    pub tasks_keep: Duration,
    /// How many writes may wait for the writer thread.
    pub queue_max: usize,
    /// How long to wait for another process that writes.
    pub busy_timeout: Duration,
}

impl StoreSettings {
    /// The defaults, for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            tasks_max: 100_000,
            tasks_keep: Duration::from_secs(7 * 24 * 60 * 60),
            queue_max: 4096,
            busy_timeout: Duration::from_secs(5),
        }
    }
}
