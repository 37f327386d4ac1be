//! The invariants, looked at from inside. Tests only.

use std::collections::BTreeMap;

use super::Scheduler;
use crate::arena::Key;
use crate::life::Life;

impl Scheduler {
    /// Panics when an invariant does not hold.
    pub(crate) fn check(&self) {
        let leased = self.check_tasks();
        self.check_replicas(&leased);
        self.check_counts();
        self.check_nobody_waits_in_vain();
    }

    fn check_tasks(&self) -> BTreeMap<Key, u32> {
        let mut leased: BTreeMap<Key, u32> = BTreeMap::new();
        let mut waiting = 0;
        for (key, task) in self.tasks.iter() {
            match task.life {
                Life::Queued(wait) => {
                    waiting += 1;
                    assert!(self.timers.contains(&(wait.due, key)), "{key:?} has no timer");
                    let queue = &self.fleet.pools[wait.home].queue;
                    assert!(
                        queue.iter().any(|entry| entry == (task.ticket, key)),
                        "{key:?} stands in no queue"
                    );
                }
                Life::Placed(hold) | Life::Running(hold) => *leased.entry(hold.replica).or_default() += 1,
                Life::Accepted | Life::Ended => panic!("{key:?} was left in {:?}", task.life),
            }
        }
        assert_eq!((self.waiting, self.timers.len()), (waiting, waiting));
        let queued: usize = self.fleet.pools.iter().map(|(_, pool)| pool.queue.len()).sum();
        assert_eq!(queued, waiting, "a queue holds a task that does not wait");
        leased
    }

    fn check_replicas(&self, leased: &BTreeMap<Key, u32>) {
        let mut indexed = 0;
        for (key, replica) in self.fleet.replicas.iter() {
            assert_eq!(
                replica.leased,
                leased.get(&key).copied().unwrap_or(0),
                "slots of {key:?}"
            );
            let pool = &self.fleet.pools[replica.pool];
            let expect = if pool.draining {
                None
            } else {
                replica.rank_now(key)
            };
            assert_eq!(replica.rank, expect, "rank of {key:?}");
            assert!(replica.rank.is_none_or(|rank| pool.index.contains(&rank)));
            indexed += usize::from(replica.rank.is_some());
            assert_eq!(replica.timer, replica.next_timer());
            assert!(
                replica
                    .timer
                    .is_none_or(|timer| self.fleet.timers.contains(&(timer, key)))
            );
            assert!(
                replica.present || replica.leased > 0,
                "{key:?} is gone and still kept"
            );
        }
        for replica in leased.keys() {
            assert!(
                self.fleet.replicas.get(*replica).is_some(),
                "a lease of a replica that is not kept"
            );
        }
        assert_eq!(
            indexed,
            self.fleet
                .pools
                .iter()
                .map(|(_, pool)| pool.index.len())
                .sum::<usize>()
        );
    }

    fn check_counts(&self) {
        for (key, pool) in self.fleet.pools.iter() {
            let replicas = || pool.replicas.values().map(|key| &self.fleet.replicas[*key]);
            let present = || replicas().filter(|replica| replica.present);
            let ready = || present().filter(|replica| replica.is_ready() && !pool.draining);
            assert_eq!(pool.counts.known as usize, present().count());
            assert_eq!(pool.counts.ready as usize, ready().count());
            assert_eq!(
                pool.counts.ready_slots,
                ready().map(|replica| replica.status.slots_total).sum::<u32>()
            );
            assert_eq!(pool.leased, replicas().map(|replica| replica.leased).sum::<u32>());
            let labels: Vec<u64> = replicas().map(|replica| replica.label).collect();
            assert!(labels.is_sorted_by(|a, b| a < b), "labels of {key:?}: {labels:?}");
        }
        for (key, model) in self.fleet.models.iter() {
            for serving in &model.serving {
                let replicas = self.fleet.pools[serving.pool].replicas.values();
                let serves = replicas.map(|replica| &self.fleet.replicas[*replica]);
                let serves = serves.filter(|replica| replica.present && replica.models.contains(&key));
                assert_eq!(serving.counts.known as usize, serves.count());
            }
        }
    }

    /// No waiting task fits a replica that has room.
    fn check_nobody_waits_in_vain(&self) {
        for (key, task) in self
            .tasks
            .iter()
            .filter(|(_, task)| matches!(task.life, Life::Queued(_)))
        {
            for (_, pool) in self.fleet.pools.iter() {
                for rank in &pool.index {
                    assert!(
                        !self.fleet.fits(&task.wants(), rank.replica),
                        "{key:?} waits and {rank:?} has room"
                    );
                }
            }
        }
    }
}
