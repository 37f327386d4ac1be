//! What is measured, one turn at a time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lab::{self, Lab};
use super::peers::{ControlPlane, Daemon, Gateway, PeerKind};
use super::samples::{Metric, Samples};

/// A turn in which more than one request in so many failed counts for nothing.
const REQUESTS_PER_ERROR_MIN: f64 = 1000.0;

/// A turn without streams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    requests_per_second: f64,
    p50_us: f64,
    cpu_us: f64,
}

/// A turn with streams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    first_p50_us: f64,
    first_p99_us: f64,
    chunk_cpu_us: f64,
}

/// One turn of everybody.
#[derive(Debug, Default)]
pub(super) struct Round {
    plain: BTreeMap<PeerKind, Plain>,
    single: BTreeMap<PeerKind, Plain>,
    streams: BTreeMap<PeerKind, Streams>,
}

impl Round {
    pub(super) fn plain(&mut self, kind: PeerKind, turn: Plain) {
        self.plain.insert(kind, turn);
    }

    pub(super) fn single(&mut self, kind: PeerKind, turn: Plain) {
        self.single.insert(kind, turn);
    }

    pub(super) fn streams(&mut self, kind: PeerKind, turn: Streams) {
        self.streams.insert(kind, turn);
    }

    /// Compares within the round, and keeps what came of it.
    pub(super) fn into_samples(self, samples: &mut Samples) {
        let nginx = self.plain.get(&PeerKind::Nginx).map(|turn| turn.cpu_us);
        for (kind, turn) in self.plain {
            samples.add(Metric::RequestsPerSecond, kind, turn.requests_per_second);
            samples.add(Metric::RequestCpuUs, kind, turn.cpu_us);
            if let Some(nginx) = nginx {
                samples.add(Metric::RequestCpuRatio, kind, turn.cpu_us / nginx);
            }
        }
        for (kind, turn) in self.single {
            samples.add(Metric::SingleP50Us, kind, turn.p50_us);
        }
        let nginx = self.streams.get(&PeerKind::Nginx).map(|turn| turn.chunk_cpu_us);
        let direct = self.streams.get(&PeerKind::Direct).copied();
        for (kind, turn) in self.streams {
            samples.add(Metric::ChunkCpuUs, kind, turn.chunk_cpu_us);
            if let Some(nginx) = nginx {
                samples.add(Metric::ChunkCpuRatio, kind, turn.chunk_cpu_us / nginx);
            }
            if let Some(direct) = direct {
                samples.add(
                    Metric::FirstEventP50Us,
                    kind,
                    turn.first_p50_us - direct.first_p50_us,
                );
                samples.add(
                    Metric::FirstEventP99Us,
                    kind,
                    turn.first_p99_us - direct.first_p99_us,
                );
            }
        }
    }
}

/// Answers that are no streams.
pub(super) fn plain(lab: &Lab, gateway: &Gateway, connections: u32, time: Duration) -> Result<Plain> {
    let arguments = arguments(&[
        "plain",
        "--connections",
        &connections.to_string(),
        "--seconds",
        &time.as_secs_f64().to_string(),
    ]);
    let (report, cpu) = under_load(lab, gateway, &arguments)?;
    let requests = number(&report, "/requests")?;
    check_errors(&report, requests)?;
    Ok(Plain {
        requests_per_second: number(&report, "/requests_per_second")?,
        p50_us: number(&report, "/latency/p50_us")?,
        cpu_us: cpu.as_secs_f64() * 1e6 / requests,
    })
}

/// 200 streams of 50 chunks, 20 ms apart.
pub(super) fn streams(lab: &Lab, gateway: &Gateway, time: Duration) -> Result<Streams> {
    let arguments = arguments(&["streams", "--seconds", &time.as_secs_f64().to_string()]);
    let (report, cpu) = under_load(lab, gateway, &arguments)?;
    check_errors(&report, number(&report, "/streams")?)?;
    Ok(Streams {
        first_p50_us: number(&report, "/first_event/p50_us")?,
        first_p99_us: number(&report, "/first_event/p99_us")?,
        chunk_cpu_us: cpu.as_secs_f64() * 1e6 / number(&report, "/events")?,
    })
}

/// Resident memory per open stream, in KiB, of a gateway that was just started.
pub(super) fn memory(lab: &Lab, gateway: &Gateway, streams: u32) -> Result<f64> {
    let before = gateway.resident_kib()?;
    let arguments = arguments(&["hold", "--streams", &streams.to_string()]);
    let mut load = lab.start_load(gateway.address, gateway.key, &arguments)?;
    load.wait_ready()?;
    let during = gateway.resident_kib()?;
    load.finish()?;
    Ok(during.saturating_sub(before) as f64 / f64::from(streams))
}

/// What became of tasks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tasks {
    per_second: f64,
    core_share: f64,
    placement_p99_us: Option<f64>,
    started_p50_us: f64,
    started_p99_us: f64,
}

impl Tasks {
    pub(super) fn into_samples(self, samples: &mut Samples) {
        samples.add(Metric::TasksPerSecond, PeerKind::Remuda, self.per_second);
        samples.add(Metric::TasksCoreShare, PeerKind::Remuda, self.core_share);
        samples.add(Metric::TaskStartedP50Us, PeerKind::Remuda, self.started_p50_us);
        samples.add(Metric::TaskStartedP99Us, PeerKind::Remuda, self.started_p99_us);
        if let Some(placement) = self.placement_p99_us {
            samples.add(Metric::PlacementP99Us, PeerKind::Remuda, placement);
        }
    }
}

/// Tasks with events, arriving at `rate` a second.
pub(super) fn tasks(lab: &Lab, gateway: &Gateway, rate: u32, time: Duration) -> Result<Tasks> {
    let arguments = arguments(&[
        "tasks",
        "--rate",
        &rate.to_string(),
        "--seconds",
        &time.as_secs_f64().to_string(),
    ]);
    let before = dispatch_buckets(gateway)?;
    let (report, cpu) = under_load(lab, gateway, &arguments)?;
    let after = dispatch_buckets(gateway)?;
    check_errors(&report, number(&report, "/offered")?)?;
    let seconds = number(&report, "/seconds")?;
    Ok(Tasks {
        per_second: number(&report, "/ended")? / seconds,
        core_share: cpu.as_secs_f64() / seconds,
        placement_p99_us: percentile(&before, &after, 0.99).map(|millis| millis * 1000.0),
        started_p50_us: number(&report, "/started/p50_us")?,
        started_p99_us: number(&report, "/started/p99_us")?,
    })
}

/// What a daemon with nothing to do is like.
#[derive(Debug)]
pub(super) struct Idle<'a> {
    daemon: &'a Daemon,
    mib: f64,
    share: f64,
}

impl Idle<'_> {
    pub(super) fn into_samples(self, samples: &mut Samples) {
        samples.add(self.daemon.memory, PeerKind::Remuda, self.mib);
        samples.add(self.daemon.share, PeerKind::Remuda, self.share);
    }
}

/// Watches a daemon do nothing.
pub(super) fn idle(daemon: &Daemon, time: Duration) -> Result<Idle<'_>> {
    let (start, before) = (Instant::now(), daemon.process.cpu_time()?);
    std::thread::sleep(time);
    let used = daemon.process.cpu_time()?.since(&before);
    let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
    Ok(Idle {
        daemon,
        mib: daemon.process.resident_kib()? as f64 / 1024.0,
        share,
    })
}

/// Share of a core that heartbeats cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nodes {
    share: f64,
}

impl Nodes {
    pub(super) fn into_samples(self, samples: &mut Samples) {
        samples.add(Metric::NodesShare, PeerKind::Remuda, self.share);
    }
}

/// `count` nodes that send a heartbeat every 10 s.
pub(super) fn nodes(lab: &Lab, plane: &ControlPlane, count: u32, time: Duration) -> Result<Nodes> {
    let mut load = lab.start_load(
        plane.address,
        plane.key,
        &arguments(&["nodes", "--nodes", &count.to_string()]),
    )?;
    load.wait_ready()?;
    let (start, before) = (Instant::now(), plane.process.cpu_time()?);
    std::thread::sleep(time);
    let used = plane.process.cpu_time()?.since(&before);
    let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
    let report = load.finish()?;
    ensure!(number(&report, "/errors")? == 0.0, "heartbeats failed: {report}");
    ensure!(number(&report, "/heartbeats")? > 0.0, "no heartbeat was sent");
    Ok(Nodes { share })
}

/// Runs the load generator, and tells how much processor time the gateway used meanwhile.
fn under_load(lab: &Lab, gateway: &Gateway, arguments: &[String]) -> Result<(Value, Duration)> {
    let before = gateway.cpu_time()?;
    let report = lab.load(gateway.address, gateway.key, arguments)?;
    Ok((report, gateway.cpu_time()?.since(&before)))
}

fn check_errors(report: &Value, requests: f64) -> Result<()> {
    let errors = number(report, "/errors")?;
    ensure!(
        requests > 0.0 && requests >= errors * REQUESTS_PER_ERROR_MIN,
        "too many requests failed: {report}"
    );
    Ok(())
}

/// The control plane's own histogram of admission and placement: upper bound in ms and count, cumulative.
fn dispatch_buckets(gateway: &Gateway) -> Result<Vec<(f64, f64)>> {
    let text = lab::get(gateway.address, "/metrics", Some(gateway.key))?.body;
    Ok(buckets(&text, "orchd_dispatch_latency_ms"))
}

/// The buckets of histogram `name` in a Prometheus text, over all labels together.
fn buckets(text: &str, name: &str) -> Vec<(f64, f64)> {
    let mut sums: Vec<(f64, f64)> = Vec::new();
    let prefix = format!("{name}_bucket{{");
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(&prefix) else {
            continue;
        };
        let Some((labels, value)) = rest.split_once("} ") else {
            continue;
        };
        let bound = labels
            .split(',')
            .find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'));
        let Some(bound) = bound.and_then(|text| text.replace("+Inf", "inf").parse::<f64>().ok()) else {
            continue;
        };
        let value = value
            .split(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0);
        match sums.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, sum)) => *sum += value,
            None => sums.push((bound, value)),
        }
    }
    sums.sort_by(|left, right| left.0.total_cmp(&right.0));
    sums
}

/// The upper bound of the bucket that holds the percentile of what came between two readings.
fn percentile(before: &[(f64, f64)], after: &[(f64, f64)], share: f64) -> Option<f64> {
    let earlier = |bound: f64| {
        before
            .iter()
            .find(|(known, _)| *known == bound)
            .map_or(0.0, |(_, count)| *count)
    };
    let counts: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| (*bound, count - earlier(*bound)))
        .collect();
    let total = counts.last()?.1;
    let found = counts.into_iter().find(|(_, count)| *count >= total * share)?;
    (total > 0.0).then_some(found.0)
}

fn arguments(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn number(report: &Value, pointer: &str) -> Result<f64> {
    report
        .pointer(pointer)
        .and_then(Value::as_f64)
        .with_context(|| format!("no {pointer} in {report}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_read_from_the_difference_of_two_histograms() {
        let text = |counts: [u32; 3]| {
            format!(
                "# TYPE x histogram\nx_bucket{{pool=\"a\",le=\"0.1\"}} {}\nx_bucket{{le=\"1.0\",pool=\"a\"}} {}\n\
                 x_bucket{{pool=\"a\",le=\"+Inf\"}} {}\nx_count 3\n",
                counts[0], counts[1], counts[2]
            )
        };
        let before = buckets(&text([100, 100, 100]), "x");
        assert_eq!(
            percentile(&before, &buckets(&text([199, 200, 200]), "x"), 0.99),
            Some(0.1)
        );
        assert_eq!(
            percentile(&before, &buckets(&text([198, 200, 200]), "x"), 0.99),
            Some(1.0)
        );
        assert_eq!(percentile(&before, &before, 0.99), None);
        assert_eq!(percentile(&[], &[], 0.99), None);
    }
}
