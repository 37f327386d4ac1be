//! `remuda completions`: so that the shell knows the commands.

use anyhow::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::Cli;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda completions bash > ~/.local/share/bash-completion/completions/remuda\n  \
    remuda completions zsh > ~/.zfunc/_remuda\n  \
    remuda completions fish > ~/.config/fish/completions/remuda.fish"
)]
pub(crate) struct Arguments {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    clap_complete::generate(
        arguments.shell,
        &mut Cli::command(),
        "remuda",
        &mut std::io::stdout(),
    );
    Ok(())
}
