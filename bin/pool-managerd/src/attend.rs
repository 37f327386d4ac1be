//! Attending to one replica: probing its engine, and asking the engine about slots whose callers have left.
//!
//! ```text
//! every interval, or when told ──▶ health ──▶ well ──▶ in
//!                                        └──▶ refused, or silent twice ──▶ out ──▶ everything is asked again ──▶ in
//! a slot was abandoned ──▶ /slots at once, then every 5 ms, 10, 20, 40, 50, 50 … until it is free or 5 s are over
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::probe::{Answer, ProbeError, Prober, SLOTS_MAX};
use crate::replica::{EngineTraits, Facts, Replica};

/// Room for tasks in an engine that does not tell and whose pool does not say.
pub(crate) const SLOTS_DEFAULT: u32 = 4;

/// Everything is asked again this often even while the engine is well: a server may have got other models.
const FULL_PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Two probes are at least this far apart, however often somebody asks for one.
const PROBE_GAP_MIN: Duration = Duration::from_millis(50);
/// An engine that is out is asked this soon again, at first; then less and less often, up to the usual interval.
const RETRY_FIRST: Duration = Duration::from_millis(100);

const SETTLE_FIRST: Duration = Duration::from_millis(5);
const SETTLE_LAST: Duration = Duration::from_millis(50);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often an engine was asked, by how that ended.
#[derive(Debug, Default)]
pub(crate) struct ProbeCounts {
    pub(crate) well: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// Keeps `replica` up to date until `stop`.
pub(crate) async fn attend(
    replica: Arc<Replica>,
    prober: Prober,
    interval: Duration,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = probe_for_ever(&replica, &prober, interval) => {}
        () = settle_for_ever(&replica, &prober) => {}
    }
}

async fn probe_for_ever(replica: &Replica, prober: &Prober, interval: Duration) {
    let mut asked_all: Option<Instant> = None;
    let mut silences = 0_u32;
    let mut retry = RETRY_FIRST;
    loop {
        let told = replica.ask_all.swap(false, Ordering::AcqRel);
        let all =
            told || !replica.answers() || asked_all.is_none_or(|at| at.elapsed() >= FULL_PROBE_INTERVAL);
        let result = if all {
            prober.all().await.map(Some)
        } else {
            prober.health().await.map(|()| None)
        };
        replica.probes.count(result.is_ok());
        match result {
            Ok(answer) => {
                silences = 0;
                retry = RETRY_FIRST;
                if let Some(answer) = answer {
                    asked_all = Some(Instant::now());
                    let busy = answer.busy_slots.unwrap_or(0);
                    let (told, wanted) = (answer.slots_total, replica.traits().slots);
                    if replica.found(facts(&replica.traits(), answer), busy) {
                        tracing::info!(
                            pool_id = %replica.pool_id, replica_id = %replica.replica_id,
                            address = prober.client.origin().authority(), "the engine answers; the replica is in"
                        );
                        if let (Some(told), Some(wanted)) = (told, wanted)
                            && told != wanted
                        {
                            tracing::warn!(
                                pool_id = %replica.pool_id, replica_id = %replica.replica_id, told, wanted,
                                "the engine has another number of slots than was asked for; the smaller one counts"
                            );
                        }
                    }
                }
            }
            // Under load one answer may be late; a second in a row is no accident.
            Err(ProbeError::Timeout { .. }) if replica.answers() && silences == 0 => silences = 1,
            Err(error) => {
                silences = 0;
                retry = (retry * 2).min(interval);
                if replica.lost(&error.to_string()) {
                    tracing::warn!(
                        pool_id = %replica.pool_id, replica_id = %replica.replica_id,
                        error = %error, "the engine does not answer; the replica is out"
                    );
                }
            }
        }
        tokio::time::sleep(PROBE_GAP_MIN).await;
        let wait = if replica.answers() { interval } else { retry };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = replica.probe.notified() => {}
        }
    }
}

async fn settle_for_ever(replica: &Replica, prober: &Prober) {
    let prober = Prober {
        timeout: SETTLE_TIMEOUT,
        ..prober.clone()
    };
    loop {
        replica.settle.notified().await;
        let mut wait = SETTLE_FIRST;
        loop {
            let left = match prober.busy_slots().await {
                Ok(Some(busy)) => replica.engine_says(busy),
                Ok(None) => replica.engine_gone(),
                Err(error) if error.is_unreachable() => {
                    replica.probe.notify_one();
                    replica.engine_gone()
                }
                // It may still come; how long that is waited for is bounded below.
                Err(_) => usize::MAX,
            };
            if left == 0 || replica.expire() == 0 {
                break;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(SETTLE_LAST);
        }
    }
}

/// What the engine says, bounded by what the pool says.
fn facts(traits: &EngineTraits, answer: Answer) -> Facts {
    let slots_total = match (answer.slots_total, traits.slots) {
        (Some(engine), Some(pool)) => engine.min(pool),
        (Some(engine), None) => engine,
        (None, pool) => pool.unwrap_or(SLOTS_DEFAULT),
    };
    let mut models = answer.models;
    let media = traits.media.or(answer.media).unwrap_or(traits.media_of_recipe);
    for model in &mut models {
        model.media = media;
    }
    if let [model] = models.as_mut_slice() {
        for alias in &traits.model_aliases {
            if *alias != model.id && !model.aliases.contains(alias) {
                model.aliases.push(alias.clone());
            }
        }
    }
    Facts {
        engine_version: traits
            .engine_version
            .clone()
            .or(answer.version)
            .unwrap_or_default(),
        models,
        slots_total: slots_total.clamp(1, SLOTS_MAX),
        tells_busy_slots: answer.busy_slots.is_some(),
    }
}

impl ProbeCounts {
    fn count(&self, well: bool) {
        let counter = if well { &self.well } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool_registry_types::ModelInfo;

    #[test]
    fn slots_are_the_engines_bounded_by_the_pools() {
        let check = |engine, pool, expect| {
            let traits = EngineTraits {
                slots: pool,
                ..EngineTraits::default()
            };
            let answer = Answer {
                slots_total: engine,
                ..Answer::default()
            };
            assert_eq!(
                facts(&traits, answer).slots_total,
                expect,
                "engine {engine:?}, pool {pool:?}"
            );
        };
        check(Some(8), None, 8);
        check(Some(8), Some(4), 4);
        check(Some(2), Some(4), 2);
        check(None, Some(6), 6);
        check(None, None, SLOTS_DEFAULT);
        check(None, Some(0), 1);
    }

    #[test]
    fn pictures_are_taken_where_pool_engine_or_recipe_say_so_in_this_order() {
        let check = |pool, engine, recipe, expect| {
            let traits = EngineTraits {
                media: pool,
                media_of_recipe: recipe,
                ..EngineTraits::default()
            };
            let answer = Answer {
                models: vec![ModelInfo {
                    id: "m".to_owned(),
                    aliases: Vec::new(),
                    context_length: None,
                    media: false,
                }],
                media: engine,
                ..Answer::default()
            };
            let facts = facts(&traits, answer);
            assert_eq!(
                facts.models[0].media, expect,
                "pool {pool:?}, engine {engine:?}, recipe {recipe}"
            );
        };
        check(None, None, false, false);
        check(None, None, true, true);
        check(None, Some(false), true, false);
        check(None, Some(true), false, true);
        check(Some(false), Some(true), true, false);
        check(Some(true), Some(false), false, true);
    }
}
