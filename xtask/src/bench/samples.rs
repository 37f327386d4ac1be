//! What was measured, round by round, and the medians.

use std::collections::BTreeMap;

use super::peers::PeerKind;

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    /// Time of one request with one connection, median, µs.
    SingleP50Us,
    /// Requests per second with 64 connections.
    RequestsPerSecond,
    /// Processor time per request with 64 connections, µs.
    RequestCpuUs,
    /// The same against nginx in the same round.
    RequestCpuRatio,
    /// Time to the first event with 200 streams beyond that without a gateway, median, µs.
    FirstEventP50Us,
    /// The same, 99th percentile, µs.
    FirstEventP99Us,
    /// Processor time per streamed chunk, µs.
    ChunkCpuUs,
    /// The same against nginx in the same round.
    ChunkCpuRatio,
    /// Resident memory after the rounds, MiB.
    ResidentMib,
    /// From start to the first answer, s.
    StartSeconds,
    /// How many streams were held open: ten thousand, or as many as the limit on open files allows.
    OpenStreams,
    /// Resident memory per open stream, KiB.
    StreamKib,
    /// Tasks per second that came to their end.
    TasksPerSecond,
    /// Share of a core used by the control plane meanwhile.
    TasksCoreShare,
    /// Admission and placement of a task, 99th percentile, µs, as the control plane counts it.
    PlacementP99Us,
    /// From sending a task to its first event that says it runs, median, µs.
    TaskStartedP50Us,
    /// The same, 99th percentile, µs.
    TaskStartedP99Us,
    /// An idle control plane's resident memory, MiB.
    IdlePlaneMib,
    /// Its share of a core.
    IdlePlaneShare,
    /// An idle node's resident memory, MiB.
    IdleNodeMib,
    /// Its share of a core.
    IdleNodeShare,
    /// Share of a core with 1,000 nodes that send heartbeats every 10 s.
    NodesShare,
}

/// All numbers of a run.
#[derive(Debug, Default)]
pub(super) struct Samples(BTreeMap<(Metric, PeerKind), Vec<f64>>);

impl Samples {
    pub(super) fn add(&mut self, metric: Metric, kind: PeerKind, value: f64) {
        self.0.entry((metric, kind)).or_default().push(value);
    }

    /// The median of all rounds; with an even number of them, of the middle two.
    pub(super) fn median(&self, metric: Metric, kind: PeerKind) -> Option<f64> {
        let mut values = self.0.get(&(metric, kind))?.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        fn check(values: &[f64], expect: Option<f64>) {
            let mut samples = Samples::default();
            values
                .iter()
                .for_each(|value| samples.add(Metric::RequestCpuUs, PeerKind::Nginx, *value));
            assert_eq!(
                samples.median(Metric::RequestCpuUs, PeerKind::Nginx),
                expect,
                "{values:?}"
            );
        }
        check(&[], None);
        check(&[3.0, 100.0, 1.0], Some(3.0));
        check(&[4.0, 1.0, 2.0, 100.0], Some(3.0));
    }
}
