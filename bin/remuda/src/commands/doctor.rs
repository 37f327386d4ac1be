//! `remuda doctor`: what is missing on this machine, for what, and what to do.

mod capacity;
mod checks;
mod engine;
mod port;
mod sandboxes;

use anyhow::Result;
use serde::Serialize;

use crate::client::ControlPlane;
use crate::failure::{Exit, Failure};
use crate::output::{bold, dim, green, print_json, red, yellow};

/// Say what is missing on this machine, for what, and what to do
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda doctor\n  remuda doctor --url https://cp.example.net --api-key KEY\n  \
    remuda doctor --json\n  remuda doctor --capacity --memory-gib 64 --cores 16\n\nThe exit code is 0 when `remuda run` will work here."
)]
pub(crate) struct Arguments {
    /// Write JSON
    #[arg(long)]
    json: bool,

    /// Say how many agents this machine holds instead, from its memory, its cores and what they were measured to take
    #[arg(long)]
    capacity: bool,

    /// Reckon for a machine with so much memory
    #[arg(long, value_name = "GIB", requires = "capacity")]
    memory_gib: Option<f64>,

    /// Reckon for a machine with so many cores
    #[arg(long, value_name = "N", requires = "capacity")]
    cores: Option<u32>,

    #[command(flatten)]
    control_plane: ControlPlane,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Ok,
    /// `remuda run` works; something else may not.
    Warning,
    /// `remuda run` will not work.
    Problem,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at.
    about: &'static str,
    /// What was found.
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(about: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            about,
            found: found.into(),
            advice: None,
        }
    }

    fn warning(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            about,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn problem(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            about,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if arguments.capacity {
        let machine = capacity::Machine::new(arguments.memory_gib, arguments.cores);
        return capacity::run(machine, arguments.json);
    }
    let mut findings = vec![checks::settings(), checks::data_directory()];
    findings.extend(engine::check());
    findings.push(checks::disk_space());
    findings.push(checks::gpu());
    findings.push(checks::git());
    findings.push(checks::descriptor_limit());
    findings.extend(sandboxes::check().await);
    findings.extend(checks::certificates());
    findings.push(port::check(&arguments.control_plane).await);
    findings.extend(checks::control_plane(&arguments.control_plane).await);

    if arguments.json {
        print_json(&findings)?;
    } else {
        findings.iter().for_each(print);
    }
    let problems = findings
        .iter()
        .filter(|finding| finding.level == Level::Problem)
        .count();
    match problems {
        0 => {
            if !arguments.json {
                anstream::println!("\n{} will work here.", bold("remuda run \"3*67\""));
            }
            Ok(())
        }
        1 => Err(Failure::new(Exit::Failed, "1 problem keeps `remuda run` from working").into()),
        count => Err(Failure::new(
            Exit::Failed,
            format!("{count} problems keep `remuda run` from working"),
        )
        .into()),
    }
}

fn print(finding: &Finding) {
    let mark = match finding.level {
        Level::Ok => green("ok     "),
        Level::Warning => yellow("warning"),
        Level::Problem => red("problem"),
    };
    anstream::println!(
        "{mark}  {}: {}",
        finding.about,
        finding.found.replace('\n', "\n         ")
    );
    if let Some(advice) = &finding.advice {
        anstream::println!("         {}", dim(advice));
    }
}
