//! The registry behind `/metrics`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
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

/// Whether a document's table under `## PROGRAM` (and the one under `## Both`) has exactly the metrics of a `/metrics`
/// text, with their kinds, and every label that the text shows. For a daemon's own test, on its registry's text.
///
/// # Errors
/// Everything that differs.
pub fn check_documented(document: &Path, program: &str, text: &str) -> Result<(), String> {
    let markdown =
        fs::read_to_string(document).map_err(|error| format!("{}: {error}", document.display()))?;
    let documented = documented(&markdown, &["Both", program]);
    let mut problems = Vec::new();
    let mut there = BTreeSet::new();
    for (name, kind, labels) in exposed(text) {
        match documented.iter().find(|row| row.name == name) {
            None => problems.push(format!("`{name}` ({kind}) is not documented")),
            Some(row) if row.kind != kind => {
                problems.push(format!("`{name}` is a {kind}, not a {}", row.kind));
            }
            Some(row) => {
                let missing = labels.iter().filter(|label| !row.labels.contains(*label));
                problems.extend(missing.map(|label| format!("`{name}` has a label `{label}`")));
            }
        }
        there.insert(name);
    }
    let gone = documented.iter().filter(|row| !there.contains(&row.name));
    problems.extend(gone.map(|row| format!("`{}` is documented and does not exist", row.name)));
    if problems.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}, {program}:\n{}",
        document.display(),
        problems.join("\n")
    ))
}

/// A row of the document.
struct Row {
    name: String,
    kind: String,
    labels: BTreeSet<String>,
}

fn documented(markdown: &str, sections: &[&str]) -> Vec<Row> {
    let mut inside = false;
    let mut rows = Vec::new();
    for line in markdown.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            inside = sections.contains(&heading.trim());
        }
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (Some(name), Some(kind), Some(labels)) = (cells.next(), cells.next(), cells.next()) else {
            continue;
        };
        if inside && name.starts_with('`') {
            let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            rows.push(Row {
                name: name.trim_matches('`').to_owned(),
                kind: kind.to_owned(),
                labels,
            });
        }
    }
    rows
}

/// Name as Prometheus stores it, kind, label names.
fn exposed(text: &str) -> Vec<(String, String, BTreeSet<String>)> {
    let mut families: Vec<(String, String, BTreeSet<String>)> = Vec::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            families.push((format!("{name}{suffix}"), kind.to_owned(), BTreeSet::new()));
        } else if let (Some((_, rest)), Some(family)) = (line.split_once('{'), families.last_mut()) {
            let labels = rest
                .split("=\"")
                .filter_map(|part| part.rsplit([',', '"', '{']).next());
            // What comes after the last `="` is a value.
            let count = rest.matches("=\"").count();
            family.2.extend(
                labels
                    .take(count)
                    .filter(|label| *label != "le")
                    .map(str::to_owned),
            );
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
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

    #[test]
    fn the_document_is_compared_with_the_text() {
        let metrics = Metrics::new("orchestratord");
        let ready = Family::<Vec<(String, String)>, Gauge>::default();
        metrics.register(|registry| {
            registry.register("orchd_tasks", "Tasks", Counter::<u64>::default());
            registry.register("pool_ready", "Ready", ready.clone());
        });
        let labels = [("pool_id", "a,b=\"c\""), ("node_id", "n")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        ready.get_or_create(&labels.to_vec()).set(1);

        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("metrics.md");
        let check = |rows: &str| {
            let both = "## Both\n| `remuda_build_info` | info | `program`, `version` | x |\n";
            fs::write(
                &path,
                format!("{both}## orchestratord\n| name | kind |\n{rows}## other\n| `y` | gauge | | |\n"),
            )
            .unwrap();
            check_documented(&path, "orchestratord", &metrics.text())
        };
        let tasks = "| `orchd_tasks_total` | counter | | x |\n";
        check(&format!(
            "{tasks}| `pool_ready` | gauge | `pool_id`, `node_id` | x |\n"
        ))
        .unwrap();
        for (rows, expect) in [
            (tasks.to_owned(), "`pool_ready` (gauge) is not documented"),
            (
                format!("{tasks}| `pool_ready` | gauge | `pool_id` | x |\n"),
                "`pool_ready` has a label `node_id`",
            ),
            (
                format!("{tasks}| `pool_ready` | counter | | x |\n"),
                "`pool_ready` is a gauge, not a counter",
            ),
            (
                format!(
                    "{tasks}| `pool_ready` | gauge | `pool_id`, `node_id` | x |\n| `gone` | gauge | | x |\n"
                ),
                "`gone` is documented and does not exist",
            ),
        ] {
            let error = check(&rows).unwrap_err();
            assert!(error.contains(expect) && error.lines().count() == 2, "{error}");
        }
    }
}
