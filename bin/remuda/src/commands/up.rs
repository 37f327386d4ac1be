//! `remuda up`: everything on this machine, until Ctrl-C.

use anyhow::Result;

/// Start everything on this machine and stay until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda up\n  remuda up --model hf:ORG/REPO/FILE.gguf\n  remuda up --addr 127.0.0.1:8081"
)]
pub(crate) struct Arguments {}

pub(crate) async fn run(_arguments: Arguments) -> Result<()> {
    anyhow::bail!("not yet")
}
