//! The tasks of `/v2`: their state and their events, in memory while they run and for a while after, on disk for longer.
//!
//! ```text
//! insert ──▶ runner appends events ──▶ last event ──▶ kept for readers ──▶ forgotten (the store still has its state)
//! ```
//!
//! A reader follows by number and may come and go; it can never hold up the runner or another reader. The events of a
//! task are bounded: when there are too many, the oldest are dropped, and who asks for those is told so.

mod ending;
mod events;
mod runner;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use scheduler::TaskKey;
use task_api::{TaskId, TaskView};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use ending::Ending;
pub(crate) use events::{EventLog, Follower, stream, too_old};
pub(crate) use runner::{accept, decision, put_into_store, start};

/// How many ended tasks keep their events.
const ENDED_KEPT_MAX: usize = 4096;

/// One task.
pub(crate) struct LiveTask {
    pub(crate) state: Mutex<LiveState>,
    /// How many events there have been.
    pub(crate) events_seen: watch::Sender<u64>,
    /// Ends the task.
    pub(crate) cancel: CancellationToken,
    pub(crate) owner: Arc<str>,
    pub(crate) created_ms: u64,
}

/// What changes about a task.
pub(crate) struct LiveState {
    pub(crate) view: TaskView,
    pub(crate) events: EventLog,
    /// Its name in the queue, if it had to wait.
    pub(crate) waits: Option<TaskKey>,
}

/// The tasks that are in memory.
pub(crate) struct TaskTable {
    inner: Mutex<Inner>,
}

struct Inner {
    tasks: HashMap<TaskId, Arc<LiveTask>>,
    ended: VecDeque<TaskId>,
}

impl TaskTable {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                tasks: HashMap::new(),
                ended: VecDeque::new(),
            }),
        }
    }

    /// Adds a task; false when one of this id is there.
    pub(crate) fn insert(&self, task: Arc<LiveTask>) -> bool {
        let id = task.lock().view.task_id.clone();
        let mut inner = self.lock();
        if inner.tasks.contains_key(&id) {
            return false;
        }
        inner.tasks.insert(id, task);
        true
    }

    pub(crate) fn get(&self, id: &TaskId) -> Option<Arc<LiveTask>> {
        self.lock().tasks.get(id).cloned()
    }

    /// Takes back a task that never began.
    pub(crate) fn remove(&self, id: &TaskId) {
        self.lock().tasks.remove(id);
    }

    /// The task has ended: it is kept until enough others have ended after it.
    pub(crate) fn ended(&self, id: TaskId) {
        let mut inner = self.lock();
        inner.ended.push_back(id);
        if inner.ended.len() > ENDED_KEPT_MAX
            && let Some(oldest) = inner.ended.pop_front()
        {
            inner.tasks.remove(&oldest);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveTask {
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, LiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends events and changes the view with them, in one step for every reader.
    pub(crate) fn append(
        &self,
        events: impl IntoIterator<Item = task_api::Event>,
        change: impl FnOnce(&mut TaskView),
    ) {
        let mut state = self.lock();
        change(&mut state.view);
        for event in events {
            state.events.push(event);
        }
        let seen = state.events.seen();
        drop(state);
        self.events_seen.send_replace(seen);
    }
}
