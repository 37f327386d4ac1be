//! What an operator can set.

use std::time::Duration;

/// What happens to a task that finds its queue full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdmissionPolicy {
    /// The new task is refused.
    #[default]
    Reject,
    /// The oldest waiting batch task makes room and is told; without one the new task is refused.
    DropLru,
}

/// The scheduler's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How many tasks may wait for one pool.
    pub queue_capacity: usize,
    /// What happens when that many wait.
    pub policy: AdmissionPolicy,
    /// How long a task waits for a pool that has no replica that could take it, ready or busy.
    pub pool_unready_wait: Duration,
    /// How many times a task may start in all. A refused slot does not count.
    pub attempts_max: u32,
    /// How much busier than the least busy replica a warm one may be, as a share of its slots, and still be chosen.
    pub warm_margin: f64,
    /// How many sessions and prefixes are remembered with the replicas that have them warm.
    pub warm_entries_max: usize,
    /// How long a replica is left alone after its node refused a slot, the first time.
    pub hold_off_min: Duration,
    /// And at most, after several refusals in a row.
    pub hold_off_max: Duration,
    /// How long the slots that a report gives to other control planes count as taken.
    pub others_trust: Duration,
    /// When a replica that was taken out is probed, the first time.
    pub probe_min: Duration,
    /// The longest wait between two probes.
    pub probe_max: Duration,
    /// How long a pool or a model without any replica stays known.
    pub forget_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_capacity: 100,
            policy: AdmissionPolicy::Reject,
            pool_unready_wait: Duration::from_secs(30),
            attempts_max: 4,
            warm_margin: 0.25,
            warm_entries_max: 65_536,
            hold_off_min: Duration::from_millis(50),
            hold_off_max: Duration::from_secs(1),
            others_trust: Duration::from_secs(1),
            probe_min: Duration::from_millis(200),
            probe_max: Duration::from_secs(5),
            forget_after: Duration::from_secs(600),
        }
    }
}
