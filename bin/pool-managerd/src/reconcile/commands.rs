//! What the reconciling task can be told.

use std::time::{Duration, Instant};

use pool_registry_types::PoolId;
use tokio::sync::oneshot;

use super::Reconciler;

/// What the task is told.
pub(crate) enum Command {
    Drain {
        pool: PoolId,
        deadline: Duration,
        reply: oneshot::Sender<Result<(), UnknownPool>>,
    },
    Undrain {
        pool: PoolId,
        reply: oneshot::Sender<Result<(), UnknownPool>>,
    },
    Reload {
        pool: PoolId,
        reply: oneshot::Sender<Result<(), UnknownPool>>,
    },
    /// Takes nothing new on the whole node, waits for what there is, ends the engines if told, and ends.
    Shutdown {
        deadline: Duration,
        stop_engines: bool,
        reply: oneshot::Sender<usize>,
    },
}

/// The node has no such pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node has no pool {0}")]
pub struct UnknownPool(pub PoolId);

impl Reconciler {
    pub(super) fn drain(&mut self, pool: &PoolId, deadline: Duration) -> Result<(), UnknownPool> {
        self.known(pool)?;
        let deadline = Instant::now() + deadline;
        tracing::info!(pool_id = %pool, "the pool takes nothing new and finishes what it has");
        self.state.drained.insert(pool.clone(), deadline);
        // Whoever is on the way out already may not take longer than it is now told.
        for ((id, _), until) in &mut self.state.leaving {
            if id == pool {
                *until = (*until).min(deadline);
            }
        }
        for ((id, _), attended) in &self.state.attended {
            if id == pool {
                attended.replica.set_draining(true);
            }
        }
        Ok(())
    }

    /// Takes tasks again; what is on its way out and has not been ended stays.
    pub(super) fn undrain(&mut self, pool: &PoolId) -> Result<(), UnknownPool> {
        self.known(pool)?;
        if self.state.drained.remove(pool).is_some() {
            tracing::info!(pool_id = %pool, "the pool takes tasks again");
            self.state.leaving.retain(|(id, _), _| id != pool);
        }
        Ok(())
    }

    /// Replaces the pool's engines, and takes tasks again if it was drained.
    pub(super) fn reload(&mut self, pool: &PoolId) -> Result<(), UnknownPool> {
        self.known(pool)?;
        tracing::info!(pool_id = %pool, "the pool is reloaded");
        self.state.drained.remove(pool);
        self.state.starts.remove(pool);
        let kept = self.state.kept.iter().filter(|(id, _)| id == pool);
        self.state.outdated.extend(kept.cloned());
        for (key, attended) in &self.state.attended {
            if key.0 == *pool {
                attended.replica.set_draining(false);
                attended.replica.ask_again();
            }
        }
        Ok(())
    }

    fn known(&self, pool: &PoolId) -> Result<(), UnknownPool> {
        let known =
            self.door.table().pools.contains_key(pool) || self.pools.iter().any(|known| known.id == *pool);
        if known {
            Ok(())
        } else {
            Err(UnknownPool(pool.clone()))
        }
    }

    /// Waits for the tasks, ends the engines if told, and gives how many tasks and engines were left.
    pub(super) async fn shut_down(&mut self, deadline: Duration, stop_engines: bool) -> usize {
        let deadline = tokio::time::Instant::now() + deadline;
        for attended in self.state.attended.values() {
            attended.replica.set_draining(true);
        }
        let taken = || {
            self.state
                .attended
                .values()
                .map(|attended| attended.replica.taken() as usize)
                .sum::<usize>()
        };
        while taken() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut left = taken();
        // Nobody asks an engine that is told to end whether it is well.
        for attended in self.state.attended.values() {
            attended.stop.cancel();
        }
        if stop_engines {
            // Engines that were asked to end are killed after a while, so this is waited for beyond the deadline.
            left += self.fleet.stop_all(deadline + Duration::from_secs(20)).await;
        }
        self.attending.close();
        self.attending.wait().await;
        left
    }
}
