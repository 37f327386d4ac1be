//! `engine-provisioner fetch`: an engine and nothing else.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::config::{self, Sources};
use daemon::telemetry::TelemetrySettings;
use model_store::{Progress, Step, Unit};

use crate::fetch::get_engine;
use crate::recipe::{Recipe, Variant};

/// A line about a step is printed at most so often.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
struct Settings {
    #[command(flatten)]
    common: crate::Settings,

    #[command(flatten)]
    telemetry: TelemetrySettings,

    /// The engine recipe
    #[arg(long, value_name = "NAME", default_value = "llamacpp")]
    recipe: String,

    /// What the engine is to compute on [default: what suits the machine]
    #[arg(long, value_name = "VARIANT")]
    variant: Option<Variant>,
}

impl config::Settings for Settings {
    const SECTION: &'static str = "engine-provisioner";
    const ABOUT: &'static str = "Get or build an engine, and nothing else";
    const PREFIXES: &'static [&'static str] = &["ENGINE_PROVISIONER_"];
}

pub(super) fn run(sources: &Sources) -> anyhow::Result<()> {
    let settings = config::load::<Settings>(sources)?.settings;
    let telemetry = daemon::telemetry::init("engine-provisioner", &settings.telemetry)?;
    let recipe = Recipe::load(&settings.recipe, settings.common.recipes_dir.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let program = settings.common.engine_program.clone();
    let progress = lines();
    let engine = runtime
        .block_on(get_engine(
            &recipe,
            &settings.common,
            program.as_deref(),
            settings.variant,
            &progress,
        ))
        .with_context(|| format!("cannot get the engine {}", recipe.name))?;
    writeln!(
        std::io::stdout(),
        "{} ({})",
        engine.program.display(),
        engine.version
    )?;
    telemetry.shutdown(Duration::from_secs(1));
    Ok(())
}

/// The step that is under way, and what has been told of it.
struct Told {
    what: String,
    began: Instant,
    done_at_first: u64,
    last_line: Instant,
}

/// A plain line every few seconds, and one for each new step.
fn lines() -> Progress {
    let told: Mutex<Option<Told>> = Mutex::new(None);
    Progress::new(move |step| {
        let now = Instant::now();
        let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &mut *told {
            Some(told) if told.what == step.what => {
                if now - told.last_line >= LINE_INTERVAL {
                    told.last_line = now;
                    eprintln!(
                        "{}{}",
                        line(&step),
                        left(&step, told.done_at_first, now - told.began)
                    );
                }
            }
            _ => {
                eprintln!("{}", line(&step));
                *told = Some(Told {
                    done_at_first: step.done,
                    what: step.what,
                    began: now,
                    last_line: now,
                });
            }
        }
    })
}

/// How long the step takes yet, going by how long it took so far. What an earlier run did does not count.
fn left(step: &Step, done_at_first: u64, took: Duration) -> String {
    let (Some(total), done) = (step.total, step.done.saturating_sub(done_at_first)) else {
        return String::new();
    };
    if done == 0 || total < step.done {
        return String::new();
    }
    let left_s = took.as_secs_f64() * (total - step.done) as f64 / done as f64;
    if left_s < 90.0 {
        format!(", about {left_s:.0} s left")
    } else {
        format!(", about {:.0} min left", left_s / 60.0)
    }
}

fn line(step: &Step) -> String {
    let number = |count: u64| match step.unit {
        Unit::Bytes => format!("{:.1} MB", count as f64 / 1e6),
        Unit::Pieces => count.to_string(),
    };
    match step.total {
        Some(total) => format!("{}: {} of {}", step.what, number(step.done), number(total)),
        None => format!("{}: {}", step.what, number(step.done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(done: u64, total: Option<u64>, done_at_first: u64, took_s: u64, expect: &str) {
        let step = Step {
            what: "building".to_owned(),
            done,
            total,
            unit: Unit::Pieces,
        };
        assert_eq!(left(&step, done_at_first, Duration::from_secs(took_s)), expect);
    }

    #[test]
    fn the_time_left_goes_by_the_time_so_far() {
        check(50, Some(200), 0, 60, ", about 3 min left");
        check(150, Some(200), 140, 10, ", about 50 s left");
        check(0, Some(200), 0, 10, "");
        check(10, None, 0, 10, "");
        check(10, Some(5), 0, 10, "");
    }
}
