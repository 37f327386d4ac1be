//! What a caller says about a task.

use std::fmt;

use pool_registry_types::PoolId;
use task_api::{PlacementRequest, Priority};

use crate::arena::Key;
use crate::{DialectSet, Moment};

/// How many prefixes of a prompt are looked at; more are ignored.
pub const PREFIXES_MAX: usize = 8;

/// Names a task from `submit` to its end, and nothing after that.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey(pub(crate) Key);

impl TaskKey {
    /// The key as a number, for maps and logs.
    pub const fn to_u64(self) -> u64 {
        self.0.to_u64()
    }
}

impl fmt::Debug for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskKey({}.{})", self.0.index, self.0.generation)
    }
}

/// A slot held by a task. Given back exactly once; a copy that is used after that is refused and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    pub(crate) task: TaskKey,
    pub(crate) start: u32,
}

impl Lease {
    /// The task that holds the slot.
    pub const fn task(self) -> TaskKey {
        self.task
    }
}

/// What is to do a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Any pool that serves the model, by id or alias.
    Model(&'a str),
    /// Any replica of the pool, whatever it serves.
    Pool(&'a PoolId),
    /// A replica of the pool that serves the model.
    ModelInPool {
        /// The model's id or alias.
        model: &'a str,
        /// The pool.
        pool: &'a PoolId,
    },
    /// Any pool of sandboxes for the agent.
    Agent(&'a str),
    /// The sandboxes of one pool, if they are for the agent.
    AgentInPool {
        /// The agent's name.
        agent: &'a str,
        /// The pool.
        pool: &'a PoolId,
    },
}

/// A task as it is submitted. Borrows everything: nothing is allocated for a task that names no pools.
#[derive(Clone, Copy, Debug)]
pub struct TaskSpec<'a> {
    /// What is to do it.
    pub target: Target<'a>,
    /// The replica must speak one of these. Empty: any will do.
    pub dialects: DialectSet,
    /// Its class in the queue.
    pub priority: Priority,
    /// Where it may run. None: anywhere.
    pub placement: Option<&'a PlacementRequest>,
    /// A hash of the session. Must come from a keyed hash, because clients choose the text; one namespace for all
    /// owners would let one owner feel another's cache, so the owner belongs into it.
    pub session: Option<u64>,
    /// A hash of the task's owner, where a replica keeps something of an owner's that others do not have: such a
    /// replica is taken whenever it has room. From a keyed hash, as `session`.
    pub owner: Option<u64>,
    /// Hashes of the prompt's beginnings, the longest first; at most [`PREFIXES_MAX`] are looked at. As for `session`,
    /// from a keyed hash.
    pub prefixes: &'a [u64],
    /// When its time is over. Watched here while it waits; its holder watches it once it has a slot.
    pub deadline: Option<Moment>,
    /// Whether it may wait for a slot.
    pub may_wait: bool,
}

impl<'a> TaskSpec<'a> {
    /// An interactive task that may wait and has no wishes.
    pub const fn new(target: Target<'a>) -> Self {
        Self {
            target,
            dialects: DialectSet::EMPTY,
            priority: Priority::Interactive,
            placement: None,
            session: None,
            owner: None,
            prefixes: &[],
            deadline: None,
            may_wait: true,
        }
    }
}

/// How a task ended that had a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The engine's own end came.
    Completed,
    /// Anything else: an engine error, an end without the dialect's end.
    Failed,
    /// Its client, or somebody who may, ended it.
    Cancelled,
    /// Its deadline passed.
    Expired,
}
