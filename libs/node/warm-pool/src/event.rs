//! What comes in and what goes out.

use std::time::Duration;

use crate::{Owner, PoolKey, ProfileHash, SandboxId};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed. Once a second, and at [`next_tick`](crate::WarmPool::next_tick).
    Tick,
    /// A sandbox of a former life of this node was found. Reported for everything that the driver lists, at the start
    /// and from time to time after it: one that is known changes nothing, one that is not is taken in or ended.
    Found {
        /// Its number.
        sandbox: SandboxId,
        /// Its pool, when there still is one.
        pool: Option<PoolKey>,
        /// What it was made from.
        profile: ProfileHash,
        /// Whom it belongs to.
        owner: Option<Owner>,
    },
    /// Everything that was there has been reported as found; starting may begin.
    AdoptionDone,
    /// A sandbox is up and its init has connected.
    Started {
        /// Which.
        sandbox: SandboxId,
    },
    /// A sandbox could not be made.
    StartFailed {
        /// Which.
        sandbox: SandboxId,
    },
    /// A health check was answered well.
    Healthy {
        /// Which.
        sandbox: SandboxId,
        /// The number of the check.
        check: u64,
        /// The memory that it uses.
        memory_bytes: u64,
    },
    /// A health check was answered badly, or could not be asked.
    Unhealthy {
        /// Which.
        sandbox: SandboxId,
        /// The number of the check.
        check: u64,
    },
    /// The init's connection is gone and will not come back.
    Lost {
        /// Which.
        sandbox: SandboxId,
    },
    /// A run is over.
    RunEnded {
        /// Where it ran.
        sandbox: SandboxId,
        /// Whether the sandbox may be kept for the owner's next run.
        keep: bool,
    },
    /// The owner's sandbox shall go when its runs are over: the login was removed, or the owner asked for it. Idle, it
    /// goes at once.
    OwnerGone {
        /// The pool.
        pool: PoolKey,
        /// Whose.
        owner: Owner,
    },
    /// The sandbox is gone, and nothing of it is left.
    Ended {
        /// Which.
        sandbox: SandboxId,
    },
    /// The pool was reloaded: what there is of it is replaced one after the other, whether or not its profile is
    /// another one now.
    Reloaded {
        /// The pool.
        pool: PoolKey,
        /// Its profile from now on.
        profile: ProfileHash,
    },
    /// The pool is drained: nothing of it is started or handed out, and what is idle ends.
    Closed {
        /// The pool.
        pool: PoolKey,
    },
    /// The pool is drained no more.
    Opened {
        /// The pool.
        pool: PoolKey,
    },
    /// The pool wants another number of warm sandboxes.
    TargetChanged {
        /// The pool.
        pool: PoolKey,
        /// How many.
        target: usize,
    },
    /// The node stops: nothing is started or handed out, and what is idle ends.
    Drain,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make a sandbox of the pool; answer with `Started` or `StartFailed`.
    Start {
        /// Its number.
        sandbox: SandboxId,
        /// Its pool.
        pool: PoolKey,
        /// What to make it from.
        profile: ProfileHash,
    },
    /// Ask it how it is; answer with `Healthy` or `Unhealthy` and this number.
    CheckHealth {
        /// Which.
        sandbox: SandboxId,
        /// The number to answer with.
        check: u64,
    },
    /// A sandbox that was claimed before it was up is up: the runs that wait for it may go on.
    Ready {
        /// Which.
        sandbox: SandboxId,
        /// Whose.
        owner: Owner,
    },
    /// The sandbox is no more, and all runs in it with it. They give nothing back.
    RunsLost {
        /// Which.
        sandbox: SandboxId,
        /// Whose.
        owner: Owner,
        /// How many.
        runs: u32,
        /// Why.
        reason: LossReason,
    },
    /// Take the owner's login back from it, then end it; answer with `Ended`. May be asked more than once.
    Retire {
        /// Which.
        sandbox: SandboxId,
        /// Whose.
        owner: Owner,
    },
    /// End it; answer with `Ended`, also when it is not there. May be asked more than once.
    End {
        /// Which.
        sandbox: SandboxId,
    },
    /// The owner's former sandbox is gone: a claim that was refused with `HomeBusy` can be made.
    OwnerFree {
        /// The pool.
        pool: PoolKey,
        /// Whose.
        owner: Owner,
    },
    /// There may be room again for claims that were refused for want of it.
    Room,
}

/// Why runs were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The sandbox could not be started.
    StartFailed,
    /// A health check failed or was not answered.
    Unhealthy,
    /// Its connection was lost.
    Lost,
}

/// How far a sandbox was when it was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// It is only now being started: wait for [`Effect::Ready`].
    Cold,
    /// It is up and belongs to nobody yet: open the owner's home into it.
    Warm,
    /// It is the owner's and other runs are in it.
    Shared,
    /// It is the owner's, idle, with the CLI waiting.
    Hot,
}

/// A claim that was met. Give it back with [`Event::RunEnded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// How far it is.
    pub level: Level,
    /// What it was made from.
    pub profile: ProfileHash,
    /// Runs in it, with this one.
    pub runs: u32,
}

/// Why a claim was not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No pool has this key.
    #[error("there is no such agent pool")]
    NoSuchPool,
    /// The node has just started and looks for sandboxes that are still there.
    #[error("the node has just started and looks for sandboxes that are still there")]
    Adopting,
    /// The node stops.
    #[error("the node stops")]
    Draining,
    /// The pool is drained.
    #[error("the pool is drained")]
    Closed,
    /// The owner's former sandbox is ending, and its login is taken back first.
    #[error("the owner's former sandbox is still ending")]
    HomeBusy,
    /// The owner's sandbox has as many runs as one may have.
    #[error("the owner has {runs} runs in its sandbox, and no more are allowed")]
    RunsMax {
        /// How many.
        runs: u32,
    },
    /// Idle sandboxes of other owners are ended to make room.
    #[error("room is being made: ask again")]
    MakingRoom,
    /// There is no room, and nothing idle to make room with.
    #[error("the node has no room for another sandbox")]
    NoRoom,
    /// No sandbox is warm, and as many as allowed are starting for others.
    #[error("no sandbox is warm, and as many as allowed are starting")]
    StartsBusy,
    /// No sandbox is warm, and the last starts failed.
    #[error("no sandbox is warm, and the last starts failed; the next try is in {} ms", retry_after.as_millis())]
    StartsFailing {
        /// When the next try is.
        retry_after: Duration,
    },
}
