//! One file per command; what they share stands here.

pub(crate) mod agent;
pub(crate) mod bench;
pub(crate) mod certs;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod keys;
pub(crate) mod login;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod pools;
pub(crate) mod run;
pub(crate) mod tasks;
pub(crate) mod up;
pub(crate) mod workspace;

use std::future::Future;
use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Cli, Command};
use crate::failure::{Exit, Failure};

/// Does what was typed.
pub(crate) fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(arguments) => block_on(run::run(arguments)),
        Command::Up(arguments) => block_on(up::run(arguments)),
        Command::Login(arguments) => block_on(login::run(arguments)),
        Command::Chat(arguments) => block_on(chat::run(arguments)),
        Command::Models(arguments) => block_on(models::run(arguments)),
        Command::Nodes(arguments) => block_on(nodes::run(arguments)),
        Command::Pools(arguments) => block_on(pools::run(arguments)),
        Command::Tasks(arguments) => block_on(tasks::run(arguments)),
        Command::Keys(arguments) => keys::run(arguments),
        Command::Certs(arguments) => certs::run(arguments),
        Command::Bench(arguments) => block_on(bench::run(arguments)),
        Command::Doctor(arguments) => block_on(doctor::run(arguments)),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}

/// Runs a command to its end.
fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(command)
}

/// Runs a command until it ends or somebody presses Ctrl-C. What it held is dropped then, which closes its connections.
pub(crate) async fn interruptible<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = command => result,
        () = told_to_end() => Err(Failure::new(Exit::Interrupted, "interrupted").into()),
    }
}

/// Waits for Ctrl-C, SIGTERM, or the end of the terminal.
pub(crate) async fn told_to_end() {
    // A signal that cannot be heard ends the process by itself.
    let hear = async |kind: SignalKind| match signal(kind) {
        Ok(mut heard) => drop(heard.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = hear(SignalKind::interrupt()) => {}
        () = hear(SignalKind::terminate()) => {}
        () = hear(SignalKind::hangup()), if !daemon::shutdown::hangup_is_ignored() => {}
    }
}

/// Asks for a yes on a terminal; without one there is nobody to ask, and `--yes` is needed.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::new(Exit::Usage, format!("{question} Nobody is here to answer"))
                .hint("add --yes")
                .into(),
        );
    }
    anstream::eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("reading the answer")?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "not done").into())
}
