//! `/metrics`: what is there is read from the door at each scrape, so no label outlives its replica.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use daemon::metrics::{FAST_MS, Metrics};
use handoff_watcher::Observe;
use pool_registry_types::PoolReport;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::agents::Agents;
use crate::door::Door;

/// Counts handoff files as they are read.
#[derive(Clone, Debug)]
pub(crate) struct HandoffMetrics {
    files: Counter,
    problems: Counter,
    duration_ms: Histogram,
}

impl HandoffMetrics {
    pub(crate) fn new() -> Self {
        Self {
            files: Counter::default(),
            problems: Counter::default(),
            duration_ms: Histogram::new(FAST_MS),
        }
    }

    /// For the watcher to call.
    pub(crate) fn observer(&self) -> Observe {
        let metrics = self.clone();
        Arc::new(move |took: Duration, good: bool| {
            metrics.files.inc();
            if !good {
                metrics.problems.inc();
            }
            metrics.duration_ms.observe(took.as_secs_f64() * 1000.0);
        })
    }

    pub(crate) fn register(&self, metrics: &Metrics) {
        metrics.register(|registry| {
            registry.register(
                "pool_handoff_files_processed",
                "Handoff files read",
                self.files.clone(),
            );
            registry.register(
                "pool_handoff_files_bad",
                "Handoff files read that were no handoffs",
                self.problems.clone(),
            );
            registry.register(
                "pool_handoff_processing_duration_ms",
                "Time to read one handoff file, in milliseconds",
                self.duration_ms.clone(),
            );
        });
    }
}

/// Reads the door at each scrape.
pub(crate) struct DoorMetrics(pub(crate) Door);

impl fmt::Debug for DoorMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DoorMetrics")
    }
}

type PoolValue = fn(&PoolReport) -> u64;

const POOL_GAUGES: [(&str, &str, PoolValue); 5] = [
    (
        "pool_ready",
        "1 while at least one replica of the pool takes tasks",
        |pool| u64::from(pool.ready),
    ),
    (
        "pool_slots_total",
        "Room for tasks in the pool's ready replicas",
        |pool| pool.slots_total.into(),
    ),
    ("pool_slots_free", "Room that nobody uses", |pool| {
        pool.slots_free.into()
    }),
    (
        "pool_vram_total_bytes",
        "Device memory of the pool's GPUs",
        |pool| pool.vram_total_bytes,
    ),
    (
        "pool_vram_free_bytes",
        "Free device memory of the pool's GPUs",
        |pool| pool.vram_free_bytes,
    ),
];

impl Collector for DoorMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let pools = self.0.snapshot();
        for (name, help, value) in POOL_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for pool in &pools {
                let labels = [("pool_id", pool.pool_id.as_str())];
                let gauge = ConstGauge::new(i64::try_from(value(pool)).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Probes of engines, by how they ended";
        let mut family = encoder.encode_descriptor("pool_health_checks", help, None, MetricType::Counter)?;
        for replica in self.0.table().replicas() {
            let counts = [("well", &replica.probes.well), ("failed", &replica.probes.failed)];
            for (outcome, count) in counts {
                let pool = replica.pool_id.as_str();
                let labels = [
                    ("pool_id", pool),
                    ("replica_id", replica.replica_id.as_str()),
                    ("outcome", outcome),
                ];
                ConstCounter::new(count.load(Ordering::Relaxed)).encode(family.encode_family(&labels)?)?;
            }
        }
        Agents::encode(self.0.agents(), &mut encoder)
    }
}
