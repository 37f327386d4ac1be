//! How far a long step is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What a number of a [`Step`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Pieces of work, all about as long.
    Pieces,
}

/// A long step, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is being done, such as `downloading qwen3-0.6b-q8_0.gguf`. Another text is another step.
    pub what: String,
    /// How much is done.
    pub done: u64,
    /// How much there is to do. None: nobody knows.
    pub total: Option<u64>,
    /// What the two numbers count.
    pub unit: Unit,
}

/// Gets told how far long steps are, often: it must be quick and must not block.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Step) + Send + Sync>);

impl Progress {
    /// Hands every step to `sink`.
    pub fn new(sink: impl Fn(Step) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Tells nobody.
    pub fn none() -> Self {
        Self::new(|_| ())
    }

    /// Tells how far `what` is, in bytes.
    pub fn bytes(&self, what: &str, done: u64, total: Option<u64>) {
        (self.0)(Step {
            what: what.to_owned(),
            done,
            total,
            unit: Unit::Bytes,
        });
    }

    /// Tells how far `what` is, in pieces of work.
    pub fn pieces(&self, what: &str, done: u64, total: Option<u64>) {
        (self.0)(Step {
            what: what.to_owned(),
            done,
            total,
            unit: Unit::Pieces,
        });
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}
