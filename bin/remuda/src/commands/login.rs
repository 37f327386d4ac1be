//! `remuda login`: the agent's own login dialogue, relayed. The login stays sealed with the node that keeps it.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use pool_registry_types::{LoginEvent, LoginStatus};
use serde_json::{Value, json};

use crate::client::{Client, ControlPlane, Events, segment};
use crate::commands::interruptible;
use crate::failure::{Exit, Failure};
use crate::local::{Local, Wanted};
use crate::output::{bold, dim, name_of, print_json};
use crate::progress::Shown;

/// Log in at an agent, such as claude, codex or gemini; show and remove logins
///
/// Relays the agent's own dialogue: an address to open, a code to enter or to paste, or a key from standard input. The
/// login belongs to the owner of the key that is shown to the control plane, is kept sealed, and is used for nobody else.
/// Without --url (or REMUDA_URL) it is the login of this machine's own `remuda run --agent`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  remuda login claude\n  remuda login codex --kind device-code\n  \
    remuda login codex --kind api-key < key.txt\n  remuda login status claude\n  remuda login remove claude"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// Which agent
    #[arg(required = true)]
    agent: Option<String>,

    /// In which way [default: the agent's usual one]
    #[arg(long, value_enum)]
    kind: Option<Kind>,

    #[command(flatten)]
    control_plane: ControlPlane,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show whether you are logged in
    #[command(after_help = "Example:\n  remuda login status claude")]
    Status {
        /// Which agent
        agent: String,

        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove your login
    #[command(after_help = "Example:\n  remuda login remove claude")]
    Remove {
        /// Which agent
        agent: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// The agent shows an address and a code
    DeviceCode,
    /// The agent shows an address and wants to be told a code
    PasteCode,
    /// A key of the agent's provider, from standard input
    ApiKey,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::DeviceCode => "device_code",
            Self::PasteCode => "paste_code",
            Self::ApiKey => "api_key",
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    // What a person enters is in memory here, too.
    daemon::core_dumps::switch_off();
    let agent = match (&arguments.action, &arguments.agent) {
        (Some(Action::Status { agent, .. } | Action::Remove { agent }), _) | (None, Some(agent)) => {
            agent.clone()
        }
        (None, None) => return Err(Failure::new(Exit::Usage, "which agent?").into()),
    };
    if arguments.control_plane.url.is_some() {
        let client = arguments.control_plane.client()?;
        return interruptible(act(&client, &arguments, &agent)).await;
    }
    let shown = Shown::new(false);
    let local = Local::start_with_agent(
        &Wanted {
            agent: Some(agent.clone()),
            for_one_run: true,
            ..Wanted::default()
        },
        &shown,
    )
    .await?;
    let outcome = interruptible(async {
        local
            .ready(&shown, |status| Err(crate::local::engine_failure(status).into()))
            .await?;
        act(&local.client()?, &arguments, &agent).await
    })
    .await;
    drop(shown);
    local.stop().await;
    outcome
}

async fn act(client: &Client, arguments: &Arguments, agent: &str) -> Result<()> {
    let path = format!("/v2/agents/{}/login", segment(agent));
    match &arguments.action {
        Some(Action::Status { json, .. }) => show(&client.get(&path).await?, *json),
        Some(Action::Remove { .. }) => {
            client.delete(&path).await?;
            anstream::eprintln!("the login at {agent} is removed");
            Ok(())
        }
        None => {
            let body = json!({"kind": arguments.kind.map(Kind::name)});
            let mut events = client.post_events(&path, &body).await?;
            relay(client, &path, &mut events, agent).await
        }
    }
}

fn show(status: &LoginStatus, json: bool) -> Result<()> {
    if json {
        return print_json(status);
    }
    let state = if status.is_logged_in {
        "logged in"
    } else {
        "not logged in"
    };
    anstream::println!("{}: {} is {state}", status.agent, status.owner);
    let kinds: Vec<String> = status
        .kinds
        .iter()
        .map(|kind| name_of(kind).replace('_', "-"))
        .collect();
    if !status.is_logged_in && !kinds.is_empty() {
        anstream::eprintln!("{}", dim(format!("ways to log in: {}", kinds.join(", "))));
    }
    Ok(())
}

/// Shows what the agent says and gives it what the person enters.
async fn relay(client: &Client, path: &str, events: &mut Events, agent: &str) -> Result<()> {
    let mut login_id = String::new();
    while let Some(event) = events.next().await? {
        let mut data: Value = serde_json::from_str(&event.data).context("an event holds no JSON")?;
        if event.name == "login" {
            login_id = data["login_id"].as_str().unwrap_or_default().to_owned();
            continue;
        }
        data["type"] = event.name.into();
        // Events of a newer control plane are passed over.
        let Ok(event) = serde_json::from_value::<LoginEvent>(data) else {
            continue;
        };
        match event {
            LoginEvent::Started { .. } => {}
            LoginEvent::Open { url } => anstream::eprintln!("Open this address:\n  {}", bold(url)),
            LoginEvent::Code { code } => anstream::eprintln!("and enter this code there: {}", bold(code)),
            LoginEvent::Output { line } => anstream::eprintln!("{}", dim(line)),
            LoginEvent::Input { prompt, secret } => {
                let text = tokio::task::spawn_blocking(move || enter(&prompt, secret)).await??;
                let body = json!({"login_id": login_id, "text": text});
                client.post::<Value>(&format!("{path}/input"), &body).await?;
            }
            LoginEvent::Ended { failure: None } => {
                anstream::eprintln!("logged in at {agent}");
                return Ok(());
            }
            LoginEvent::Ended {
                failure: Some(failure),
            } => {
                let message = format!("not logged in: {} ({})", failure.message, failure.code);
                return Err(Failure::new(Exit::Failed, message).into());
            }
        }
    }
    Err(Failure::new(Exit::Failed, "the login broke off before its end").into())
}

/// Reads a line from the person; a secret one is not shown while it is typed.
fn enter(prompt: &str, secret: bool) -> Result<String> {
    let stdin = std::io::stdin();
    let on_terminal = stdin.is_terminal();
    if on_terminal {
        anstream::eprint!("{prompt}: ");
        // Nobody sees the question when this fails, and the answer is read all the same.
        let _ = std::io::stderr().flush();
    }
    let hidden = (secret && on_terminal).then(Hidden::begin).flatten();
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if hidden.is_some() {
        anstream::eprintln!();
    }
    drop(hidden);
    read.context("reading standard input")?;
    let line = line.trim();
    if line.is_empty() {
        return Err(Failure::new(Exit::Usage, "nothing was entered").into());
    }
    Ok(line.to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden {
    before: rustix::termios::Termios,
}

impl Hidden {
    fn begin() -> Option<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Now, &silent).ok()?;
        Some(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = rustix::termios::tcsetattr(
            std::io::stdin(),
            rustix::termios::OptionalActions::Now,
            &self.before,
        );
    }
}
