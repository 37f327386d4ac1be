//! `remuda run`: one question, one answer.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use task_api::LOCAL_MODEL_PREFIX;

use crate::answer::{self, Message, Question};
use crate::client::{Client, ControlPlane};
use crate::commands::agent::{self, AgentQuestion};
use crate::commands::interruptible;
use crate::commands::workspace::Workspace;
use crate::demo;
use crate::failure::{Exit, Failure};
use crate::local::{Local, Wanted, engine_failure};
use crate::output::{dim, print_json};
use crate::progress::Shown;

/// Ask once: start everything, print the answer, stop everything
///
/// Without --url this starts a control plane, a node and an engine, asks, and stops them again. With --url (or
/// REMUDA_URL) it asks a control plane that runs already.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda run \"3*67\"\n  echo \"3*67\" | remuda run\n  \
    remuda run --model hf:ORG/REPO/FILE.gguf \"Why is the sky blue?\"\n  \
    remuda run --agent claude --workspace . \"What is in this directory?\"\n  \
    remuda run --agent codex --model local:demo \"3*67\"\n  \
    remuda run --url http://gpu1:8080 --api-key KEY --model big \"Why is the sky blue?\""
)]
pub(crate) struct Arguments {
    /// What to ask; words are joined, and without any, standard input is read
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,

    /// The model: a name, a path, hf:ORG/REPO/FILE or https:... [default: the demo model]; with --agent the agent's own
    /// model in its own words, or local: and one of these
    #[arg(long)]
    model: Option<String>,

    /// Have a coding agent do it, in a sandbox: claude, codex, gemini, opencode
    #[arg(long, value_name = "AGENT", conflicts_with = "max_tokens")]
    agent: Option<String>,

    /// What the agent works in: a directory, which is uploaded without .git and what .gitignore names; a repository to
    /// clone, as https://HOST/PATH, with #BRANCH or #TAG behind it perhaps; or the id of a workspace that is there
    #[arg(long, value_name = "DIR", requires = "agent")]
    workspace: Option<String>,

    /// How hard the agent should think
    #[arg(long, value_enum, requires = "agent")]
    effort: Option<Effort>,

    /// How long the agent may take, such as 30s or 10m [default: what its profile says]
    #[arg(long, value_name = "TIME", requires = "agent", value_parser = crate::commands::tasks::parse_duration)]
    timeout: Option<Duration>,

    /// The most tokens to generate
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,

    /// Write the answer as one JSON object when it is complete
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    control_plane: ControlPlane,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Effort {
    Low,
    Medium,
    High,
}

impl Effort {
    const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let prompt = prompt(&arguments.prompt)?;
    if let Some(agent) = &arguments.agent {
        return run_agent(agent, &prompt, &arguments).await;
    }
    if arguments.control_plane.url.is_some() {
        let client = arguments.control_plane.client()?;
        return interruptible(async {
            let model = match &arguments.model {
                Some(model) => model.clone(),
                None => answer::only_model(&client).await?,
            };
            ask(&client, &model, prompt, arguments.max_tokens, arguments.json).await
        })
        .await;
    }

    let wanted = Wanted {
        model: arguments.model.clone(),
        for_one_run: true,
        ..Wanted::default()
    };
    let local = Local::start(&wanted)?;
    let outcome = interruptible(ask_local(&local, prompt, &arguments)).await;
    local.stop().await;
    outcome
}

async fn ask_local(local: &Local, prompt: String, arguments: &Arguments) -> Result<()> {
    let shown = Shown::new(arguments.json);
    local
        .ready(&shown, |status| Err(engine_failure(status).into()))
        .await?;
    drop(shown);
    if local.is_demo && !arguments.json {
        anstream::eprintln!("{}", dim(demo::NOTE));
    }
    let client = local.client()?;
    let model = answer::only_model(&client).await?;
    ask(&client, &model, prompt, arguments.max_tokens, arguments.json).await
}

async fn run_agent(agent: &str, prompt: &str, arguments: &Arguments) -> Result<()> {
    let workspace = arguments.workspace.as_deref().map(Workspace::parse).transpose()?;
    let question = AgentQuestion {
        agent,
        prompt,
        workspace: workspace.as_ref(),
        model: arguments.model.as_deref(),
        effort: arguments.effort.map(Effort::name),
        timeout: arguments.timeout,
    };
    if arguments.control_plane.url.is_some() {
        return agent::ask(&arguments.control_plane.client()?, &question, arguments.json).await;
    }
    let wished = question
        .model
        .and_then(|model| model.strip_prefix(LOCAL_MODEL_PREFIX));
    let wanted = Wanted {
        model: wished.map(str::to_owned),
        agent: Some(agent.to_owned()),
        for_one_run: true,
        ..Wanted::default()
    };
    let shown = Shown::new(arguments.json);
    let local = Local::start_with_agent(&wanted, &shown).await?;
    let outcome = async {
        let client = local.client()?;
        interruptible(local.ready(&shown, |status| Err(engine_failure(status).into()))).await?;
        // A model that was given as a path goes by the name that its engine gives it.
        let model = match wished {
            Some(_) => Some(format!(
                "{LOCAL_MODEL_PREFIX}{}",
                answer::only_model(&client).await?
            )),
            None => None,
        };
        let question = AgentQuestion {
            model: model.as_deref().or(question.model),
            ..question
        };
        agent::ask(&client, &question, arguments.json).await
    }
    .await;
    drop(shown);
    local.stop().await;
    outcome
}

fn prompt(words: &[String]) -> Result<String> {
    let nothing = || {
        Failure::new(Exit::Usage, "there is nothing to ask")
            .hint("type it: remuda run \"3*67\", or send it: echo \"3*67\" | remuda run")
    };
    let prompt = if words.is_empty() {
        if std::io::stdin().is_terminal() {
            return Err(nothing().into());
        }
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("reading standard input")?;
        text
    } else {
        words.join(" ")
    };
    if prompt.trim().is_empty() {
        return Err(nothing().into());
    }
    Ok(prompt.trim_end_matches('\n').to_owned())
}

async fn ask(
    client: &Client,
    model: &str,
    prompt: String,
    max_tokens: Option<u32>,
    json: bool,
) -> Result<()> {
    let messages = [Message::user(prompt)];
    let question = Question {
        model,
        messages: &messages,
        max_tokens,
    };
    let answer = answer::ask(client, &question, |piece| {
        if !json {
            anstream::print!("{piece}");
            // When nobody reads any more, the next print says so too.
            let _ = std::io::stdout().flush();
        }
    })
    .await?;
    if json {
        return print_json(&answer);
    }
    anstream::println!();
    Ok(())
}
