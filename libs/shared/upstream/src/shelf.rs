//! Idle connections, one shelf per worker thread, so that a connection stays on the thread whose event loop knows it.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most worker threads that have a shelf of their own; more of them share.
const WORKERS_MAX: usize = 16;

thread_local! {
    static WORKER_INDEX: Cell<usize> = const { Cell::new(0) };
}

/// Tells the pools which shelf this thread uses. Called once by each worker thread at its start.
///
/// A thread that never calls it uses the first shelf. That is correct when all such threads run one and the same
/// runtime, since a connection belongs to the runtime that opened it.
pub fn set_worker_index(index: usize) {
    WORKER_INDEX.set(index % WORKERS_MAX);
}

/// Things left for later, the youngest first out, so that the rest can grow old and go.
pub(crate) struct Shelves<T> {
    shelves: [Mutex<Vec<(Instant, T)>>; WORKERS_MAX],
    idle_max_per_worker: usize,
    idle_timeout: Duration,
}

impl<T> Shelves<T> {
    pub(crate) fn new(idle_max_per_worker: usize, idle_timeout: Duration) -> Self {
        Self {
            shelves: std::array::from_fn(|_| Mutex::new(Vec::new())),
            idle_max_per_worker,
            idle_timeout,
        }
    }

    /// This thread's shelf. A panic while it was held cannot leave it half changed: every change is one push or pop.
    pub(crate) fn mine(&self) -> MutexGuard<'_, Vec<(Instant, T)>> {
        self.shelves[WORKER_INDEX.get()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.mine().pop().map(|(_, thing)| thing)
    }

    pub(crate) fn put(&self, thing: T) {
        let now = Instant::now();
        let mut shelf = self.mine();
        if shelf.len() >= self.idle_max_per_worker {
            return;
        }
        shelf.push((now, thing));
    }

    /// Drops what has been idle for longer than the timeout, on every shelf.
    pub(crate) fn reap(&self) {
        let Some(cut) = Instant::now().checked_sub(self.idle_timeout) else {
            return;
        };
        for shelf in &self.shelves {
            shelf
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|(since, _)| *since > cut);
        }
    }

    pub(crate) fn clear(&self) {
        for shelf in &self.shelves {
            shelf.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.shelves
            .iter()
            .map(|shelf| shelf.lock().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }
}
