//! Times, and what is said of them.

use std::time::Duration;

use serde::Serialize;

/// What many times come to, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

/// Times in the order in which they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<u64>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn summary(mut self) -> Summary {
        self.0.sort_unstable();
        // The nearest rank: the smallest time that at least this share of all does not exceed.
        let rank = |percent: usize| {
            let index = (self.0.len() * percent).div_ceil(100).max(1) - 1;
            self.0.get(index).map_or(0.0, |nanos| *nanos as f64 / 1000.0)
        };
        Summary {
            count: self.0.len(),
            p50_us: rank(50),
            p90_us: rank(90),
            p99_us: rank(99),
            max_us: rank(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_hundred_times() {
        let mut times = Times::default();
        (1..=100)
            .rev()
            .for_each(|micros| times.add(Duration::from_micros(micros)));
        let summary = times.summary();
        let got = (summary.count, summary.p50_us, summary.p99_us, summary.max_us);
        assert_eq!(got, (100, 50.0, 99.0, 100.0));
        assert_eq!(Times::default().summary().p99_us, 0.0);
    }
}
