//! The task that owns the warm pool: claims and what happened come in, what is to be done is done beside it.
//!
//! ```text
//! Keeper::claim ──▶ mpsc ──▶ run: WarmPool::step ──▶ effects ──▶ tasks (start, check, take back, end) ──▶ mpsc
//!                                     └──▶ the claimer, or the claimers that wait for a sandbox to be up
//! ```
//!
//! Invariants: only this task touches the state machine; no effect is waited for; each claim that was met is given back
//! once, when its [`Held`] is dropped, also when the claimer had left.

mod effects;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox::{Driver, Sandbox};
use tokio::sync::{mpsc, oneshot, watch};
use warm_pool::{Claimed, Effect, Event, Level, LossReason, Owner, PoolKey, Refusal, SandboxId, WarmPool};

pub(super) use effects::{Returning, adopt};

use super::label::Label;
use super::live::Live;
use super::parts::{NodeParts, PoolParts};

/// What waits for the task.
const MESSAGES_MAX: usize = 4096;
/// How long a claim waits for room, or for the owner's former sandbox to end.
const CLAIM_WAIT_MAX: Duration = Duration::from_secs(20);
/// How often such a claim asks again when nobody tells it to.
const CLAIM_RETRY: Duration = Duration::from_millis(100);

/// What the task is told.
pub(super) enum Message {
    Claim {
        pool: PoolKey,
        owner: Owner,
        reply: oneshot::Sender<Result<Met, Refusal>>,
    },
    Event(Event),
    /// A sandbox is up.
    Up(Arc<Live>),
    /// A sandbox of a former life of this node.
    Found {
        sandbox: SandboxId,
        driver: Arc<dyn Driver>,
        label: Option<Label>,
        connected: Option<Sandbox>,
    },
    /// A pool was read again, and its sandboxes can be made: those that there are get replaced.
    Reloaded(Arc<PoolParts>),
    /// An end that was asked for.
    EndOf {
        sandbox: SandboxId,
        is_done: bool,
    },
    /// Takes nothing new; answers when there is no sandbox any more.
    Drain(oneshot::Sender<()>),
}

/// A claim that was met.
pub(super) struct Met {
    claimed: Claimed,
    place: Place,
}

enum Place {
    Up(Arc<Live>),
    Coming(oneshot::Receiver<Arc<Live>>),
}

/// A claim that is held. Dropping it gives it back.
pub(super) struct Held {
    pub(super) level: Level,
    pub(super) live: Arc<Live>,
    /// Whether the sandbox may be kept for the owner's next run.
    pub(super) keep: bool,
    keeper: Keeper,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keeper.tell(Message::Event(Event::RunEnded {
            sandbox: self.live.number,
            keep: self.keep,
        }));
    }
}

/// A claim whose sandbox is not up yet. Dropping it gives it back.
struct Coming {
    sandbox: SandboxId,
    keeper: Keeper,
    is_held: bool,
}

impl Drop for Coming {
    fn drop(&mut self) {
        if self.is_held {
            return;
        }
        self.keeper.tell(Message::Event(Event::RunEnded {
            sandbox: self.sandbox,
            keep: true,
        }));
    }
}

/// Why a claim was not met.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the sandbox that was started for it did not come up")]
    NotUp,
    #[error("the node stops")]
    Stopped,
}

/// Speaks to the task. Cheap to clone.
#[derive(Clone)]
pub(super) struct Keeper {
    messages: mpsc::Sender<Message>,
    room: watch::Receiver<u64>,
}

impl Keeper {
    /// A handle and what the task needs to begin.
    pub(super) fn new() -> (Self, Inbox) {
        let (messages, receiver) = mpsc::channel(MESSAGES_MAX);
        let (tell_room, room) = watch::channel(0);
        let keeper = Self { messages, room };
        let inbox = Inbox { receiver, tell_room };
        (keeper, inbox)
    }

    /// A place for one more run of the owner. Waits for a sandbox to be up, and for a while for room.
    pub(super) async fn claim(&self, pool: &PoolParts, owner: &str) -> Result<Held, ClaimError> {
        let deadline = tokio::time::Instant::now() + CLAIM_WAIT_MAX;
        let begun = Instant::now();
        let mut room = self.room.clone();
        loop {
            room.mark_unchanged();
            let refusal = match self.ask(pool.key, owner).await? {
                Ok(met) => {
                    let held = self.hold(met).await?;
                    pool.metrics.claim_ms.note(begun.elapsed());
                    return Ok(held);
                }
                Err(refusal) => refusal,
            };
            let may_pass = match refusal {
                Refusal::HomeBusy | Refusal::MakingRoom | Refusal::StartsBusy | Refusal::Adopting => true,
                Refusal::StartsFailing { retry_after } => retry_after < Duration::from_secs(5),
                Refusal::NoSuchPool
                | Refusal::Draining
                | Refusal::Closed
                | Refusal::RunsMax { .. }
                | Refusal::NoRoom => false,
            };
            if !may_pass || tokio::time::Instant::now() >= deadline {
                return Err(refusal.into());
            }
            tokio::select! {
                _ = room.changed() => {}
                () = tokio::time::sleep(CLAIM_RETRY) => {}
            }
        }
    }

    async fn ask(&self, pool: PoolKey, owner: &str) -> Result<Result<Met, Refusal>, ClaimError> {
        let (reply, answer) = oneshot::channel();
        let owner = Owner::new(owner);
        let message = Message::Claim { pool, owner, reply };
        self.messages
            .send(message)
            .await
            .map_err(|_| ClaimError::Stopped)?;
        answer.await.map_err(|_| ClaimError::Stopped)
    }

    async fn hold(&self, met: Met) -> Result<Held, ClaimError> {
        let live = match met.place {
            Place::Up(live) => live,
            Place::Coming(coming) => {
                let mut guard = Coming {
                    sandbox: met.claimed.sandbox,
                    keeper: self.clone(),
                    is_held: false,
                };
                let live = coming.await.map_err(|_| ClaimError::NotUp)?;
                // From here on the claim is given back by what is returned.
                guard.is_held = true;
                live
            }
        };
        Ok(Held {
            level: met.claimed.level,
            live,
            keep: false,
            keeper: self.clone(),
        })
    }

    /// Tells the task, now or as soon as it has room.
    pub(super) fn tell(&self, message: Message) {
        if let Err(mpsc::error::TrySendError::Full(message)) = self.messages.try_send(message) {
            let messages = self.messages.clone();
            // Bounded by what there is to tell of: runs and sandboxes.
            tokio::spawn(async move { messages.send(message).await });
        }
    }

    /// Takes nothing new, and waits until there is no sandbox any more.
    pub(super) async fn drain(&self) {
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Drain(reply)).await.is_ok() {
            // The task is gone: so is everything that it kept.
            let _ = answer.await;
        }
    }
}

/// What the task hears.
pub(super) struct Inbox {
    receiver: mpsc::Receiver<Message>,
    tell_room: watch::Sender<u64>,
}

/// The task.
pub(super) struct Task {
    node: Arc<NodeParts>,
    pools: Vec<Arc<PoolParts>>,
    keeper: Keeper,
    inbox: Inbox,
    warm: WarmPool,
    begun: Instant,
    lives: HashMap<SandboxId, Arc<Live>>,
    /// What has made each sandbox.
    drivers: HashMap<SandboxId, Arc<dyn Driver>>,
    /// Sandboxes of a former life that still are somebody's.
    found: HashMap<SandboxId, (Label, Option<Sandbox>)>,
    waiting: HashMap<SandboxId, Vec<oneshot::Sender<Arc<Live>>>>,
    /// Those whose end is on its way.
    ending: HashSet<SandboxId>,
    returned: Returning,
    drained: Vec<oneshot::Sender<()>>,
}

impl Task {
    pub(super) fn new(
        node: Arc<NodeParts>,
        pools: Vec<Arc<PoolParts>>,
        (keeper, inbox): (Keeper, Inbox),
        warm: WarmPool,
        returned: Returning,
    ) -> Self {
        Self {
            node,
            pools,
            keeper,
            inbox,
            warm,
            begun: Instant::now(),
            lives: HashMap::new(),
            drivers: HashMap::new(),
            found: HashMap::new(),
            waiting: HashMap::new(),
            ending: HashSet::new(),
            returned,
            drained: Vec::new(),
        }
    }

    /// Runs until nobody can tell it anything any more.
    pub(super) async fn run(mut self) {
        loop {
            let now = self.begun.elapsed();
            let wait = self.warm.next_tick(now).saturating_sub(now);
            tokio::select! {
                message = self.inbox.receiver.recv() => match message {
                    Some(message) => self.hear(message),
                    None => return,
                },
                () = tokio::time::sleep(wait) => {
                    self.step(Event::Tick);
                    self.show_counts();
                }
            }
            if self.warm.is_empty() {
                for reply in self.drained.drain(..) {
                    // Whoever asked does not want to know any more.
                    let _ = reply.send(());
                }
            }
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Claim { pool, owner, reply } => self.claim(pool, &owner, reply),
            Message::Event(event) => {
                if let Event::Lost { sandbox } = &event
                    && self.ending.contains(sandbox)
                {
                    return;
                }
                self.step(event);
            }
            Message::Up(live) => {
                let sandbox = live.number;
                self.lives.insert(sandbox, live);
                self.step(Event::Started { sandbox });
            }
            Message::Found {
                sandbox,
                driver,
                label,
                connected,
            } => {
                self.drivers.insert(sandbox, driver);
                self.take_in(sandbox, label, connected);
            }
            Message::Reloaded(pool) => self.reload(pool),
            Message::EndOf { sandbox, is_done } => {
                self.ending.remove(&sandbox);
                if is_done {
                    self.lives.remove(&sandbox);
                    self.found.remove(&sandbox);
                    self.drivers.remove(&sandbox);
                    self.step(Event::Ended { sandbox });
                }
            }
            Message::Drain(reply) => {
                self.drained.push(reply);
                self.step(Event::Drain);
            }
        }
    }

    fn claim(&mut self, pool: PoolKey, owner: &Owner, reply: oneshot::Sender<Result<Met, Refusal>>) {
        let mut out = Vec::new();
        let claimed = self.warm.claim(self.begun.elapsed(), pool, owner, &mut out);
        let answer = claimed.map(|claimed| {
            let place = match self.lives.get(&claimed.sandbox) {
                Some(live) if claimed.level != Level::Cold => Place::Up(live.clone()),
                _ => {
                    let (tell, coming) = oneshot::channel();
                    self.waiting.entry(claimed.sandbox).or_default().push(tell);
                    Place::Coming(coming)
                }
            };
            Met { claimed, place }
        });
        self.carry_out(out);
        // The claimer has left.
        if let Err(Ok(met)) = reply.send(answer) {
            let sandbox = met.claimed.sandbox;
            self.step(Event::RunEnded { sandbox, keep: true });
        }
    }

    /// Takes in what a former life of this node has left.
    fn take_in(&mut self, sandbox: SandboxId, label: Option<Label>, connected: Option<Sandbox>) {
        let is_halfway = label
            .as_ref()
            .is_some_and(|label| label.owner.is_some() && label.ticket().is_none());
        let Some(label) = label.filter(|_| !is_halfway) else {
            // Nobody knows what is in it, or half of a home: there is nothing to take back.
            self.step(Event::Found {
                sandbox,
                pool: None,
                profile: warm_pool::ProfileHash([0; 32]),
                owner: None,
            });
            return;
        };
        let pool = self
            .pools
            .iter()
            .find(|pool| pool.id.as_str() == label.pool)
            .cloned();
        let profile = super::parts::unhex(&label.profile).unwrap_or_default();
        let owner = label.owner.as_deref().map(Owner::new);
        if owner.is_some() {
            self.found.insert(sandbox, (label, connected));
        } else if let (Some(pool), Some(connected)) = (&pool, connected) {
            let live = Live::new(sandbox, pool.clone(), self.node.clone(), connected);
            let live = Arc::new(live);
            effects::tell_when_lost(&live, self.keeper.clone());
            self.lives.insert(sandbox, live);
        }
        self.step(Event::Found {
            sandbox,
            pool: pool.map(|pool| pool.key),
            profile: warm_pool::ProfileHash(profile),
            owner,
        });
    }

    fn reload(&mut self, pool: Arc<PoolParts>) {
        let (key, profile, target) = (pool.key, pool.hash, pool.warm);
        if let Some(known) = self.pools.iter_mut().find(|known| known.key == key) {
            *known = pool;
        }
        self.step(Event::Reloaded { pool: key, profile });
        // It has none before its agent was installed for the first time.
        self.step(Event::TargetChanged { pool: key, target });
    }

    fn step(&mut self, event: Event) {
        let out = self.warm.step(self.begun.elapsed(), event);
        self.carry_out(out);
    }

    fn carry_out(&mut self, out: Vec<Effect>) {
        for effect in out {
            match effect {
                Effect::Start { sandbox, pool, .. } => self.start(sandbox, pool),
                Effect::CheckHealth { sandbox, check } => self.check(sandbox, check),
                Effect::Ready { sandbox, .. } => {
                    let waiting = self.waiting.remove(&sandbox).unwrap_or_default();
                    if let Some(live) = self.lives.get(&sandbox) {
                        for claimer in waiting {
                            // One that has left gives its claim back by itself.
                            let _ = claimer.send(live.clone());
                        }
                    }
                }
                Effect::RunsLost { sandbox, reason, .. } => self.lose(sandbox, reason),
                Effect::Retire { sandbox, .. } => self.end(sandbox, true),
                Effect::End { sandbox } => self.end(sandbox, false),
                Effect::OwnerFree { .. } | Effect::Room => {
                    self.inbox
                        .tell_room
                        .send_modify(|count| *count = count.wrapping_add(1));
                }
            }
        }
        self.node.changed.set();
    }

    /// For the metrics. Looks at every sandbox, so not at each message.
    fn show_counts(&self) {
        for pool in &self.pools {
            pool.metrics.set_counts(self.warm.counts(pool.key));
        }
    }

    fn lose(&mut self, sandbox: SandboxId, reason: LossReason) {
        // Dropping tells those who wait for it.
        self.waiting.remove(&sandbox);
        if let Some(live) = self.lives.get(&sandbox) {
            tracing::warn!(pool_id = %live.pool.id, sandbox = %live.sandbox.id(), ?reason, "a sandbox with runs in it is lost");
            live.pool.metrics.replacements.inc();
            live.lost.cancel();
        }
    }
}
