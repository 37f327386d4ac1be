//! Numbers, bars, tables.

use std::fmt::Write as _;
use std::time::Duration;

/// A table with what is promised of it.
pub(crate) struct Part {
    pub(crate) title: &'static str,
    pub(crate) bars: Vec<Bar>,
    /// Markdown.
    pub(crate) text: String,
}

/// A figure with a bar.
pub(crate) struct Bar {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) digits: usize,
    pub(crate) unit: &'static str,
    pub(crate) promised: Promised,
}

/// Where the bar is.
#[derive(Clone, Copy)]
pub(crate) enum Promised {
    AtMost(f64),
    AtLeast(f64),
}

/// All bars as a table.
pub(crate) fn bars(bars: &[&Bar]) -> String {
    let mut text = String::from("| | measured | promised | |\n|---|---|---|---|\n");
    for bar in bars {
        let (word, limit, holds) = match bar.promised {
            Promised::AtMost(limit) => ("at most", limit, bar.measured <= limit),
            Promised::AtLeast(limit) => ("at least", limit, bar.measured >= limit),
        };
        let verdict = if holds { "holds" } else { "does not hold" };
        let _ = writeln!(
            text,
            "| {} | {:.*} {unit} | {word} {limit:.*} {unit} | {verdict} |",
            bar.what,
            bar.digits,
            bar.measured,
            // A bar that was measured, too, is no whole number.
            usize::from(limit.fract() != 0.0),
            unit = bar.unit
        );
    }
    text
}

/// A table: its heading, and rows of cells.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|{}\n", heading.join(" | "), "---|".repeat(heading.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Some measurements of one thing, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.add_ms(time.as_secs_f64() * 1000.0);
    }

    pub(crate) fn add_ms(&mut self, time: f64) {
        self.0.push(time);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The measurement below which this share of all is. Not a number without any.
    pub(crate) fn at(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted
            .get((sorted.len() * percent / 100).min(last))
            .copied()
            .unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.at(50)
    }

    /// The median for a table; nothing without measurements.
    pub(crate) fn cell(&self, digits: usize) -> String {
        if self.0.is_empty() {
            String::new()
        } else {
            format!("{:.digits$}", self.median())
        }
    }
}

impl FromIterator<f64> for Times {
    fn from_iter<I: IntoIterator<Item = f64>>(times: I) -> Self {
        Self(times.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Times = (1..=200).rev().map(f64::from).collect();
        assert_eq!(
            (times.median(), times.at(99), times.at(100)),
            (101.0, 199.0, 200.0)
        );
        assert!(Times::default().median().is_nan());
    }

    #[test]
    fn bars_hold_or_do_not() {
        let bar = |measured, promised| Bar {
            what: "x".to_owned(),
            measured,
            digits: 1,
            unit: "ms",
            promised,
        };
        let all = [
            bar(1.0, Promised::AtMost(2.0)),
            bar(1.0, Promised::AtLeast(2.0)),
            bar(f64::NAN, Promised::AtMost(2.5)),
        ];
        let text = bars(&all.iter().collect::<Vec<_>>());
        assert!(text.contains("| x | 1.0 ms | at most 2 ms | holds |"), "{text}");
        assert_eq!(text.matches("does not hold").count(), 2, "{text}");
    }
}
