//! The `engine-provisioner` program.

mod fetch;
mod recipes;
mod run;

use std::ffi::OsString;

use clap::{Parser, Subcommand};
use daemon::config::Sources;

/// Reads the command line and does what it says.
pub fn main() -> anyhow::Result<()> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return Err(daemon::config::ConfigError::Usage(error).into()),
    };
    daemon::core_dumps::switch_off();
    match cli.command {
        Command::Run(rest) => run::run(&rest.sources()),
        Command::Fetch(rest) => fetch::run(&rest.sources()),
        Command::Recipes(rest) => recipes::run(&rest.sources()),
    }
}

/// Gets, builds, starts and keeps an engine
#[derive(Debug, Parser)]
#[command(name = "engine-provisioner", version)]
#[command(after_help = "Example: engine-provisioner fetch --recipe llamacpp")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep the engine of a spec file until told to end, or until the node daemon has been gone for a while
    Run(Rest),
    /// Get or build an engine, and nothing else
    Fetch(Rest),
    /// List the engine recipes
    Recipes(Rest),
}

/// The subcommand's own flags: read together with the environment and `remuda.toml`, which clap alone cannot do.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
struct Rest {
    /// The subcommand's flags; --help lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

impl Rest {
    fn sources(self) -> Sources {
        Sources::with_arguments(self.flags)
    }
}
