//! The requests of `/v1` as tasks that can be looked at: those that run, and the last ones that have ended.
//!
//! Owns: what is shown of them. Does not own the requests: each is held by its client's connection and ends with it.
//! Nothing of this is stored; after a restart the list is empty.
//!
//! ```text
//! list ──▶ queued ──placed──▶ placed ──running──▶ running ──end──▶ ended, until [`ENDED_KEPT_MAX`] later ones have ended
//! ```
//!
//! A worker thread writes into a lane of its own, so its lock is free but for the moments in which somebody reads the
//! list. A request that gets its slot at once costs two such locks, a stream three, and some counts of references: no
//! allocation, and no look at the clock that is not taken anyway.
//!
//! Cancelling by name: the entry holds the waker of the task that serves the request. A cancel marks the entry, counts
//! up [`Recent::cancels`], and wakes; whoever is polled looks at that count and only when it has changed at the entry.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use http::HeaderValue;
use pool_registry_types::Dialect;
use scheduler::{Outcome, ReplicaInfo};
use task_api::{ApiError, ErrorCode, PlacementDecision, Priority, TaskId, TaskState, TaskView, Workload};

use crate::plane::{millis, rfc3339};

/// How many ended requests each worker thread keeps.
const ENDED_KEPT_MAX: usize = 512;

/// More threads than this share lanes.
const LANES: usize = 16;

/// A lane whose requests have all ended gives back what it needed for more than these.
const SLOTS_KEPT: usize = 1024;

/// What every id of a request of `/v1` begins with.
const ID_PREFIX: &str = "v1-";

/// All of them.
pub(crate) struct Recent {
    lanes: Box<[Mutex<Lane>]>,
    /// The moment and the wall-clock time (milliseconds since 1970) from which requests are dated.
    epoch: (Instant, u64),
    /// How many requests were cancelled by name.
    cancels: AtomicU64,
}

#[derive(Default)]
struct Lane {
    last_number: u64,
    running: Vec<Option<Entry>>,
    free: Vec<u32>,
    ended: VecDeque<(Entry, Duration)>,
}

/// What a request is.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) dialect: Dialect,
    pub(crate) priority: Priority,
    pub(crate) owner: Arc<str>,
    pub(crate) model: Option<Arc<str>>,
    pub(crate) correlation_id: HeaderValue,
    pub(crate) arrived: Instant,
}

#[derive(Clone)]
struct Entry {
    number: u64,
    asked: Asked,
    state: TaskState,
    replica: Option<Arc<ReplicaInfo>>,
    /// Whom a cancel wakes. None once it was cancelled, and once it has ended.
    waker: Option<Waker>,
}

/// Names a request in the list, from its beginning to its end and not after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    lane: usize,
    slot: u32,
    number: u64,
    /// How many cancels there were when it was last looked whether one was its own.
    cancels: u64,
}

/// A request in the list. Dropping it ends it as cancelled.
pub(crate) struct Listed<'r> {
    recent: &'r Recent,
    seen: Option<Seen>,
}

/// A copy of an entry, taken under the lock and shown without it.
struct Copied {
    lane: usize,
    entry: Entry,
    ended: Option<Duration>,
}

/// One request, and what the list is ordered by.
pub(crate) struct Shown {
    pub(crate) created_ms: u64,
    pub(crate) view: TaskView,
}

impl Recent {
    /// Nothing yet. `now_ms` is the wall clock at `now`.
    pub(crate) fn new(now: Instant, now_ms: u64) -> Self {
        Self {
            lanes: (0..LANES).map(|_| Mutex::default()).collect(),
            epoch: (now, now_ms),
            cancels: AtomicU64::new(0),
        }
    }

    /// Lists a request that was accepted: one that waits, or one that has its slot on `replica`.
    pub(crate) fn list(&self, asked: Asked, replica: Option<&Arc<ReplicaInfo>>, waker: Waker) -> Listed<'_> {
        let at = own_lane();
        let mut lane = self.lane(at);
        lane.last_number += 1;
        let number = lane.last_number;
        let slot = lane.put(Entry {
            number,
            asked,
            state: if replica.is_some() {
                TaskState::Placed
            } else {
                TaskState::Queued
            },
            replica: replica.cloned(),
            waker: Some(waker),
        });
        let cancels = self.cancels.load(Ordering::Relaxed);
        let seen = Some(Seen {
            lane: at,
            slot,
            number,
            cancels,
        });
        Listed { recent: self, seen }
    }

    /// The request got a slot there.
    pub(crate) fn placed(&self, seen: Seen, replica: &Arc<ReplicaInfo>) {
        if let Some(entry) = self.lane(seen.lane).get(seen) {
            entry.state = TaskState::Placed;
            entry.replica = Some(replica.clone());
        }
    }

    /// Its answer has begun.
    pub(crate) fn running(&self, seen: Seen) {
        if let Some(entry) = self.lane(seen.lane).get(seen) {
            entry.state = TaskState::Running;
        }
    }

    /// It is over at `now`, counted from the epoch. Doing it again changes nothing.
    pub(crate) fn end(&self, seen: Seen, state: TaskState, now: Duration) {
        let mut lane = self.lane(seen.lane);
        let Some(mut entry) = lane.take(seen) else { return };
        entry.state = state;
        let waker = entry.waker.take();
        let oldest = if lane.ended.len() >= ENDED_KEPT_MAX {
            lane.ended.pop_front()
        } else {
            None
        };
        lane.ended.push_back((entry, now));
        drop(lane);
        // What it held is let go without the lock.
        drop((oldest, waker));
    }

    /// Asks the request of this id to end. One that has ended stays as it is.
    pub(crate) fn cancel(&self, id: &TaskId) {
        let Some((at, number)) = self.parse(id) else {
            return;
        };
        let mut lane = self.lane(at);
        let mut running = lane.running.iter_mut().flatten();
        let entry = running.find(|entry| entry.number == number);
        let waker = entry.and_then(|entry| entry.waker.take());
        drop(lane);
        if let Some(waker) = waker {
            self.cancels.fetch_add(1, Ordering::Release);
            waker.wake();
        }
    }

    /// Whether it was cancelled by its name. Cheap as long as nobody cancels anything.
    pub(crate) fn is_cancelled(&self, seen: &mut Seen) -> bool {
        let cancels = self.cancels.load(Ordering::Acquire);
        if cancels == seen.cancels {
            return false;
        }
        seen.cancels = cancels;
        self.lane(seen.lane)
            .get(*seen)
            .is_some_and(|entry| entry.waker.is_none())
    }

    /// `work`, unless the request is cancelled by its name before that is done.
    pub(crate) async fn unless_cancelled<T>(
        &self,
        mut seen: Seen,
        mut work: Pin<&mut impl Future<Output = Result<T, ApiError>>>,
    ) -> Result<T, ApiError> {
        poll_fn(|cx| {
            if self.is_cancelled(&mut seen) {
                return Poll::Ready(Err(cancelled()));
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// The newest `limit` requests from before `before_ms` that `wanted` takes by owner and state, with all of that
    /// moment and all of the same moment as the last of them; the newest first.
    pub(crate) fn newest(
        &self,
        limit: usize,
        before_ms: u64,
        wanted: impl Fn(&str, TaskState) -> bool,
    ) -> Vec<Shown> {
        let mut copied: Vec<(u64, Copied)> = Vec::new();
        for at in 0..self.lanes.len() {
            let lane = self.lane(at);
            let running = lane.running.iter().flatten().map(|entry| (entry, None));
            let ended = lane.ended.iter().map(|(entry, ended)| (entry, Some(*ended)));
            for (entry, ended) in running.chain(ended) {
                let created_ms = self.created_ms(entry);
                if created_ms <= before_ms && wanted(&entry.asked.owner, entry.state) {
                    let entry = entry.clone();
                    copied.push((
                        created_ms,
                        Copied {
                            lane: at,
                            entry,
                            ended,
                        },
                    ));
                }
            }
        }
        copied.sort_unstable_by_key(|(created_ms, _)| std::cmp::Reverse(*created_ms));
        let mut times = copied.iter().map(|(created_ms, _)| *created_ms);
        let oldest = times
            .by_ref()
            .filter(|ms| *ms < before_ms)
            .nth(limit.saturating_sub(1));
        let oldest = oldest.unwrap_or(0);
        let copied = copied
            .into_iter()
            .take_while(|(created_ms, _)| *created_ms >= oldest);
        copied
            .map(|(created_ms, copied)| self.show(created_ms, copied))
            .collect()
    }

    /// The request of this id, if it runs or has not ended long ago.
    pub(crate) fn find(&self, id: &TaskId) -> Option<TaskView> {
        let (at, number) = self.parse(id)?;
        let lane = self.lane(at);
        let mut running = lane.running.iter().flatten().map(|entry| (entry, None));
        let mut ended = lane.ended.iter().map(|(entry, ended)| (entry, Some(*ended)));
        let (entry, ended) = running
            .find(|(entry, _)| entry.number == number)
            .or_else(|| ended.find(|(entry, _)| entry.number == number))?;
        let entry = entry.clone();
        drop(lane);
        Some(
            self.show(
                self.created_ms(&entry),
                Copied {
                    lane: at,
                    entry,
                    ended,
                },
            )
            .view,
        )
    }

    /// The lane and the number in an id of this process.
    fn parse(&self, id: &TaskId) -> Option<(usize, u64)> {
        let (started_ms, rest) = id.as_str().strip_prefix(ID_PREFIX)?.split_once('-')?;
        let (lane, number) = rest.split_once('-')?;
        let (at, number) = (lane.parse().ok()?, number.parse().ok()?);
        (started_ms == format!("{:x}", self.epoch.1) && at < self.lanes.len()).then_some((at, number))
    }

    fn created_ms(&self, entry: &Entry) -> u64 {
        let (epoch, epoch_ms) = self.epoch;
        epoch_ms + millis(entry.asked.arrived.saturating_duration_since(epoch))
    }

    fn show(&self, created_ms: u64, copied: Copied) -> Shown {
        let Copied { lane, entry, ended } = copied;
        let epoch_ms = self.epoch.1;
        let asked = &entry.asked;
        let id = format!("{ID_PREFIX}{epoch_ms:x}-{lane}-{}", entry.number);
        let placement = entry.replica.as_ref().map(|replica| PlacementDecision {
            pool_id: replica.pool_id.clone(),
            replica_id: replica.replica_id.clone(),
            node_id: replica.node_id.clone(),
            reasons: Vec::new(),
        });
        let view = TaskView {
            task_id: TaskId::new(id).expect("letters, digits and dashes are an id"),
            session_id: None,
            workload: workload_of(asked.dialect),
            dialect: Some(asked.dialect),
            priority: asked.priority,
            model: asked.model.as_deref().map(str::to_owned),
            agent: None,
            owner: asked.owner.to_string(),
            state: entry.state,
            position: None,
            placements: placement.into_iter().collect(),
            created_at: rfc3339(created_ms),
            ended_at: ended.map(|ended| rfc3339(epoch_ms + millis(ended))),
            usage: None,
            error: None,
            correlation_id: asked.correlation_id.to_str().unwrap_or_default().to_owned(),
        };
        Shown { created_ms, view }
    }

    fn lane(&self, at: usize) -> MutexGuard<'_, Lane> {
        self.lanes[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn put(&mut self, entry: Entry) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.running[slot as usize] = Some(entry);
            return slot;
        }
        self.running.push(Some(entry));
        u32::try_from(self.running.len() - 1).expect("fewer requests than connections")
    }

    fn get(&mut self, seen: Seen) -> Option<&mut Entry> {
        let entry = self.running.get_mut(seen.slot as usize)?.as_mut();
        entry.filter(|entry| entry.number == seen.number)
    }

    fn take(&mut self, seen: Seen) -> Option<Entry> {
        self.get(seen)?;
        let entry = self.running[seen.slot as usize].take();
        self.free.push(seen.slot);
        if self.free.len() == self.running.len() && self.running.len() > SLOTS_KEPT {
            (self.running, self.free) = (Vec::new(), Vec::new());
        }
        entry
    }
}

impl Listed<'_> {
    /// Its name.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.expect("only its end takes the name")
    }

    /// It is answered: whoever has the slot ends it, now or when a stream has ended.
    pub(crate) fn answered(mut self) {
        self.seen = None;
    }

    /// It has ended without an answer.
    pub(crate) fn failed(mut self, error: &ApiError) {
        let state = match error.code {
            ErrorCode::Cancelled => TaskState::Cancelled,
            ErrorCode::DeadlineUnmet => TaskState::Expired,
            ErrorCode::QueueFullDropLru => TaskState::Evicted,
            _ => TaskState::Failed,
        };
        self.end(state);
    }

    fn end(&mut self, state: TaskState) {
        if let Some(seen) = self.seen.take() {
            self.recent.end(seen, state, self.recent.epoch.0.elapsed());
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.end(TaskState::Cancelled);
    }
}

/// What the client of a cancelled request is told.
pub(crate) fn cancelled() -> ApiError {
    ApiError::new(ErrorCode::Cancelled, "the request was cancelled by its task's id")
}

/// How a slot that was given back ended its request.
pub(crate) fn state_of(outcome: Outcome) -> TaskState {
    match outcome {
        Outcome::Completed => TaskState::Completed,
        Outcome::Failed => TaskState::Failed,
        Outcome::Cancelled => TaskState::Cancelled,
        Outcome::Expired => TaskState::Expired,
    }
}

fn workload_of(dialect: Dialect) -> Workload {
    match dialect {
        Dialect::ChatCompletions | Dialect::Responses | Dialect::Messages | Dialect::CountTokens => {
            Workload::Chat
        }
        Dialect::Completions => Workload::Completion,
        Dialect::Embeddings => Workload::Embedding,
        Dialect::Rerank => Workload::Rerank,
    }
}

/// The lane of this thread.
fn own_lane() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(THREADS.fetch_add(1, Ordering::Relaxed) % LANES);
        }
        own.get()
    })
}

#[cfg(test)]
mod tests;
