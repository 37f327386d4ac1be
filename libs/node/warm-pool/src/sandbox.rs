//! One sandbox: names, states, what it is charged for.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::{Effect, Moment, PoolSpec};

/// A sandbox. Numbers are never used again, also not after a restart: the first one is given to
/// [`WarmPool::new`](crate::WarmPool::new), and those that are found push it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(pub u64);

impl fmt::Display for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A pool of one [`WarmPool`](crate::WarmPool), in the order of `add_pool`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey(pub usize);

/// What a sandbox is made from: two sandboxes with one hash are interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProfileHash(pub [u8; 32]);

/// The person or service account that a sandbox belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The owner of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Owner {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Where a sandbox stands. What only one state knows stands in that state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Being made. A cold claim may already have it.
    Starting {
        since: Moment,
        claim: Option<(Owner, u32)>,
    },
    /// Found after a restart; must answer a check before it is handed out.
    Verifying,
    /// Up, and nobody's. Stale: too old or of a former profile, and handed out only when there is no other.
    Warm { stale: bool },
    /// Its owner's, with runs in it.
    Busy { owner: Owner, runs: u32 },
    /// Its owner's, with no run in it and the CLI waiting.
    Hot { owner: Owner, until: Moment },
    /// To be gone; `take_back` says whether the owner's login must be taken back first.
    Ending {
        owner: Option<Owner>,
        take_back: bool,
        asked: Moment,
    },
}

/// A sandbox of no pool: of one that is no more, or one that came up after it was given up.
#[derive(Clone, Debug)]
pub(crate) struct Stray {
    pub(crate) owner: Option<Owner>,
    /// When its end was asked for last.
    pub(crate) asked: Moment,
}

impl Stray {
    /// How to end it.
    pub(crate) fn order(&self, sandbox: SandboxId) -> Effect {
        match self.owner.clone() {
            Some(owner) => Effect::Retire { sandbox, owner },
            None => Effect::End { sandbox },
        }
    }
}

/// How far the health check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Due(Moment),
    Asked { at: Moment, number: u64 },
}

#[derive(Clone, Debug)]
pub(crate) struct Sandbox {
    pub(crate) pool: PoolKey,
    pub(crate) profile: ProfileHash,
    /// How often its pool had been reloaded when it was made.
    pub(crate) generation: u64,
    pub(crate) born: Moment,
    /// What its last healthy answer said it uses.
    pub(crate) measured_bytes: Option<u64>,
    /// What it is counted for now.
    pub(crate) charged_bytes: u64,
    /// Whether it may be kept for its owner once its runs are over.
    pub(crate) is_fit: bool,
    pub(crate) check: Check,
    pub(crate) state: State,
}

impl Sandbox {
    /// What it should be counted for in its present state.
    pub(crate) fn due_bytes(&self, spec: &PoolSpec) -> u64 {
        match &self.state {
            State::Starting { claim: None, .. } | State::Verifying | State::Warm { .. } => {
                self.measured_bytes.unwrap_or(spec.warm_bytes)
            }
            State::Starting { claim: Some(_), .. } | State::Busy { .. } => {
                spec.owned_bytes.max(self.measured_bytes.unwrap_or(0))
            }
            State::Hot { .. } => self.measured_bytes.unwrap_or(spec.owned_bytes),
            // It holds what it held until it is gone.
            State::Ending { .. } => self.charged_bytes,
        }
    }
}
