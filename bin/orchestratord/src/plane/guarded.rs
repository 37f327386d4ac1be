//! The scheduler behind its lock, with those who wait for it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use scheduler::{Effect, Effects, Placement, Refusal, ReplicaInfo, ReplicaKey, Scheduler, TaskKey};
use tokio::sync::oneshot;

/// How a wait ends.
pub(crate) type Verdict = Result<Placement, Refusal>;

/// A replica that should be asked whether it is there again.
pub(crate) type ProbeWish = (ReplicaKey, std::sync::Arc<ReplicaInfo>);

/// One lock around what must agree.
pub(crate) struct Guarded {
    inner: Mutex<Inner>,
}

pub(crate) struct Inner {
    pub(crate) scheduler: Scheduler,
    waiters: HashMap<TaskKey, oneshot::Sender<Verdict>>,
    /// Kept between calls, so that a call allocates nothing.
    effects: Effects,
    probes: Vec<ProbeWish>,
}

impl Guarded {
    pub(crate) fn new(scheduler: Scheduler) -> Self {
        let inner = Inner {
            scheduler,
            waiters: HashMap::new(),
            effects: Vec::new(),
            probes: Vec::new(),
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// One call of the scheduler, and the wake-ups that follow from it.
    ///
    /// A panic inside would leave the scheduler in doubt; every entry point of it is total, and going on with what is
    /// there serves more people than refusing everybody.
    pub(crate) fn with<T>(&self, call: impl FnOnce(&mut Scheduler, &mut Effects) -> T) -> T {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut effects = std::mem::take(&mut inner.effects);
        let result = call(&mut inner.scheduler, &mut effects);
        inner.deliver(&mut effects);
        inner.effects = effects;
        result
    }

    /// As [`Guarded::with`], and the task that is still waiting afterwards gets somebody to tell.
    pub(crate) fn with_waiter<T>(
        &self,
        call: impl FnOnce(&mut Scheduler, &mut Effects) -> (T, Option<TaskKey>),
    ) -> (T, Option<oneshot::Receiver<Verdict>>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut effects = std::mem::take(&mut inner.effects);
        let (result, waiting) = call(&mut inner.scheduler, &mut effects);
        let receiver = waiting.map(|task| {
            let (sender, receiver) = oneshot::channel();
            inner.waiters.insert(task, sender);
            receiver
        });
        inner.deliver(&mut effects);
        inner.effects = effects;
        (result, receiver)
    }

    /// Nobody waits for this task any more.
    pub(crate) fn forget_waiter(&self, task: TaskKey) {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiters
            .remove(&task);
    }

    /// What has to be probed since the last time.
    pub(crate) fn take_probes(&self) -> Vec<ProbeWish> {
        std::mem::take(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner).probes)
    }
}

impl Inner {
    fn deliver(&mut self, effects: &mut Effects) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Placed(placement) => {
                    // A waiter that is gone has cancelled its task, or is about to: either gives the slot back.
                    if let Some(waiter) = self.waiters.remove(&placement.lease.task()) {
                        let _ = waiter.send(Ok(placement));
                    }
                }
                Effect::Ended(task, refusal) => {
                    if let Some(waiter) = self.waiters.remove(&task) {
                        let _ = waiter.send(Err(refusal));
                    }
                }
                Effect::Probe(replica, info) => self.probes.push((replica, info)),
            }
        }
    }
}
