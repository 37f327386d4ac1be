//! The ledger of one replica's slots: who holds how many, and when one is free again.
//!
//! Pure: time comes in, decisions go out. The [door](crate::Door) keeps one ledger per replica behind a short lock.
//!
//! ```text
//!            grant            ended well
//!   (free) ────────▶ Active ──────────────────────────────▶ (free)
//!                      │ abandoned, the engine can tell        ▲
//!                      └────────────▶ Settling ────────────────┘
//!                        ▲            the engine says idle, the engine is gone, or SETTLE_MAX has passed
//!                        └── busy in the engine and held by nobody, when the replica comes in
//! ```
//!
//! Invariants:
//! - a slot is granted only while the replica is open and `leases < total`, so no slot is booked twice;
//! - each lease leaves the ledger exactly once, so none leaks: after all have ended, `free == total`;
//! - `total` may shrink below the leases that are out; then nothing is granted until enough have ended.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use pool_registry_types::ControlPlaneId;

/// How long a slot is kept for an engine that still works on a task whose caller has left. Past it the slot counts as
/// free: an engine that has not noticed by then does not tell the truth about its slots.
pub(crate) const SETTLE_MAX: Duration = Duration::from_secs(5);

/// How long an engine may take to begin with a request that was sent to it. A younger lease that has shown no answer
/// yet may not be among the slots that the engine calls busy.
const BEGIN_MAX: Duration = Duration::from_millis(25);

/// Who holds slots whose tasks nobody here has started.
const NOBODY: &str = "nobody";

/// Names one lease within its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LeaseId(u64);

/// Whether a replica takes tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// It has not answered a probe yet, or has stopped answering.
    NotReady,
    /// It takes tasks.
    Open,
    /// It finishes what it has.
    Draining,
}

/// Why no slot was granted. Ordinary: the caller places the task again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The replica does not answer.
    NotReady,
    /// The replica takes nothing new.
    Draining,
    /// Every slot is taken.
    SlotsTaken,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The engine's answer came to its end, so the engine is done with the task.
    Complete,
    /// The caller left or the connection broke: the engine may not know yet.
    Abandoned,
}

/// The slots of one replica.
#[derive(Debug)]
pub(crate) struct Slots {
    total: u32,
    gate: Gate,
    /// Whether the engine can be asked how many of its slots are busy.
    engine_tells: bool,
    leases: HashMap<LeaseId, Lease, FixedState>,
    next_id: u64,
}

#[derive(Debug)]
struct Lease {
    holder: ControlPlaneId,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Active { since: Instant, answered: bool },
    Settling { since: Instant },
}

impl Slots {
    /// A ledger with nothing granted, closed until the first probe.
    pub(crate) fn new() -> Self {
        Self {
            total: 0,
            gate: Gate::NotReady,
            engine_tells: false,
            leases: HashMap::default(),
            next_id: 0,
        }
    }

    /// Grants a slot to `holder` or says why not.
    pub(crate) fn grant(&mut self, now: Instant, holder: &ControlPlaneId) -> Result<LeaseId, Refusal> {
        match self.gate {
            Gate::NotReady => return Err(Refusal::NotReady),
            Gate::Draining => return Err(Refusal::Draining),
            Gate::Open => {}
        }
        if self.free() == 0 {
            return Err(Refusal::SlotsTaken);
        }
        let id = LeaseId(self.next_id);
        self.next_id += 1;
        let phase = Phase::Active {
            since: now,
            answered: false,
        };
        let holder = holder.clone();
        self.leases.insert(id, Lease { holder, phase });
        Ok(id)
    }

    /// Notes that the engine has begun to answer, and so surely works on the task.
    pub(crate) fn answered(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&id)
            && let Phase::Active { answered, .. } = &mut lease.phase
        {
            *answered = true;
        }
    }

    /// Ends a lease. True when the engine has to be asked before the slot is free. Ending it again does nothing.
    pub(crate) fn end(&mut self, now: Instant, id: LeaseId, end: End) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else {
            return false;
        };
        let ask = end == End::Abandoned && self.engine_tells && self.gate != Gate::NotReady;
        if !ask {
            self.leases.remove(&id);
        } else if matches!(lease.phase, Phase::Active { .. }) {
            lease.phase = Phase::Settling { since: now };
        }
        ask
    }

    /// Frees what may be freed when the engine says that `busy` of its slots work.
    ///
    /// Of the busy ones, those that surely belong to leases that go on are taken away; what is left may be tasks whose
    /// callers have left. A lease so young that the engine may not have begun with it is not counted as going on.
    pub(crate) fn engine_says(&mut self, now: Instant, busy: u32) {
        let sure = self.leases.values().filter(|lease| match lease.phase {
            Phase::Active { since, answered } => {
                answered || now.saturating_duration_since(since) >= BEGIN_MAX
            }
            Phase::Settling { .. } => false,
        });
        let left = (busy as usize).saturating_sub(sure.count());
        let mut excess = self.settling().saturating_sub(left);
        self.leases.retain(|_, lease| {
            let free = excess > 0 && matches!(lease.phase, Phase::Settling { .. });
            excess -= usize::from(free);
            !free
        });
    }

    /// Counts slots that the engine calls busy and that nobody holds: tasks of before a restart of this node, or of
    /// before the engine was out. They are free once the engine says so, like those whose callers have left. How many.
    pub(crate) fn adopt(&mut self, now: Instant, busy: u32) -> u32 {
        let unheld = busy.saturating_sub(self.taken());
        let holder = ControlPlaneId::new(NOBODY).expect("it is an identifier");
        for _ in 0..unheld {
            let id = LeaseId(self.next_id);
            self.next_id += 1;
            let phase = Phase::Settling { since: now };
            let holder = holder.clone();
            self.leases.insert(id, Lease { holder, phase });
        }
        unheld
    }

    /// Frees what has settled for longer than [`SETTLE_MAX`]. How many.
    pub(crate) fn expire(&mut self, now: Instant) -> usize {
        let before = self.leases.len();
        self.leases.retain(|_, lease| match lease.phase {
            Phase::Active { .. } => true,
            Phase::Settling { since } => now.saturating_duration_since(since) < SETTLE_MAX,
        });
        before - self.leases.len()
    }

    /// Frees what waits for the engine's word: there is no engine any more.
    pub(crate) fn engine_gone(&mut self) {
        self.leases
            .retain(|_, lease| matches!(lease.phase, Phase::Active { .. }));
    }

    /// Opens or closes the replica for new tasks. An engine that stopped answering owes no word about its slots.
    pub(crate) fn set_gate(&mut self, gate: Gate) {
        self.gate = gate;
        if gate == Gate::NotReady {
            self.engine_gone();
        }
    }

    /// What the engine was found to offer.
    pub(crate) fn set_engine(&mut self, total: u32, engine_tells: bool) {
        self.total = total;
        self.engine_tells = engine_tells;
        if !engine_tells {
            self.engine_gone();
        }
    }

    /// Whether it takes tasks.
    pub(crate) fn gate(&self) -> Gate {
        self.gate
    }

    /// Room for tasks; 0 while the replica does not answer.
    pub(crate) fn total(&self) -> u32 {
        if self.gate == Gate::NotReady {
            0
        } else {
            self.total
        }
    }

    /// Room that nobody holds and that may be granted; 0 while the replica does not answer.
    pub(crate) fn free(&self) -> u32 {
        self.total().saturating_sub(self.taken())
    }

    /// Leases that are out, those that settle included.
    pub(crate) fn taken(&self) -> u32 {
        u32::try_from(self.leases.len()).unwrap_or(u32::MAX)
    }

    /// Leases that wait for the engine's word.
    pub(crate) fn settling(&self) -> usize {
        self.leases
            .values()
            .filter(|lease| matches!(lease.phase, Phase::Settling { .. }))
            .count()
    }

    /// Leases by who holds them.
    pub(crate) fn by_holder(&self) -> BTreeMap<ControlPlaneId, u32> {
        let mut holders = BTreeMap::new();
        for lease in self.leases.values() {
            *holders.entry(lease.holder.clone()).or_default() += 1;
        }
        holders
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holder(name: &str) -> ControlPlaneId {
        ControlPlaneId::new(name).unwrap()
    }

    fn open(total: u32, engine_tells: bool) -> Slots {
        let mut slots = Slots::new();
        slots.set_engine(total, engine_tells);
        slots.set_gate(Gate::Open);
        slots
    }

    #[test]
    fn a_closed_gate_grants_nothing() {
        let now = Instant::now();
        let mut slots = Slots::new();
        assert_eq!(slots.grant(now, &holder("a")), Err(Refusal::NotReady));
        slots.set_engine(1, true);
        assert_eq!(slots.grant(now, &holder("a")), Err(Refusal::NotReady));
        slots.set_gate(Gate::Draining);
        assert_eq!(slots.grant(now, &holder("a")), Err(Refusal::Draining));
        slots.set_gate(Gate::Open);
        assert!(slots.grant(now, &holder("a")).is_ok());
        assert_eq!(slots.grant(now, &holder("a")), Err(Refusal::SlotsTaken));
    }

    #[test]
    fn an_abandoned_slot_is_free_once_the_engine_says_so() {
        let now = Instant::now();
        let mut slots = open(2, true);
        let going_on = slots.grant(now, &holder("a")).unwrap();
        slots.answered(going_on);
        let left = slots.grant(now, &holder("a")).unwrap();
        assert!(slots.end(now, left, End::Abandoned));
        slots.engine_says(now, 2);
        assert_eq!(
            slots.free(),
            0,
            "one busy slot goes on, the other is the abandoned one"
        );
        slots.engine_says(now, 1);
        assert_eq!(slots.free(), 1);
        assert!(!slots.end(now, left, End::Abandoned), "ending twice does nothing");
        assert_eq!(slots.free(), 1);
    }

    #[test]
    fn a_young_lease_does_not_free_an_abandoned_one_by_mistake() {
        let now = Instant::now();
        let mut slots = open(2, true);
        let left = slots.grant(now, &holder("a")).unwrap();
        slots.end(now, left, End::Abandoned);
        slots.grant(now, &holder("a")).unwrap();
        // The busy slot may be the abandoned task's, with the new one still on its way to the engine.
        slots.engine_says(now, 1);
        assert_eq!(slots.free(), 0);
        slots.engine_says(now + BEGIN_MAX, 1);
        assert_eq!(slots.free(), 1);
    }

    #[test]
    fn an_engine_that_cannot_tell_or_is_gone_keeps_no_slot() {
        let now = Instant::now();
        let mut silent = open(1, false);
        let lease = silent.grant(now, &holder("a")).unwrap();
        assert!(!silent.end(now, lease, End::Abandoned));
        assert_eq!(silent.free(), 1);

        let mut slots = open(1, true);
        let lease = slots.grant(now, &holder("a")).unwrap();
        slots.end(now, lease, End::Abandoned);
        assert_eq!(slots.expire(now), 0);
        assert_eq!(slots.expire(now + SETTLE_MAX), 1);
        assert_eq!(slots.free(), 1);

        let lease = slots.grant(now, &holder("a")).unwrap();
        slots.end(now, lease, End::Abandoned);
        slots.set_gate(Gate::NotReady);
        slots.set_gate(Gate::Open);
        assert_eq!(slots.free(), 1);
    }

    /// One step of a history. Indices are taken modulo what is there.
    #[derive(Clone, Debug)]
    enum Step {
        Grant(u8),
        Answer(usize),
        /// The engine is done and the answer was read to its end.
        Complete(usize),
        /// The caller leaves; the engine goes on.
        Abandon(usize),
        /// The engine notices that a caller has left.
        Notice(usize),
        Ask,
        Resize(u32),
        Fail,
        Recover,
        Drain,
        Wait(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..3_u8).prop_map(Step::Grant),
            3 => any::<usize>().prop_map(Step::Answer),
            3 => any::<usize>().prop_map(Step::Complete),
            4 => any::<usize>().prop_map(Step::Abandon),
            4 => any::<usize>().prop_map(Step::Notice),
            4 => Just(Step::Ask),
            1 => (0..6_u32).prop_map(Step::Resize),
            1 => Just(Step::Fail),
            2 => Just(Step::Recover),
            1 => Just(Step::Drain),
            2 => (0..60_u16).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..200)
    }

    /// A model of the engine beside the ledger: which tasks really run there.
    #[derive(Default)]
    struct History {
        active: Vec<LeaseId>,
        running_alone: Vec<LeaseId>,
    }

    fn pick<T>(list: &mut Vec<T>, at: usize) -> Option<T> {
        if list.is_empty() {
            None
        } else {
            Some(list.swap_remove(at % list.len()))
        }
    }

    proptest! {
        #[test]
        fn no_slot_is_booked_twice_and_none_leaks(history in steps()) {
            let mut now = Instant::now();
            let mut slots = open(4, true);
            let mut total = 4;
            let mut engine = History::default();
            for step in history {
                match step {
                    Step::Grant(who) => {
                        // A lease that is granted begins in the engine at once here: the ledger must not rely on less.
                        let room = total as usize > engine.active.len() + engine.running_alone.len();
                        if let Ok(id) = slots.grant(now, &holder(&format!("c{who}"))) {
                            prop_assert!(room, "granted beyond what the engine has");
                            engine.active.push(id);
                        }
                    }
                    Step::Answer(at) if !engine.active.is_empty() => {
                        slots.answered(engine.active[at % engine.active.len()]);
                    }
                    Step::Answer(_) => {}
                    Step::Complete(at) => if let Some(id) = pick(&mut engine.active, at) {
                        slots.end(now, id, End::Complete);
                    },
                    Step::Abandon(at) => if let Some(id) = pick(&mut engine.active, at) {
                        // The engine goes on whether the ledger asks it or not.
                        slots.end(now, id, End::Abandoned);
                        engine.running_alone.push(id);
                    },
                    Step::Notice(at) => { pick(&mut engine.running_alone, at); }
                    Step::Ask => {
                        let busy = engine.active.len() + engine.running_alone.len();
                        slots.engine_says(now, u32::try_from(busy).unwrap());
                        prop_assert!(slots.gate() == Gate::NotReady || slots.settling() >= engine.running_alone.len());
                    }
                    Step::Resize(to) => { total = to; slots.set_engine(to, true); }
                    Step::Fail => slots.set_gate(Gate::NotReady),
                    Step::Recover => {
                        let busy = engine.active.len() + engine.running_alone.len();
                        slots.set_gate(Gate::Open);
                        slots.adopt(now, u32::try_from(busy).unwrap());
                    }
                    Step::Drain if slots.gate() == Gate::Open => slots.set_gate(Gate::Draining),
                    Step::Drain => {}
                    Step::Wait(ms) => now += Duration::from_millis(ms.into()),
                }
                prop_assert!(slots.gate() == Gate::NotReady
                    || slots.taken() as usize >= engine.active.len() + engine.running_alone.len());
                let held: u32 = slots.by_holder().values().sum();
                prop_assert_eq!(held, slots.taken());
                prop_assert!(slots.taken() as usize >= engine.active.len());
                prop_assert!(slots.free() <= slots.total());
            }
            for id in engine.active {
                slots.end(now, id, End::Complete);
            }
            slots.set_gate(Gate::Open);
            slots.engine_says(now, 0);
            prop_assert_eq!(slots.free(), total);
            prop_assert_eq!(slots.taken(), 0);
        }
    }
}
