//! Everything a developer runs. `cargo xtask verify` is the one command that decides whether a change may land.

mod agent_goldens;
mod agent_image;
mod bench;
mod demo_model;
mod static_init;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Everything a developer runs
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check everything that CI checks, in the same order
    Verify(verify::Verify),
    DemoModel(demo_model::DemoModel),
    Bench(bench::Bench),
    AgentGoldens(agent_goldens::AgentGoldens),
    AgentImage(agent_image::AgentImage),
    StaticInit(static_init::StaticInit),
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Verify(arguments) => arguments.run(),
        Command::DemoModel(arguments) => arguments.run().map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => arguments.run().map(|()| ExitCode::SUCCESS),
        Command::AgentGoldens(arguments) => arguments.run().map(|()| ExitCode::SUCCESS),
        Command::AgentImage(arguments) => arguments.run().map(|()| ExitCode::SUCCESS),
        Command::StaticInit(arguments) => arguments.run().map(|()| ExitCode::SUCCESS),
    }
}
