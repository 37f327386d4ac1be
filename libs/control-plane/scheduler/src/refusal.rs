//! Refusals: ordinary answers, not failures.

use task_api::ErrorCode;

/// Why a task does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No replica serves a model of this name, and none did lately.
    #[error("no replica serves this model")]
    NoSuchModel,
    /// No pool is for this agent, and none was lately.
    #[error("no pool is for this agent")]
    NoSuchAgent,
    /// No node has a pool of this name, and none had lately.
    #[error("there is no such pool")]
    NoSuchPool,
    /// The placement wishes leave no pool that serves the model.
    #[error("no pool that the placement allows serves this model")]
    NoPoolAllowed,
    /// No replica of the model or pool speaks the dialect.
    #[error("no replica that could take this task speaks the dialect of this endpoint")]
    DialectUnsupported,
    /// No replica is ready, and the task may not wait.
    #[error("no replica is ready")]
    PoolUnready,
    /// No replica became ready in the time that a task waits for one.
    #[error("no replica became ready in time")]
    PoolUnavailable,
    /// All slots are taken, and the task may not wait.
    #[error("all slots are taken")]
    ReplicaExhausted,
    /// The queue is full.
    #[error("the queue is full")]
    QueueFull {
        /// When a place in the queue will probably be free.
        retry_after_ms: u64,
    },
    /// The task made room for another one.
    #[error("dropped from a full queue in favour of a newer task")]
    Evicted {
        /// When a place in the queue will probably be free.
        retry_after_ms: u64,
    },
    /// The task would not start in time.
    #[error("the deadline cannot be met: the task would start in about {estimated_start_ms} ms")]
    DeadlineUnmet {
        /// When it would probably start, in milliseconds from now.
        estimated_start_ms: u64,
    },
    /// The task's time passed while it waited.
    #[error("the deadline passed while the task waited")]
    Expired,
    /// The task was started as often as it may be, and its replica was lost each time.
    #[error("the replica was lost {attempts} times")]
    AttemptsExhausted {
        /// How often it was started.
        attempts: u32,
    },
    /// The replica was lost after the answer had begun: another one cannot go on with it.
    #[error("the replica was lost in the middle of the answer")]
    AnswerBegun,
    /// The task does not hold this lease any more; nothing was changed.
    #[error("the lease is no longer held")]
    StaleLease,
}

impl From<StaleLease> for Refusal {
    fn from(_: StaleLease) -> Self {
        Self::StaleLease
    }
}

impl Refusal {
    /// The API's code for it.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::NoSuchModel
            | Self::NoSuchAgent
            | Self::NoSuchPool
            | Self::NoPoolAllowed
            | Self::DialectUnsupported => ErrorCode::NotFound,
            Self::PoolUnready => ErrorCode::PoolUnready,
            Self::PoolUnavailable => ErrorCode::PoolUnavailable,
            Self::ReplicaExhausted => ErrorCode::ReplicaExhausted,
            Self::QueueFull { .. } => ErrorCode::AdmissionReject,
            Self::Evicted { .. } => ErrorCode::QueueFullDropLru,
            Self::DeadlineUnmet { .. } | Self::Expired => ErrorCode::DeadlineUnmet,
            Self::AttemptsExhausted { .. } | Self::AnswerBegun => ErrorCode::WorkerReset,
            Self::StaleLease => ErrorCode::Cancelled,
        }
    }

    /// When to try again, where that could be computed.
    pub const fn retry_after_ms(self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after_ms } | Self::Evicted { retry_after_ms } => Some(retry_after_ms),
            Self::NoSuchModel
            | Self::NoSuchAgent
            | Self::NoSuchPool
            | Self::NoPoolAllowed
            | Self::DialectUnsupported
            | Self::PoolUnready
            | Self::PoolUnavailable
            | Self::ReplicaExhausted
            | Self::DeadlineUnmet { .. }
            | Self::Expired
            | Self::AttemptsExhausted { .. }
            | Self::AnswerBegun
            | Self::StaleLease => None,
        }
    }
}

/// The lease was given back, or taken away, before: nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease is no longer held")]
pub struct StaleLease;
