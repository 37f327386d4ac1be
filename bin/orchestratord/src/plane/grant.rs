//! Leases and waits that give themselves back.

use std::sync::Arc;

use scheduler::{
    Admission, Effects, Lease, Moment, Outcome, Placement, Refusal, ReplicaInfo, Scheduler, TaskKey,
    TaskSpec, Waiting,
};
use tokio::sync::oneshot;

use super::guarded::Verdict;
use super::{Plane, SharedPlane};
use crate::recent::{Seen, state_of};

/// A slot. Dropping it gives the slot back as cancelled.
pub(crate) struct Grant {
    plane: SharedPlane,
    placement: Option<Placement>,
    /// The request of `/v1` that ends with it.
    seen: Option<Seen>,
}

/// A task that was accepted.
pub(crate) enum Submission {
    Placed(Grant),
    Waits(Waiter, Waiting),
}

/// A task in a queue. Dropping it cancels the task.
pub(crate) struct Waiter {
    plane: SharedPlane,
    task: TaskKey,
    receiver: oneshot::Receiver<Verdict>,
    over: bool,
}

impl Plane {
    /// Submits a task.
    pub(crate) fn submit(self: &Arc<Self>, spec: &TaskSpec<'_>) -> Result<Submission, Refusal> {
        let now = self.now();
        let (admission, receiver) = self.guarded.with_waiter(|scheduler, effects| {
            let admission = scheduler.submit(now, spec, effects);
            let waiting = waiting_task(&admission);
            (admission, waiting)
        });
        self.accepted(admission, receiver)
    }

    fn accepted(
        self: &Arc<Self>,
        admission: Result<Admission, Refusal>,
        receiver: Option<oneshot::Receiver<Verdict>>,
    ) -> Result<Submission, Refusal> {
        match (admission?, receiver) {
            (Admission::Placed(placement), _) => Ok(Submission::Placed(Grant {
                plane: self.clone(),
                placement: Some(placement),
                seen: None,
            })),
            (Admission::Queued(task, waiting), Some(receiver)) => {
                self.due.notify_one();
                let waiter = Waiter {
                    plane: self.clone(),
                    task,
                    receiver,
                    over: false,
                };
                Ok(Submission::Waits(waiter, waiting))
            }
            (Admission::Queued(..), None) => unreachable!("a waiting task always gets a receiver"),
        }
    }
}

fn waiting_task(admission: &Result<Admission, Refusal>) -> Option<TaskKey> {
    match admission {
        Ok(Admission::Queued(task, _)) => Some(*task),
        Ok(Admission::Placed(_)) | Err(_) => None,
    }
}

impl Submission {
    /// Waits for the slot, if need be.
    pub(crate) async fn granted(self) -> Result<Grant, Refusal> {
        match self {
            Self::Placed(grant) => Ok(grant),
            Self::Waits(waiter, _) => waiter.granted().await,
        }
    }
}

impl Waiter {
    /// The task's name in the scheduler.
    pub(crate) fn task(&self) -> TaskKey {
        self.task
    }

    /// Waits for the slot. Cancel safe: dropping the future cancels the task.
    pub(crate) async fn granted(mut self) -> Result<Grant, Refusal> {
        let verdict = (&mut self.receiver).await;
        self.over = true;
        match verdict {
            Ok(Ok(placement)) => Ok(Grant {
                plane: self.plane.clone(),
                placement: Some(placement),
                seen: None,
            }),
            Ok(Err(refusal)) => Err(refusal),
            // The sender is dropped only by `forget_waiter`, which only this waiter's own drop calls.
            Err(_) => Err(Refusal::StaleLease),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let now = self.plane.now();
        self.plane.guarded.forget_waiter(self.task);
        // Ends the task wherever it stands, also when its slot was on the way to the channel just now.
        self.plane
            .guarded
            .with(|scheduler, effects| scheduler.cancel(now, self.task, effects));
    }
}

impl Grant {
    fn placement(&self) -> &Placement {
        self.placement
            .as_ref()
            .expect("only methods that consume the grant take its placement")
    }

    /// From now on the request's place in the list of `/v1` ends with this slot.
    pub(crate) fn ending(mut self, seen: Seen) -> Self {
        self.seen = Some(seen);
        self
    }

    /// Whether the request of `/v1` that ends with this slot was cancelled by its name.
    pub(crate) fn is_cancelled(&mut self) -> bool {
        let recent = &self.plane.recent;
        self.seen.as_mut().is_some_and(|seen| recent.is_cancelled(seen))
    }

    /// What the replica is.
    pub(crate) fn info(&self) -> &Arc<ReplicaInfo> {
        &self.placement().info
    }

    /// Why this replica.
    pub(crate) fn reasons(&self) -> &scheduler::Reasons {
        &self.placement().reasons
    }

    /// The answer has begun: from now on the task cannot start over.
    pub(crate) fn started(&self) {
        let (now, lease) = (self.plane.now(), self.placement().lease);
        // A lease that is stale already shows when it is given back.
        let _ = self
            .plane
            .guarded
            .with(|scheduler, _| scheduler.started(now, lease));
    }

    /// Gives the slot back.
    pub(crate) fn finish(mut self, outcome: Outcome) {
        self.give_back(outcome);
    }

    /// Nothing more is sent to this replica before it has answered a probe.
    pub(crate) fn take_out_replica(&self) {
        let (now, replica) = (self.plane.now(), self.placement().replica);
        self.plane
            .guarded
            .with(|scheduler, effects| scheduler.take_out(now, replica, effects));
        self.plane.due.notify_one();
    }

    /// The replica failed before anything was sent: the task starts over.
    pub(crate) fn requeue(self) -> Result<Submission, Refusal> {
        self.again(Scheduler::requeue)
    }

    /// The node said that its slots are taken: the task is placed again.
    pub(crate) fn refused(self) -> Result<Submission, Refusal> {
        self.again(Scheduler::refused)
    }

    fn again(
        mut self,
        call: fn(&mut Scheduler, Moment, Lease, &mut Effects) -> Result<Admission, Refusal>,
    ) -> Result<Submission, Refusal> {
        let placement = self
            .placement
            .take()
            .expect("a grant holds its placement until it is consumed");
        let now = self.plane.now();
        let (admission, receiver) = self.plane.guarded.with_waiter(|scheduler, effects| {
            let admission = call(scheduler, now, placement.lease, effects);
            let waiting = waiting_task(&admission);
            (admission, waiting)
        });
        self.plane.accepted(admission, receiver)
    }

    fn give_back(&mut self, outcome: Outcome) {
        let Some(placement) = self.placement.take() else {
            return;
        };
        let now = self.plane.now();
        if let Some(seen) = self.seen.take() {
            self.plane.recent.end(seen, state_of(outcome), now);
        }
        // A stale lease was given back by a cancel; nothing is left to do.
        let _ = self
            .plane
            .guarded
            .with(|scheduler, effects| scheduler.release(now, placement.lease, outcome, effects));
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.give_back(Outcome::Cancelled);
    }
}
