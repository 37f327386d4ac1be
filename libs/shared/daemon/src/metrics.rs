//! The registry behind `/metrics`.

use std::sync::Mutex;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use prometheus_client;

/// What `/metrics` answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets for what a machine does by itself: admission, placement, a file read. Milliseconds.
pub const FAST_MS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 50.0, 250.0, 1000.0,
];

/// Buckets for what waits for a network or a model: dispatch, probes, first token. Milliseconds.
pub const LATENCY_MS: [f64; 16] = [
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 15_000.0,
    60_000.0,
];

/// The metrics of one process. Registering is done at the start; afterwards only the text is read.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
}

impl Metrics {
    /// A registry that says what runs: `remuda_build_info{program, version}`.
    pub fn new(program: &'static str) -> Self {
        let mut registry = Registry::default();
        let build = Info::new(vec![("program", program), ("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("remuda_build", "The program and its version", build);
        Self {
            registry: Mutex::new(registry),
        }
    }

    /// Registers metrics: `metrics.register(|registry| registry.register("pool_ready", "..", gauge.clone()))`.
    ///
    /// A counter's name is given without `_total`, which the text adds.
    pub fn register<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        register(&mut self.lock())
    }

    /// The text in the OpenMetrics format, [`CONTENT_TYPE`].
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        encode(&mut text, &self.lock()).expect("writing into a string does not fail");
        text
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        // A panic while registering leaves a registry that is still whole.
        self.registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    #[test]
    fn the_text_has_what_was_registered() {
        let metrics = Metrics::new("orchestratord");
        let (enqueued, latency) = (Counter::<u64>::default(), Histogram::new(LATENCY_MS));
        metrics.register(|registry| {
            registry.register("orchd_admission_enqueued", "Tasks taken in", enqueued.clone());
            registry.register(
                "orchd_dispatch_latency_ms",
                "Admission to first byte",
                latency.clone(),
            );
        });
        enqueued.inc();
        latency.observe(3.0);
        let text = metrics.text();
        for line in [
            "remuda_build_info{program=\"orchestratord\",version=\"0.1.0\"} 1",
            "orchd_admission_enqueued_total 1",
            "orchd_dispatch_latency_ms_bucket{le=\"2.5\"} 0",
            "orchd_dispatch_latency_ms_bucket{le=\"5.0\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
