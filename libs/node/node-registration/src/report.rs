//! What a node reports, numbered.

use std::sync::{Arc, Mutex, PoisonError};

use pool_registry_types::{Capabilities, PoolReport};

/// A node's report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// All its pools.
    pub pools: Vec<PoolReport>,
    /// Whether it takes no new tasks.
    pub draining: bool,
    /// Its hardware.
    pub capabilities: Capabilities,
}

/// Makes a report of this very moment. Quick and without waiting.
pub type ReportSource = Arc<dyn Fn() -> NodeReport + Send + Sync>;

/// Numbers the reports of one incarnation of a node. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Reporter {
    incarnation: Arc<str>,
    source: ReportSource,
    /// The last number. The lock is held while the report is made, so that a higher number is never an older report.
    sequence: Arc<Mutex<u64>>,
}

impl Reporter {
    /// Numbers what `source` says. `incarnation` is another one at each start of the node.
    pub fn new(incarnation: impl Into<Arc<str>>, source: ReportSource) -> Self {
        Self {
            incarnation: incarnation.into(),
            source,
            sequence: Arc::new(Mutex::new(0)),
        }
    }

    /// The incarnation that the reports are of.
    pub fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// The next report and its number.
    pub fn next(&self) -> (u64, NodeReport) {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        *sequence += 1;
        (*sequence, (self.source)())
    }
}
