//! One replica as the node sees it: where its engine is, what it offers, and the ledger of its slots.
//!
//! All that changes stands behind one lock, held for one short synchronous section at a time and never across an
//! `.await`. Whoever changes something that a report shows calls [`Changed::set`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use http::HeaderValue;
use pool_registry_types::{
    ControlPlaneId, Dialect, ModelInfo, PoolId, ReplicaId, ReplicaReport, ReplicaState,
};
use tokio::sync::Notify;
use upstream::EngineClient;

use crate::attend::ProbeCounts;
use crate::slots::{End, Gate, LeaseId, Refusal, Slots};

/// What is known of an engine before it is asked, from its recipe and the pool's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EngineTraits {
    /// The recipe's name.
    pub engine: String,
    /// The dialects that the engine speaks by itself.
    pub dialects: Vec<Dialect>,
    /// Whether it notices a closed connection only on streams.
    pub cancel_on_stream_only: bool,
    /// The pool's word on pictures and sound, which is above the engine's.
    pub media: Option<bool>,
    /// The recipe's word on them, for engines that do not tell.
    pub media_of_recipe: bool,
    /// The engine's version, when it is known before the engine is asked.
    pub engine_version: Option<String>,
    /// The pool's word on slots: an upper bound when the engine tells its own number, the number when it does not.
    pub slots: Option<u32>,
    /// Other names for the engine's only model, from the settings.
    pub model_aliases: Vec<String>,
    /// GPUs that the replica may use, by the driver's index. None: all.
    pub gpus: Option<Vec<u32>>,
}

/// What the last successful probe found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The engine's own version.
    pub engine_version: String,
    /// The models that it serves.
    pub models: Vec<ModelInfo>,
    /// Room for tasks.
    pub slots_total: u32,
    /// Whether the engine can be asked how many of its slots are busy.
    pub tells_busy_slots: bool,
}

/// Tells the reporter that something has changed. Cheap to call again and again.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    dirty: AtomicBool,
    wake: Notify,
    /// Woken when a replica came in or went out.
    pub(crate) came_or_went: Notify,
}

impl Changed {
    /// Notes a change; wakes the reporter with the first one after a report.
    pub(crate) fn set(&self) {
        if !self.dirty.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    /// Waits for a change since the last wait.
    pub(crate) async fn wait(&self) {
        self.wake.notified().await;
        self.dirty.store(false, Ordering::Release);
    }
}

/// A replica with an engine address.
pub(crate) struct Replica {
    pub(crate) pool_id: PoolId,
    pub(crate) replica_id: ReplicaId,
    pub(crate) client: EngineClient,
    pub(crate) key: Option<HeaderValue>,
    traits: ArcSwap<EngineTraits>,
    /// Woken when a slot has to wait for the engine's word.
    pub(crate) settle: Notify,
    /// Woken when the engine should be probed without waiting for the next turn.
    pub(crate) probe: Notify,
    pub(crate) probes: ProbeCounts,
    /// Set when the next probe has to ask everything.
    pub(crate) ask_all: AtomicBool,
    changed: Arc<Changed>,
    inner: Mutex<Inner>,
}

struct Inner {
    slots: Slots,
    facts: Facts,
    phase: Phase,
    draining: bool,
    last_error: Option<String>,
}

/// ```text
/// Starting ──probe answered──▶ Answering ◀──probe answered── Failed
///     └────────────────────probe or call failed──────────────▶ ▲
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Answering,
    Failed,
}

impl Replica {
    /// A replica that has not been probed yet.
    pub(crate) fn new(
        (pool_id, replica_id): (PoolId, ReplicaId),
        client: EngineClient,
        key: Option<HeaderValue>,
        traits: EngineTraits,
        changed: Arc<Changed>,
    ) -> Arc<Self> {
        let inner = Inner {
            slots: Slots::new(),
            facts: Facts::default(),
            phase: Phase::Starting,
            draining: false,
            last_error: None,
        };
        let inner = Mutex::new(inner);
        Arc::new(Self {
            pool_id,
            replica_id,
            client,
            key,
            traits: ArcSwap::from_pointee(traits),
            settle: Notify::new(),
            probe: Notify::new(),
            probes: ProbeCounts::default(),
            ask_all: AtomicBool::new(false),
            changed,
            inner,
        })
    }

    /// Grants a slot or says why not.
    pub(crate) fn grant(&self, holder: &ControlPlaneId) -> Result<LeaseId, Refusal> {
        let granted = self.lock().slots.grant(Instant::now(), holder)?;
        self.changed.set();
        Ok(granted)
    }

    /// The engine has begun to answer.
    pub(crate) fn answered(&self, lease: LeaseId) {
        self.lock().slots.answered(lease);
    }

    /// A lease ended; wakes whoever asks the engine when the slot has to wait for its word.
    pub(crate) fn end(&self, lease: LeaseId, end: End) {
        let ask = self.lock().slots.end(Instant::now(), lease, end);
        if ask {
            self.settle.notify_one();
        }
        self.changed.set();
    }

    /// The engine answered a probe, with `busy` of its slots at work. True when it did not before.
    pub(crate) fn found(&self, facts: Facts, busy: u32) -> bool {
        let mut inner = self.lock();
        let came = inner.phase != Phase::Answering;
        if !came && inner.facts == facts && inner.last_error.is_none() {
            return false;
        }
        inner.slots.set_engine(facts.slots_total, facts.tells_busy_slots);
        inner.facts = facts;
        inner.phase = Phase::Answering;
        inner.last_error = None;
        inner.apply_gate();
        // Between two answers the ledger is right; after a silence the engine may work on tasks that it has lost.
        let adopted = if came {
            inner.slots.adopt(Instant::now(), busy)
        } else {
            0
        };
        drop(inner);
        if adopted > 0 {
            self.settle.notify_one();
        }
        self.changed.set();
        if came {
            self.changed.came_or_went.notify_one();
        }
        came
    }

    /// The engine did not answer. Takes the replica out at once; true when it was in before.
    pub(crate) fn lost(&self, why: &str) -> bool {
        let mut inner = self.lock();
        let went = inner.phase == Phase::Answering;
        if !went && inner.phase == Phase::Failed && inner.last_error.as_deref() == Some(why) {
            return false;
        }
        inner.phase = Phase::Failed;
        inner.last_error = Some(why.to_owned());
        inner.apply_gate();
        drop(inner);
        self.changed.set();
        if went {
            self.changed.came_or_went.notify_one();
        }
        went
    }

    /// What is known of the engine before it is asked.
    pub(crate) fn traits(&self) -> Arc<EngineTraits> {
        self.traits.load_full()
    }

    /// Replaces what is known before the engine is asked; it is asked again. The ledger stays as it is.
    pub(crate) fn set_traits(&self, traits: EngineTraits) {
        self.traits.store(Arc::new(traits));
        self.ask_again();
        self.changed.set();
    }

    /// Has the engine asked everything, soon.
    pub(crate) fn ask_again(&self) {
        self.ask_all.store(true, Ordering::Release);
        self.probe.notify_one();
    }

    /// Takes nothing new from now on, or takes tasks again.
    pub(crate) fn set_draining(&self, draining: bool) {
        let mut inner = self.lock();
        if inner.draining == draining {
            return;
        }
        inner.draining = draining;
        inner.apply_gate();
        drop(inner);
        self.changed.set();
    }

    /// What the engine says of its slots. How many still wait for its word.
    pub(crate) fn engine_says(&self, busy: u32) -> usize {
        self.settled(|slots| slots.engine_says(Instant::now(), busy))
    }

    /// Nobody is there to ask: what waited is free.
    pub(crate) fn engine_gone(&self) -> usize {
        self.settled(Slots::engine_gone)
    }

    /// Frees what has waited for too long. How many still wait.
    pub(crate) fn expire(&self) -> usize {
        self.settled(|slots| {
            let given_up = slots.expire(Instant::now());
            if given_up > 0 {
                tracing::warn!(
                    pool_id = %self.pool_id, replica_id = %self.replica_id, given_up,
                    "the engine still calls slots busy whose tasks ended long ago; counting them as free"
                );
            }
        })
    }

    fn settled(&self, change: impl FnOnce(&mut Slots)) -> usize {
        let mut inner = self.lock();
        let before = inner.slots.settling();
        change(&mut inner.slots);
        let after = inner.slots.settling();
        drop(inner);
        if after != before {
            self.changed.set();
        }
        after
    }

    /// How many leases are out.
    pub(crate) fn taken(&self) -> u32 {
        self.lock().slots.taken()
    }

    /// Whether the engine answers and takes tasks.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().slots.gate() == Gate::Open
    }

    /// Whether the engine answered the last probe, draining or not.
    pub(crate) fn answers(&self) -> bool {
        self.lock().phase == Phase::Answering
    }

    /// The replica as it is now; `vram_free_bytes` is for the reporter to fill in.
    pub(crate) fn report(&self) -> ReplicaReport {
        let traits = self.traits();
        let inner = self.lock();
        ReplicaReport {
            replica_id: self.replica_id.clone(),
            state: match (inner.phase, inner.draining) {
                (Phase::Starting, _) => ReplicaState::Starting,
                (Phase::Failed, _) => ReplicaState::Failed,
                (Phase::Answering, true) => ReplicaState::Draining,
                (Phase::Answering, false) => ReplicaState::Ready,
            },
            engine: traits.engine.clone(),
            engine_version: inner.facts.engine_version.clone(),
            models: inner.facts.models.clone(),
            dialects: traits.dialects.clone(),
            cancel_on_stream_only: traits.cancel_on_stream_only,
            slots_total: inner.slots.total(),
            slots_free: inner.slots.free(),
            leases: inner.slots.by_holder(),
            vram_free_bytes: 0,
            last_error: inner.last_error.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic inside the short sections would leave the ledger as it was before or after one push.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn apply_gate(&mut self) {
        self.slots.set_gate(match (self.phase, self.draining) {
            (Phase::Answering, false) => Gate::Open,
            (Phase::Answering, true) => Gate::Draining,
            (Phase::Starting | Phase::Failed, _) => Gate::NotReady,
        });
    }
}
