//! Slots given and taken back, and the waiting tasks that get them.

use task_api::PlacementMode;

use super::{Admission, Effect, Effects, Placement, Scheduler};
use crate::arena::Key;
use crate::life::{Event, Hold, Life, Misstep};
use crate::queue::Ticket;
use crate::{Lease, Moment, Outcome, Reason, Reasons, Refusal, ReplicaKey, StaleLease, TaskKey};

impl Scheduler {
    /// Gives a slot of `replica` to a task that has none.
    pub(super) fn place(&mut self, now: Moment, key: Key, replica: Key, reasons: Reasons) -> Placement {
        let task = &mut self.tasks[key];
        let place = Event::Place(Hold { replica, since: now });
        task.life = task
            .life
            .step(place)
            .expect("only a task without a slot is placed");
        task.leases += 1;
        let placement = Placement {
            lease: Lease {
                task: TaskKey(key),
                start: task.leases,
            },
            replica: ReplicaKey(replica),
            info: self.fleet.replicas[replica].info.clone(),
            reasons,
            deadline: task.deadline,
        };
        for (warm, _) in task.warm.iter() {
            self.affinity.note(warm, replica);
        }
        self.fleet.lease(replica);
        placement
    }

    /// The slot behind a lease.
    fn held(&self, lease: Lease) -> Result<Hold, StaleLease> {
        let task = self
            .tasks
            .get(lease.task.0)
            .filter(|task| task.leases == lease.start)
            .ok_or(StaleLease)?;
        match task.life {
            Life::Placed(hold) | Life::Running(hold) => Ok(hold),
            Life::Accepted | Life::Queued(_) | Life::Ended => Err(StaleLease),
        }
    }

    /// The first byte of the answer is on its way to the client: from now on the task cannot start over.
    pub fn started(&mut self, _now: Moment, lease: Lease) -> Result<(), StaleLease> {
        let hold = self.held(lease)?;
        let task = &mut self.tasks[lease.task.0];
        task.life = task
            .life
            .step(Event::FirstByte)
            .expect("a task that holds a slot may answer");
        self.fleet.replicas[hold.replica].hold_off.refusals = 0;
        Ok(())
    }

    /// The task has ended: its slot is free.
    pub fn release(
        &mut self,
        now: Moment,
        lease: Lease,
        outcome: Outcome,
        effects: &mut Effects,
    ) -> Result<(), StaleLease> {
        let hold = self.held(lease)?;
        self.end(lease.task.0);
        if outcome == Outcome::Completed {
            // Here a slot is surely free: its node saw the same end. After a cancel its engine may still be busy.
            self.fleet.replicas[hold.replica].hold_off.until = None;
        }
        self.give_back(now, hold, outcome != Outcome::Failed, effects);
        Ok(())
    }

    /// The replica failed before anything was sent: the task starts over elsewhere, before all that came after it.
    /// Call `take_out` first when the replica itself is at fault, or it may be chosen again.
    ///
    /// Whatever the answer, the lease is no longer held. [`Refusal::AttemptsExhausted`] comes after too many starts,
    /// [`Refusal::AnswerBegun`] when `started` was called; the task has then ended.
    pub fn requeue(
        &mut self,
        now: Moment,
        lease: Lease,
        effects: &mut Effects,
    ) -> Result<Admission, Refusal> {
        let hold = self.come_back(now, lease, effects)?;
        let key = lease.task.0;
        let task = &mut self.tasks[key];
        task.failures += 1;
        if task.failures >= self.settings.attempts_max {
            let attempts = task.failures;
            self.end(key);
            self.give_back(now, hold, false, effects);
            return Err(Refusal::AttemptsExhausted { attempts });
        }
        task.failed.note(
            hold.replica,
            self.fleet.replicas[hold.replica].info.node_id.clone(),
        );
        self.relax(key);
        let answer = self.readmit(now, key);
        // The slot is offered to others only now, so that this task has had its choice first.
        self.give_back(now, hold, false, effects);
        self.catch_up(answer, effects)
    }

    /// The node said that its slots are taken: the replica is left alone for a while and the task placed again. Does
    /// not count as a start. Whatever the answer, the lease is no longer held.
    pub fn refused(
        &mut self,
        now: Moment,
        lease: Lease,
        effects: &mut Effects,
    ) -> Result<Admission, Refusal> {
        let hold = self.come_back(now, lease, effects)?;
        self.fleet.hold_off(now, hold.replica, &self.settings);
        let answer = self.readmit(now, lease.task.0);
        self.give_back(now, hold, false, effects);
        self.catch_up(answer, effects)
    }

    /// Takes the slot from a task that has sent nothing; ends one that has.
    fn come_back(&mut self, now: Moment, lease: Lease, effects: &mut Effects) -> Result<Hold, Refusal> {
        let hold = self.held(lease)?;
        let task = &mut self.tasks[lease.task.0];
        match task.life.step(Event::ComeBack) {
            Ok(life) => {
                task.life = life;
                Ok(hold)
            }
            Err(Misstep::AnswerBegun) => {
                self.end(lease.task.0);
                self.give_back(now, hold, false, effects);
                Err(Refusal::AnswerBegun)
            }
            Err(Misstep::HasSlot | Misstep::NoSlot | Misstep::Waits | Misstep::Over) => {
                Err(Refusal::StaleLease)
            }
        }
    }

    /// A task that was put into the queue may have got a slot while its old one was given back: then that is the
    /// answer, and no longer an effect.
    fn catch_up(
        &self,
        answer: Result<Admission, Refusal>,
        effects: &mut Effects,
    ) -> Result<Admission, Refusal> {
        if let Ok(Admission::Queued(task, _)) = answer {
            let own =
                |effect: &Effect| matches!(effect, Effect::Placed(placement) if placement.lease.task == task);
            if let Some(at) = effects.iter().rposition(own)
                && let Effect::Placed(placement) = effects.remove(at)
            {
                return Ok(Admission::Placed(placement));
            }
        }
        answer
    }

    /// Ends a task wherever it stands, and frees its slot. False when it had ended before.
    pub fn cancel(&mut self, now: Moment, task: TaskKey, effects: &mut Effects) -> bool {
        let Some(known) = self.tasks.get(task.0) else {
            return false;
        };
        match known.life {
            Life::Queued(wait) => {
                self.leave_queue(task.0, wait);
                self.end(task.0);
            }
            Life::Placed(hold) | Life::Running(hold) => {
                self.end(task.0);
                self.give_back(now, hold, true, effects);
            }
            Life::Accepted | Life::Ended => unreachable!("no call leaves a task in these states"),
        }
        true
    }

    /// The task is over and forgotten.
    pub(super) fn end(&mut self, key: Key) {
        let task = self.tasks.remove(key).expect("a task is ended once");
        task.life
            .step(Event::End)
            .expect("a task that is known is not over");
    }

    /// Frees a slot and gives it to whom it is due.
    fn give_back(&mut self, now: Moment, hold: Hold, tells_pace: bool, effects: &mut Effects) {
        if tells_pace {
            let pool = self.fleet.replicas[hold.replica].pool;
            self.fleet.pools[pool].pace.sample(now.saturating_sub(hold.since));
        }
        self.fleet.give_back(hold.replica);
        self.offer(now, hold.replica, effects);
    }

    /// While the replica has room, gives it the first waiting tasks that fit.
    pub(super) fn offer(&mut self, now: Moment, replica: Key, effects: &mut Effects) {
        while self.waiting > 0 {
            let has_room = self
                .fleet
                .replicas
                .get(replica)
                .is_some_and(|replica| replica.rank.is_some());
            let Some((_, key)) = has_room.then(|| self.first_waiting(replica)).flatten() else {
                return;
            };
            let task = &self.tasks[key];
            let mut reasons = Reasons::default();
            if task
                .wishes
                .as_ref()
                .is_some_and(|wishes| wishes.mode == PlacementMode::Pin)
            {
                reasons.push(Reason::Pinned);
            }
            reasons.push(Reason::FirstFree);
            if task.failures > 0 {
                reasons.push(Reason::StartedOver {
                    before: u16::try_from(task.failures).unwrap_or(u16::MAX),
                });
            }
            if let Life::Queued(wait) = task.life {
                self.leave_queue(key, wait);
            }
            let placement = self.place(now, key, replica, reasons);
            effects.push(Effect::Placed(placement));
        }
    }

    /// The first task, over all queues that may hold one for this replica, that the replica can run.
    fn first_waiting(&self, key: Key) -> Option<(Ticket, Key)> {
        let replica = &self.fleet.replicas[key];
        let elsewhere = replica
            .models
            .iter()
            .filter_map(|model| self.fleet.models.get(*model));
        let elsewhere = elsewhere.flat_map(|model| model.serving.iter().map(|serving| serving.pool));
        let queues = elsewhere
            .filter(|pool| *pool != replica.pool)
            .chain([replica.pool]);
        queues
            .filter_map(|pool| {
                let queue = &self.fleet.pools[pool].queue;
                queue
                    .iter()
                    .find(|(_, task)| self.fleet.fits(&self.tasks[*task].wants(), key))
            })
            .min_by_key(|(ticket, _)| *ticket)
    }

    /// A task that no other ready replica could run gets those back that failed it.
    pub(super) fn relax(&mut self, key: Key) {
        while !self.tasks[key].failed.is_empty() && !self.fleet.any_ready(self.tasks[key].wants()) {
            self.tasks[key].failed.relax();
        }
    }
}
