//! What a scrape says of agent pools.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;

use super::Agents;
use super::parts::{Latency, PoolMetrics};

/// The levels of `WarmLevel`, in its order.
const LEVELS: [&str; 3] = ["cold", "warm", "hot"];

type Count = fn(&PoolMetrics) -> &Counter;

const COUNTERS: [(&str, &str, Count); 4] = [
    (
        "pool_sandbox_refills",
        "Sandboxes started so that some are warm",
        |pool| &pool.refills,
    ),
    (
        "pool_sandbox_replacements",
        "Sandboxes that were lost with runs in them",
        |pool| &pool.replacements,
    ),
    (
        "pool_egress_denied",
        "Connections of sandboxes that were denied",
        |pool| &pool.denied,
    ),
    (
        "pool_login_take_backs",
        "Homes taken back out of sandboxes",
        |pool| &pool.take_backs,
    ),
];

type Histogram = fn(&PoolMetrics) -> &Latency;

const HISTOGRAMS: [(&str, &str, Histogram); 2] = [
    (
        "pool_claim_latency_ms",
        "Time until a run had its sandbox, in milliseconds",
        |pool| &pool.claim_ms,
    ),
    (
        "pool_sandbox_start_latency_ms",
        "Time until a sandbox was up, in milliseconds",
        |pool| &pool.start_ms,
    ),
];

impl Agents {
    /// Writes what is said of all pools: of none, only that it would be said.
    pub(crate) fn encode(agents: Option<&Self>, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let pools: Vec<_> = agents.iter().flat_map(|agents| agents.all()).collect();
        let help = "Sandboxes of agent pools, by agent, driver and level";
        let mut family = encoder.encode_descriptor("pool_sandboxes", help, None, MetricType::Gauge)?;
        for pool in &pools {
            for (level, count) in pool.metrics.levels() {
                let labels = [
                    ("pool_id", pool.id.as_str()),
                    ("agent", pool.agent.as_str()),
                    ("driver", pool.driver.name()),
                    ("level", level),
                ];
                let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Runs, by how warm what they were given was";
        let mut family = encoder.encode_descriptor("pool_claims", help, None, MetricType::Counter)?;
        for pool in &pools {
            for (level, count) in LEVELS.iter().zip(&pool.metrics.claims) {
                let labels = [("pool_id", pool.id.as_str()), ("level", *level)];
                ConstCounter::new(count.get()).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Bytes that sandboxes sent to the world and received from it";
        let mut family = encoder.encode_descriptor("pool_egress_bytes", help, None, MetricType::Counter)?;
        for pool in &pools {
            for (direction, count) in [("out", &pool.metrics.sent), ("in", &pool.metrics.received)] {
                let labels = [("pool_id", pool.id.as_str()), ("direction", direction)];
                ConstCounter::new(count.get()).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Upstream proxies, by state";
        let mut family = encoder.encode_descriptor("pool_egress_proxies", help, None, MetricType::Gauge)?;
        if let Some(upstreams) = agents.and_then(|agents| agents.upstreams.as_ref()) {
            let (well, all) = upstreams.well();
            for (state, count) in [("well", well), ("resting", all - well)] {
                let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&[("state", state)])?)?;
            }
        }
        let help = "Bytes of single runs: sent to the world, and received from it";
        let mut family =
            encoder.encode_descriptor("pool_egress_run_bytes", help, None, MetricType::Histogram)?;
        for pool in &pools {
            for (direction, run) in [
                ("out", &pool.metrics.run_sent),
                ("in", &pool.metrics.run_received),
            ] {
                let labels = [("pool_id", pool.id.as_str()), ("direction", direction)];
                run.0.encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, count) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for pool in &pools {
                let labels = [("pool_id", pool.id.as_str())];
                ConstCounter::new(count(&pool.metrics).get()).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, histogram) in HISTOGRAMS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for pool in &pools {
                let labels = [("pool_id", pool.id.as_str())];
                histogram(&pool.metrics)
                    .0
                    .encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
