//! Shows how far long steps are: a bar on a terminal, otherwise a plain line every few seconds.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use model_store::{Progress, Step, Unit};

use crate::output;

/// How often a plain line is written.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows steps until it is dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
enum State {
    Quiet,
    Bar(Option<(String, ProgressBar)>),
    Lines(Option<Lines>),
}

#[derive(Debug)]
struct Lines {
    what: String,
    began: Instant,
    written: Instant,
}

impl Shown {
    /// On standard error; `quiet` shows nothing.
    pub(crate) fn new(quiet: bool) -> Self {
        let state = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => State::Quiet,
            (false, true) => State::Bar(None),
            (false, false) => State::Lines(None),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// What the libraries report to.
    pub(crate) fn sink(&self) -> Progress {
        let state = Arc::clone(&self.state);
        Progress::new(move |step| {
            state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .show(&step, Instant::now());
        })
    }

    /// Shows one step.
    pub(crate) fn show(&self, step: &Step) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .show(step, Instant::now());
    }

    /// Takes the bar away, so that something else can be printed.
    pub(crate) fn clear(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.clear();
    }
}

impl State {
    fn show(&mut self, step: &Step, now: Instant) {
        match self {
            Self::Quiet => {}
            Self::Bar(current) => {
                if current.as_ref().is_none_or(|(what, _)| *what != step.what) {
                    if let Some((_, bar)) = current.take() {
                        bar.finish_and_clear();
                    }
                    *current = Some((step.what.clone(), bar(step)));
                }
                if let Some((_, bar)) = current {
                    bar.set_position(step.done);
                    if let Some(total) = step.total {
                        bar.set_length(total);
                    }
                }
            }
            Self::Lines(current) => {
                if let Some(line) = next_line(current, step, now) {
                    anstream::eprintln!("{line}");
                }
            }
        }
    }

    fn clear(&mut self) {
        if let Self::Bar(current) = self
            && let Some((_, bar)) = current.take()
        {
            bar.finish_and_clear();
        }
    }
}

fn bar(step: &Step) -> ProgressBar {
    let template = match (step.total, step.unit) {
        (Some(_), Unit::Bytes) => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}, {eta} left",
        (Some(_), Unit::Pieces) => "{msg} {wide_bar} {percent}%, {eta} left",
        (None, Unit::Bytes) => "{spinner} {msg}: {binary_bytes}, {elapsed}",
        (None, Unit::Pieces) => "{spinner} {msg}, {elapsed}",
    };
    let style = ProgressStyle::with_template(template).expect("the templates are fixed");
    let bar = ProgressBar::new(step.total.unwrap_or(0)).with_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    bar.set_message(step.what.clone());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// The line to write now, if one is due: at once for a new step, then every few seconds.
fn next_line(current: &mut Option<Lines>, step: &Step, now: Instant) -> Option<String> {
    match current {
        Some(lines) if lines.what == step.what => {
            if now.duration_since(lines.written) < LINE_INTERVAL {
                return None;
            }
            lines.written = now;
            Some(line(step, now.duration_since(lines.began)))
        }
        _ => {
            *current = Some(Lines {
                what: step.what.clone(),
                began: now,
                written: now,
            });
            Some(line(step, Duration::ZERO))
        }
    }
}

fn line(step: &Step, elapsed: Duration) -> String {
    let Step {
        what,
        done,
        total,
        unit,
    } = step;
    let amount = match (unit, total) {
        (Unit::Bytes, Some(total)) => format!(": {} of {}", output::size(*done), output::size(*total)),
        (Unit::Bytes, None) => format!(": {}", output::size(*done)),
        (Unit::Pieces, Some(total)) => format!(": {}%", (done * 100).checked_div(*total).unwrap_or(0)),
        (Unit::Pieces, None) => String::new(),
    };
    let elapsed_text = if elapsed.is_zero() {
        String::new()
    } else {
        format!(", {}", output::duration(elapsed))
    };
    let left = total.filter(|_| *done > 0 && !elapsed.is_zero()).map(|total| {
        let left = elapsed.as_secs_f64() * (total.saturating_sub(*done) as f64) / (*done as f64);
        format!(", about {} left", output::duration(Duration::from_secs_f64(left)))
    });
    format!("{what}{amount}{elapsed_text}{}", left.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_comes_at_once_and_then_every_few_seconds() {
        let mut current = None;
        let began = Instant::now();
        let mut at = |seconds: u64, what: &str, done: u64| {
            let step = Step {
                what: what.to_owned(),
                done,
                total: Some(100 << 20),
                unit: Unit::Bytes,
            };
            next_line(&mut current, &step, began + Duration::from_secs(seconds))
        };
        assert_eq!(
            at(0, "downloading x", 0).unwrap(),
            "downloading x: 0 B of 100.0 MiB"
        );
        assert_eq!(at(1, "downloading x", 10 << 20), None);
        assert_eq!(
            at(5, "downloading x", 50 << 20).unwrap(),
            "downloading x: 50.0 MiB of 100.0 MiB, 5.0 s, about 5.0 s left"
        );
        assert_eq!(at(6, "downloading x", 60 << 20), None);
        assert_eq!(at(6, "checking x", 0).unwrap(), "checking x: 0 B of 100.0 MiB");
    }
}
