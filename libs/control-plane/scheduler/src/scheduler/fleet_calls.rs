//! Replicas come, change and go; time passes.

use std::sync::Arc;
use std::time::Duration;

use pool_registry_types::{NodeId, PoolId, ReplicaId};

use super::{Effect, Effects, FORGET_INTERVAL, Scheduler};
use crate::arena::Key;
use crate::life::{Life, Wait};
use crate::replica::Breaker;
use crate::{Moment, Refusal, ReplicaKey, ReplicaUpdate};

/// Nothing is looked at more often than this, whatever the settings say.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(10);

impl Scheduler {
    /// Adds a replica or takes its newer report.
    pub fn upsert_replica(
        &mut self,
        now: Moment,
        update: ReplicaUpdate,
        effects: &mut Effects,
    ) -> ReplicaKey {
        let key = self.fleet.upsert(now, update, &self.settings);
        self.offer(now, key, effects);
        if !self.fleet.replicas[key].is_ready() {
            self.relax_all(now, effects);
        }
        ReplicaKey(key)
    }

    /// The replica is gone, or its node is offline. Its leases stay valid until they are given back: a holder goes on
    /// while bytes come and sees for itself when they end. Removing what is not there changes nothing.
    pub fn remove_replica(
        &mut self,
        now: Moment,
        node: &NodeId,
        pool: &PoolId,
        replica: &ReplicaId,
        effects: &mut Effects,
    ) {
        let Some(key) = self.fleet.replica_key(node, pool, replica) else {
            return;
        };
        if !self.fleet.replicas[key].present {
            return;
        }
        self.fleet.remove(now, key);
        self.relax_all(now, effects);
    }

    /// A dispatch failed: nothing more is sent there until `bring_back`, or until its node has reported it lost and
    /// ready again. [`Effect::Probe`]s follow from `tick`.
    pub fn take_out(&mut self, now: Moment, replica: ReplicaKey, effects: &mut Effects) {
        let Some(known) = self.fleet.replicas.get(replica.0) else {
            return;
        };
        if known.breaker == Breaker::Closed {
            let next_probe = now + self.settings.probe_min;
            self.fleet.set_breaker(
                now,
                replica.0,
                Breaker::Open {
                    next_probe,
                    probes: 0,
                },
            );
            self.relax_all(now, effects);
        }
    }

    /// A probe succeeded.
    pub fn bring_back(&mut self, now: Moment, replica: ReplicaKey, effects: &mut Effects) {
        let Some(known) = self.fleet.replicas.get(replica.0) else {
            return;
        };
        if known.breaker != Breaker::Closed {
            self.fleet.set_breaker(now, replica.0, Breaker::Closed);
            self.offer(now, replica.0, effects);
        }
    }

    /// Starts or ends the draining of a pool by this control plane: it finishes what it has and gets nothing new.
    /// False when no such pool is known.
    pub fn drain_pool(&mut self, now: Moment, pool: &PoolId, draining: bool, effects: &mut Effects) -> bool {
        let Some(key) = self.fleet.pool_key(pool) else {
            return false;
        };
        if self.fleet.pools[key].draining != draining {
            self.fleet.set_pool_draining(now, key, draining);
            let replicas: Vec<Key> = self.fleet.pools[key].replicas.values().copied().collect();
            for replica in replicas {
                self.offer(now, replica, effects);
            }
            self.relax_all(now, effects);
        }
        true
    }

    /// Does what is due: deadlines of waiting tasks, ends of hold-offs, probes, forgetting. Call it when
    /// [`Scheduler::next_due`] says, and once a minute at least.
    pub fn tick(&mut self, now: Moment, effects: &mut Effects) {
        while let Some((due, key)) = self.fleet.timers.first().copied()
            && due <= now
        {
            self.look_at_replica(now, key, effects);
        }
        while let Some((due, key)) = self.timers.first().copied()
            && due <= now
        {
            self.look_at_waiting(now, key, effects);
        }
        if now >= self.next_forget {
            self.next_forget = now + FORGET_INTERVAL;
            self.fleet.forget(now, self.settings.forget_after);
        }
    }

    /// When `tick` should be called next; None: nothing is due until something else happens.
    pub fn next_due(&self) -> Option<Moment> {
        let replicas = self.fleet.timers.first().map(|(due, _)| *due);
        let tasks = self.timers.first().map(|(due, _)| *due);
        [replicas, tasks].into_iter().flatten().min()
    }

    fn look_at_replica(&mut self, now: Moment, key: Key, effects: &mut Effects) {
        let replica = &mut self.fleet.replicas[key];
        if replica.hold_off.until.is_some_and(|until| until <= now) {
            replica.hold_off.until = None;
        }
        if replica.others_until.is_some_and(|until| until <= now) {
            replica.others_until = None;
        }
        if let Breaker::Open { next_probe, probes } = replica.breaker
            && next_probe <= now
        {
            let wait = self.settings.probe_min * 2u32.saturating_pow((probes + 1).min(16));
            let next_probe = now + wait.min(self.settings.probe_max).max(LOOK_AGAIN_MIN);
            replica.breaker = Breaker::Open {
                next_probe,
                probes: probes + 1,
            };
            effects.push(Effect::Probe(ReplicaKey(key), Arc::clone(&replica.info)));
        }
        self.fleet.reindex(key);
        self.offer(now, key, effects);
    }

    fn look_at_waiting(&mut self, now: Moment, key: Key, effects: &mut Effects) {
        let task = &self.tasks[key];
        let Life::Queued(wait) = task.life else {
            unreachable!("only waiting tasks have a timer")
        };
        if task.deadline.is_some_and(|deadline| deadline <= now) {
            self.end_waiting(key, Refusal::Expired, effects);
            return;
        }
        let patience = self.settings.pool_unready_wait;
        let look_again = if self.fleet.any_ready(task.wants()) {
            now + patience.max(LOOK_AGAIN_MIN)
        } else {
            self.unready_since(key, wait) + patience
        };
        if look_again <= now {
            self.end_waiting(key, Refusal::PoolUnavailable, effects);
            return;
        }
        let task = &mut self.tasks[key];
        let due = task
            .deadline
            .map_or(look_again, |deadline| deadline.min(look_again));
        task.life = Life::Queued(Wait { due, ..wait });
        self.timers.remove(&(wait.due, key));
        self.timers.insert((due, key));
    }

    /// Since when no pool had a ready replica for a waiting task.
    fn unready_since(&self, key: Key, wait: Wait) -> Moment {
        let pools = self.fleet.pools_for(self.tasks[key].wants());
        let last = pools.map(|(pool, counts)| {
            // With ready replicas that cannot run this task the pool was of no use to it all along.
            if counts.ready > 0 {
                wait.since
            } else {
                self.fleet.pools[pool].last_ready
            }
        });
        last.max().unwrap_or(wait.since).max(wait.since)
    }

    /// A replica is no longer ready: tasks for which it was the last other one may now go back to where they failed.
    fn relax_all(&mut self, now: Moment, effects: &mut Effects) {
        if self.waiting == 0 {
            return;
        }
        for replica in self.relax_failed() {
            self.offer(now, replica, effects);
        }
    }

    /// Clears the failed replicas of the waiting tasks that no other could run; returns those replicas.
    fn relax_failed(&mut self) -> Vec<Key> {
        let marked: Vec<Key> = self
            .timers
            .iter()
            .map(|(_, key)| *key)
            .filter(|key| !self.tasks[*key].failed.is_empty())
            .collect();
        let mut replicas = Vec::new();
        for key in marked {
            let failed: Vec<Key> = self.tasks[key].failed.replicas().collect();
            self.relax(key);
            if self.tasks[key].failed.is_empty() {
                replicas.extend(failed);
            }
        }
        replicas
    }
}
