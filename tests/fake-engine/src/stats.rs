//! What has happened to the requests so far.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counts since the start. Only requests that ask for an answer count, not `/health` and the like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Connections that are open now.
    pub connections: u64,
    /// Requests that have no answer or not the whole of it yet, those that wait for a slot included.
    pub active: u64,
    /// Answered to the end.
    pub completed: u64,
    /// Ended by a failure that was asked for.
    pub failed: u64,
    /// Ended by the client's going away.
    pub cancelled: u64,
    /// Chunks sent in streams.
    pub chunks: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    begun: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    chunks: AtomicU64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    Failed,
    Cancelled,
}

impl Counters {
    pub(crate) fn read(&self) -> Stats {
        // The endings first: then a request that ends meanwhile counts as active, never as less than none.
        let completed = self.completed.load(Ordering::Acquire);
        let failed = self.failed.load(Ordering::Acquire);
        let cancelled = self.cancelled.load(Ordering::Acquire);
        Stats {
            connections: self.connections.load(Ordering::Acquire),
            active: self
                .begun
                .load(Ordering::Acquire)
                .saturating_sub(completed + failed + cancelled),
            completed,
            failed,
            cancelled,
            chunks: self.chunks.load(Ordering::Acquire),
        }
    }

    pub(crate) fn chunk(&self) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connection(&self) -> OpenConnection<'_> {
        self.connections.fetch_add(1, Ordering::AcqRel);
        OpenConnection(self)
    }

    pub(crate) fn begin(&self) -> OpenRequest<'_> {
        self.begun.fetch_add(1, Ordering::AcqRel);
        OpenRequest {
            counters: self,
            ending: Ending::Cancelled,
        }
    }
}

/// Counts a connection as open while it lives.
#[derive(Debug)]
pub(crate) struct OpenConnection<'a>(&'a Counters);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts a request as active while it lives, and then as what it came to; cancelled unless something else is said.
#[derive(Debug)]
pub(crate) struct OpenRequest<'a> {
    counters: &'a Counters,
    ending: Ending,
}

impl OpenRequest<'_> {
    pub(crate) fn end(mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        let counter = match self.ending {
            Ending::Completed => &self.counters.completed,
            Ending::Failed => &self.counters.failed,
            Ending::Cancelled => &self.counters.cancelled,
        };
        counter.fetch_add(1, Ordering::AcqRel);
    }
}
