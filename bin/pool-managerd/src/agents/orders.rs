//! What a pool can be told while it runs: to drain, to take runs again, to be reloaded.
//!
//! ```text
//!        drain                deadline
//! open ─────────▶ draining ─────────────▶ its runs are ended, and told so
//!   ▲                 └──── undrain, reload ────┐
//!   └───────────────────────────────────────────┘
//! ```
//! A reload reads the pool's profile again and replaces all its sandboxes one after the other. What it needs (another
//! version of the CLI, another image) is there before the first one is replaced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use pool_registry_types::PoolId;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use warm_pool::Event;

use super::config::{AgentPoolProblem, check};
use super::keeper::Message;
use super::parts::PoolParts;
use super::{Agents, install};

/// A pool that is kept.
pub(super) struct Kept {
    present: ArcSwap<PoolParts>,
    work: Mutex<Work>,
}

/// What goes on beside it. Something newer takes its place.
#[derive(Default)]
struct Work {
    preparing: Option<AbortOnDropHandle<()>>,
    deadline: Option<AbortOnDropHandle<()>>,
}

/// Why a reload was not begun.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It would not become a pool.
    #[error("the pool stays as it is: {0}")]
    Problem(#[from] AgentPoolProblem),
    /// The node ends.
    #[error("the node is ending")]
    Ending,
}

impl Kept {
    pub(super) fn new(pool: Arc<PoolParts>) -> Self {
        Self {
            present: ArcSwap::new(pool),
            work: Mutex::default(),
        }
    }

    /// As it was loaded last.
    pub(super) fn present(&self) -> Arc<PoolParts> {
        self.present.load_full()
    }

    /// Ends what goes on beside it.
    pub(super) fn stop(&self) {
        *self.work() = Work::default();
    }

    fn work(&self) -> std::sync::MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agents {
    /// Takes nothing new in a pool, ends what is idle, and after `deadline` what still runs.
    pub(crate) fn drain(&self, pool: &PoolId, deadline: Duration) {
        let Some(kept) = self.pools.get(pool) else { return };
        let present = kept.present();
        tracing::info!(pool_id = %pool, ?deadline, "the pool takes nothing new and finishes what it has");
        present.set_draining(true);
        self.keeper
            .tell(Message::Event(Event::Closed { pool: present.key }));
        let ending = tokio::spawn(async move {
            tokio::time::sleep(deadline).await;
            let taken = present.taken();
            if taken > 0 {
                tracing::warn!(pool_id = %present.id, runs = taken, "the drained pool's runs are ended");
            }
            present.end_runs();
        });
        kept.work().deadline = Some(AbortOnDropHandle::new(ending));
        self.changed.set();
    }

    /// Takes a drain back. A node that ends goes on ending.
    pub(crate) fn undrain(&self, pool: &PoolId) {
        let Some(kept) = self.pools.get(pool) else { return };
        if self.is_ending() {
            return;
        }
        kept.work().deadline = None;
        let present = kept.present();
        present.set_draining(false);
        self.keeper
            .tell(Message::Event(Event::Opened { pool: present.key }));
        self.changed.set();
    }

    /// Reads a pool again, replaces its sandboxes, and takes a drain back. Comes back when it has begun.
    pub(crate) async fn reload(&self, pool: &PoolId) -> Result<(), ReloadError> {
        let Some(kept) = self.pools.get(pool) else {
            return Ok(());
        };
        let (present, config) = (kept.present(), self.config.clone());
        let settings = present.settings.clone();
        let read = tokio::task::spawn_blocking(move || check(&settings, &config)).await;
        let read = read.map_err(|_| ReloadError::Ending)??;
        tracing::info!(pool_id = %pool, "the pool is reloaded");
        self.undrain(pool);
        let next = present.reloaded(read, &self.config.init);
        let next = Arc::new(next);
        self.prepare(next.clone(), Message::Reloaded(next));
        Ok(())
    }

    /// Prepares for the first sandbox of a pool.
    pub(super) fn prepare_first(&self, pool: Arc<PoolParts>) {
        let target = Event::TargetChanged {
            pool: pool.key,
            target: pool.warm,
        };
        self.prepare(pool, Message::Event(target));
    }

    /// Prepares for a pool's sandboxes; then they are made as it says, and the keeper is told.
    fn prepare(&self, next: Arc<PoolParts>, tell: Message) {
        let Some(kept) = self.pools.get(&next.id) else {
            return;
        };
        let (pools, keeper) = (self.pools.clone(), self.keeper.clone());
        let (directory, changed) = (self.config.installed.clone(), self.changed.clone());
        // The one that is replaced is dropped only once this one is in its place.
        let (begin, begun) = oneshot::channel::<()>();
        let preparing = tokio::spawn(async move {
            if begun.await.is_err() {
                return;
            }
            install::prepare(&next, directory, changed.clone()).await;
            let Some(kept) = pools.get(&next.id) else { return };
            kept.present.store(next);
            changed.set();
            keeper.tell(tell);
        });
        kept.work().preparing = Some(AbortOnDropHandle::new(preparing));
        let _ = begin.send(());
    }
}
