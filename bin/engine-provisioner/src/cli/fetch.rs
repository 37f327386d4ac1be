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

/// A plain line every few seconds, and one for each new step.
fn lines() -> Progress {
    let last: Mutex<Option<(String, Instant)>> = Mutex::new(None);
    Progress::new(move |step| {
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let due = last
            .as_ref()
            .is_none_or(|(what, at)| *what != step.what || at.elapsed() >= LINE_INTERVAL);
        if due {
            eprintln!("{}", line(&step));
            *last = Some((step.what, Instant::now()));
        }
    })
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
