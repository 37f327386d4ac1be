//! What is said of a run: `docs/benchmarks.md`.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use anyhow::Result;

use super::first_line;
use super::peers::PeerKind;
use super::samples::{Metric, Samples};

/// A run that is over.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) samples: &'a Samples,
    /// Who took part, with versions.
    pub(super) gateways: &'a [(PeerKind, String)],
    pub(super) rounds: u32,
    pub(super) seconds: f64,
}

/// A figure with a bar.
struct Bar {
    what: &'static str,
    metric: Metric,
    unit: &'static str,
    scale: f64,
    digits: usize,
    max: f64,
}

const fn bar(
    what: &'static str,
    metric: Metric,
    unit: &'static str,
    scale: f64,
    digits: usize,
    max: f64,
) -> Bar {
    Bar {
        what,
        metric,
        unit,
        scale,
        digits,
        max,
    }
}

/// What Remuda promises, in the units in which it does.
const BARS: [Bar; 13] = [
    bar(
        "processor time per request, against nginx",
        Metric::RequestCpuRatio,
        "×",
        1.0,
        2,
        1.3,
    ),
    bar(
        "processor time per streamed chunk, against nginx",
        Metric::ChunkCpuRatio,
        "×",
        1.0,
        2,
        1.0,
    ),
    bar(
        "added time to the first event, p50",
        Metric::FirstEventP50Us,
        "µs",
        1.0,
        0,
        200.0,
    ),
    bar(
        "added time to the first event, p99",
        Metric::FirstEventP99Us,
        "µs",
        1.0,
        0,
        800.0,
    ),
    bar(
        "1,000 tasks/s: admission and placement, p99",
        Metric::PlacementP99Us,
        "µs",
        1.0,
        0,
        1000.0,
    ),
    bar(
        "1,000 tasks/s: share of a core",
        Metric::TasksCoreShare,
        "%",
        100.0,
        1,
        50.0,
    ),
    bar(
        "10,000 open streams: memory of each",
        Metric::StreamKib,
        "KiB",
        1.0,
        1,
        20.0,
    ),
    bar(
        "1,000 nodes: share of a core",
        Metric::NodesShare,
        "%",
        100.0,
        2,
        5.0,
    ),
    bar(
        "idle control plane: memory",
        Metric::IdlePlaneMib,
        "MiB",
        1.0,
        1,
        20.0,
    ),
    bar(
        "idle control plane: share of a core",
        Metric::IdlePlaneShare,
        "%",
        100.0,
        3,
        0.1,
    ),
    bar("idle node: memory", Metric::IdleNodeMib, "MiB", 1.0, 1, 20.0),
    bar(
        "idle node: share of a core",
        Metric::IdleNodeShare,
        "%",
        100.0,
        3,
        0.1,
    ),
    bar("start to first answer", Metric::StartSeconds, "s", 1.0, 2, 1.0),
];

/// The columns of the table of gateways: heading, metric, digits.
const COLUMNS: [(&str, Metric, usize); 11] = [
    ("c=1 p50 µs", Metric::SingleP50Us, 0),
    ("c=64 requests/s", Metric::RequestsPerSecond, 0),
    ("CPU µs per request", Metric::RequestCpuUs, 1),
    ("against nginx", Metric::RequestCpuRatio, 2),
    ("first event + p50 µs", Metric::FirstEventP50Us, 0),
    ("first event + p99 µs", Metric::FirstEventP99Us, 0),
    ("CPU µs per chunk", Metric::ChunkCpuUs, 1),
    ("against nginx", Metric::ChunkCpuRatio, 2),
    ("KiB per open stream", Metric::StreamKib, 1),
    ("MiB after", Metric::ResidentMib, 0),
    ("start s", Metric::StartSeconds, 2),
];

const METHOD: &str = "\
The gateway alone on one core; the load generator and a stand-in for the engine, both written to cost little, on \
another. The gateways take turns; a figure is the median of the rounds, a ratio the median of the ratios within each \
round. Processor time is the kernel's account of the gateway's whole process tree (`schedstat`), divided by requests \
or by chunks. Remuda checks a key, admits, places, leases and counts every request; the others are plain proxies \
set up as well as we know, without a key to check.

- Requests: `POST /v1/chat/completions`, an answer of about 600 bytes, 64 connections.
- Streams: 200 at a time, 50 chunks of 20 ms each. The time to the first event is taken from the request, and that \
without a gateway in the same round is taken off.
- Open streams: resident memory with 10,000 streams, or as many as the limit on open files allows, that have had their first event, less that before, divided.
- Tasks: `POST /v2/tasks` with `Accept: text/event-stream`, 1,000 a second whatever comes back, each followed to its \
end. Admission and placement is Remuda's own `orchd_dispatch_latency_ms`, in the steps of that histogram.
- Nodes: 1,000 that register and then send a heartbeat every 10 s each, over a connection of its own.
- Idle: a control plane and a node that know each other, watched for 30 s.
";

/// The whole file.
pub(super) fn markdown(run: &Run<'_>) -> Result<String> {
    let mut text = String::from("# Benchmarks\n\nWritten by `cargo xtask bench`; do not edit.\n\n");
    let rounds = if run.rounds == 1 {
        "one round".to_owned()
    } else {
        format!("{} rounds", run.rounds)
    };
    writeln!(text, "{}; {rounds} of {} s.\n", machine()?, run.seconds)?;
    bars(&mut text, run.samples)?;
    gateways(&mut text, run)?;
    tasks(&mut text, run.samples)?;
    if let Some(streams) = run.samples.median(Metric::OpenStreams, PeerKind::Remuda) {
        writeln!(
            text,
            "Open streams here: {streams:.0}, two files each within this machine's limit on them.\n"
        )?;
    }
    write!(text, "## How it is measured\n\n{METHOD}")?;
    Ok(text)
}

fn bars(text: &mut String, samples: &Samples) -> Result<()> {
    text.push_str("## What is promised\n\n| | measured | at most | |\n|---|---|---|---|\n");
    for bar in &BARS {
        let Some(value) = samples.median(bar.metric, PeerKind::Remuda) else {
            continue;
        };
        let value = value * bar.scale;
        let verdict = if value <= bar.max {
            "holds"
        } else {
            "does not hold"
        };
        writeln!(
            text,
            "| {} | {value:.*} {} | {} {} | {verdict} |",
            bar.what, bar.digits, bar.unit, bar.max, bar.unit
        )?;
    }
    text.push('\n');
    Ok(())
}

fn gateways(text: &mut String, run: &Run<'_>) -> Result<()> {
    text.push_str("## Side by side\n\n| |");
    for (heading, _, _) in COLUMNS {
        write!(text, " {heading} |")?;
    }
    writeln!(text, "\n|---|{}", "---|".repeat(COLUMNS.len()))?;
    let direct = (PeerKind::Direct, String::new());
    for (kind, version) in std::iter::once(&direct).chain(run.gateways) {
        write!(text, "| {} |", format!("{kind} {version}").trim())?;
        for (_, metric, digits) in COLUMNS {
            // Without a gateway only what a client sees has a meaning.
            let has_meaning = *kind != PeerKind::Direct
                || matches!(metric, Metric::SingleP50Us | Metric::RequestsPerSecond);
            match run.samples.median(metric, *kind).filter(|_| has_meaning) {
                Some(value) => write!(text, " {value:.digits$} |")?,
                None => text.push_str("  |"),
            }
        }
        text.push('\n');
    }
    text.push('\n');
    Ok(())
}

fn tasks(text: &mut String, samples: &Samples) -> Result<()> {
    let median = |metric| samples.median(metric, PeerKind::Remuda);
    let (Some(rate), Some(p50), Some(p99)) = (
        median(Metric::TasksPerSecond),
        median(Metric::TaskStartedP50Us),
        median(Metric::TaskStartedP99Us),
    ) else {
        return Ok(());
    };
    writeln!(
        text,
        "Of 1,000 tasks offered per second {rate:.0} came to their end per second (the last ones end after the clock \
         has stopped); from sending a task to its `started` event: p50 {p50:.0} µs, p99 {p99:.0} µs.\n"
    )?;
    Ok(())
}

/// The day, the machine and the compiler.
pub(super) fn machine() -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            Some(
                line.strip_prefix("model name")?
                    .split_once(':')?
                    .1
                    .trim()
                    .to_owned(),
            )
        })
        .unwrap_or_else(|| "unknown processor".to_owned());
    let memory_kib = read("/proc/meminfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0);
    Ok(format!(
        "{}, {} with {} cores and {} GiB, Linux {}, {}",
        first_line(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?,
        processor,
        std::thread::available_parallelism()?,
        memory_kib.div_ceil(1024 * 1024),
        read("/proc/sys/kernel/osrelease").trim(),
        first_line(Command::new("rustc").arg("--version"))?,
    ))
}
