//! `remuda tasks`: what was asked, where it runs, and how it ended.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use pool_registry_types::PoolId;
use serde_json::{Value, json};
use task_api::{Event, TaskAccepted, TaskList, TaskRequest, TaskView};

use crate::client::{Client, ControlPlane, Events, segment};
use crate::commands::{agent, interruptible, workspace};
use crate::failure::{Exit, Failure};
use crate::output::{dim, duration, name_of, print_json, print_table, state_cell, table};
use crate::sse::ServerEvent;

/// Show, submit and cancel tasks
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda tasks\n  remuda tasks submit \"3*67\" --follow\n  \
    remuda tasks show 0199...\n  remuda tasks cancel 0199...\n  remuda tasks diff 0199... | git apply"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// Write JSON; for events one object per line
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    control_plane: ControlPlane,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List tasks, the newest first (what `remuda tasks` does)
    #[command(after_help = "Example:\n  remuda tasks list --limit 100")]
    List {
        /// How many at most
        #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one task: where it was placed and why, what it used, how it ended
    #[command(after_help = "Example:\n  remuda tasks show 01994f0e-7c3a-7b11-9f0a-5d6f1c2b3a4d")]
    Show {
        /// Which task
        task: String,
    },
    /// Cancel a task; its slot is free at once
    #[command(after_help = "Example:\n  remuda tasks cancel 01994f0e-7c3a-7b11-9f0a-5d6f1c2b3a4d")]
    Cancel {
        /// Which task
        task: String,
    },
    /// Follow a task's events from the first one, across broken connections
    #[command(after_help = "Example:\n  remuda tasks events 01994f0e-7c3a-7b11-9f0a-5d6f1c2b3a4d --json")]
    Events {
        /// Which task
        task: String,
    },
    /// Print what an agent's task has changed in its workspace, as a patch for `git apply`
    ///
    /// The patch leads from what the workspace began with to what it is now. Where several tasks have worked in it, their
    /// changes stand there together.
    #[command(after_help = "Example:\n  remuda tasks diff 01994f0e-7c3a-7b11-9f0a-5d6f1c2b3a4d | git apply")]
    Diff {
        /// Which task
        task: String,
    },
    /// List the files that an agent's task has changed in its workspace
    #[command(after_help = "Example:\n  remuda tasks files 01994f0e-7c3a-7b11-9f0a-5d6f1c2b3a4d")]
    Files {
        /// Which task
        task: String,
    },
    /// Download what is in the workspace of an agent's task, all but .git
    #[command(
        after_help = "Example:\n  remuda tasks download 01994f0e-7c3a-7b11-9f0a-5d6f1c2b3a4d --into result"
    )]
    Download {
        /// Which task
        task: String,

        /// Where to put the files; made when it is missing [default: a directory named like the task]
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,

        /// Write over files that are there
        #[arg(long)]
        force: bool,
    },
    /// Submit a task
    #[command(
        after_help = "Examples:\n  remuda tasks submit \"3*67\" --model demo --follow\n  \
        remuda tasks submit \"summarise this\" --pool big --priority batch --deadline 10m\n  \
        remuda tasks submit --file task.json"
    )]
    Submit(Submit),
}

#[derive(Debug, clap::Args)]
struct Submit {
    /// What to ask
    #[arg(required_unless_present = "file")]
    prompt: Option<String>,

    /// The model that is to do it [default: the only one there is]
    #[arg(long)]
    model: Option<String>,

    /// The pool that is to do it
    #[arg(long)]
    pool: Option<PoolId>,

    /// What kind of work
    #[arg(long, value_enum, default_value_t = Kind::Chat)]
    workload: Kind,

    /// Whether somebody waits for it
    #[arg(long, value_enum, default_value_t = Class::Interactive)]
    priority: Class,

    /// The most tokens to generate
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,

    /// How long it may take in all, such as 30s or 10m
    #[arg(long, value_name = "TIME", value_parser = crate::commands::tasks::parse_duration)]
    deadline: Option<Duration>,

    /// Tasks of one session go where their conversation is warm
    #[arg(long, value_name = "ID")]
    session: Option<String>,

    /// A file with the whole request as JSON; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "model", "pool"])]
    file: Option<PathBuf>,

    /// Stay and print the events
    #[arg(long, short)]
    follow: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Chat,
    Completion,
    Embedding,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Class {
    Interactive,
    Batch,
}

/// How often a broken event stream is taken up again.
const RESUMES_MAX: u32 = 10;
const RESUME_DELAY: Duration = Duration::from_millis(500);

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.control_plane.client()?;
    let json = arguments.json;
    let plane = &arguments.control_plane;
    interruptible(async {
        match arguments.action.unwrap_or(Action::List { limit: 20 }) {
            Action::Diff { task } => workspace::diff(plane, &task).await,
            Action::Files { task } => workspace::files_changed(plane, &task, json).await,
            Action::Download { task, into, force } => {
                let into = into.unwrap_or_else(|| PathBuf::from(task.replace(['/', '.'], "_")));
                workspace::download(plane, &task, &into, force).await
            }
            Action::List { limit } => list(&client, limit, json).await,
            Action::Show { task } => show(&client.get(&path(&task)).await?, json),
            Action::Cancel { task } => {
                client
                    .post::<Value>(&format!("{}/cancel", path(&task)), &json!({}))
                    .await?;
                anstream::eprintln!("{task} is cancelled");
                Ok(())
            }
            Action::Events { task } => follow(&client, &task, json).await,
            Action::Submit(submit) => submit_task(&client, submit, json).await,
        }
    })
    .await
}

fn path(task: &str) -> String {
    format!("/v2/tasks/{}", segment(task))
}

async fn list(client: &Client, limit: u32, json: bool) -> Result<()> {
    let mut tasks: Vec<TaskView> = Vec::new();
    let mut cursor: Option<String> = None;
    let limit = limit as usize;
    while tasks.len() < limit {
        let mut page_path = format!("/v2/tasks?limit={}", (limit - tasks.len()).min(100));
        if let Some(cursor) = &cursor {
            page_path.push_str(&format!("&cursor={}", segment(cursor)));
        }
        let page: TaskList = client.get(&page_path).await?;
        tasks.extend(page.tasks);
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    if json {
        return print_json(&tasks);
    }
    print_table(&tasks_table(&tasks), "no tasks yet")
}

fn tasks_table(tasks: &[TaskView]) -> comfy_table::Table {
    let mut table = table(&[
        "TASK", "STATE", "MODEL", "CLASS", "OWNER", "CREATED", "WHERE", "TOKENS", "TOOK",
    ]);
    for task in tasks {
        let place = task
            .placements
            .last()
            .map(|place| format!("{}/{}", place.node_id, place.replica_id));
        let tokens = task
            .usage
            .map(|usage| format!("{} + {}", usage.tokens_in, usage.tokens_out));
        let took = task
            .usage
            .map(|usage| duration(Duration::from_millis(usage.first_token_ms + usage.decode_ms)));
        table.add_row([
            task.task_id.as_str().into(),
            state_cell(&name_of(&task.state)),
            task.model
                .as_deref()
                .or(task.agent.as_deref())
                .unwrap_or("")
                .into(),
            name_of(&task.priority).into(),
            task.owner.as_str().into(),
            task.created_at.as_str().into(),
            place.unwrap_or_default().into(),
            tokens.unwrap_or_default().into(),
            comfy_table::Cell::new(took.unwrap_or_default()),
        ]);
    }
    table
}

fn show(task: &TaskView, json: bool) -> Result<()> {
    if json {
        return print_json(task);
    }
    print_table(&task_table(task), "")
}

fn task_table(task: &TaskView) -> comfy_table::Table {
    let mut facts = table(&["TASK", task.task_id.as_str()]);
    facts.add_row(["state".into(), state_cell(&name_of(&task.state))]);
    if let Some(position) = task.position {
        facts.add_row(["waits behind", &position.to_string()]);
    }
    facts.add_row(["workload", &name_of(&task.workload)]);
    facts.add_row(["class", &name_of(&task.priority)]);
    if let Some(agent) = &task.agent {
        facts.add_row(["agent", agent]);
    }
    facts.add_row(["model", task.model.as_deref().unwrap_or("")]);
    facts.add_row(["owner", &task.owner]);
    if let Some(session) = &task.session_id {
        facts.add_row(["session", session.as_str()]);
    }
    facts.add_row(["created", &task.created_at]);
    if let Some(ended_at) = &task.ended_at {
        facts.add_row(["ended", ended_at]);
    }
    if let Some(usage) = task.usage {
        let ms = |ms| duration(Duration::from_millis(ms));
        facts.add_row([
            "tokens",
            &format!("{} in, {} out", usage.tokens_in, usage.tokens_out),
        ]);
        facts.add_row(["waited", &ms(usage.queue_ms)]);
        facts.add_row(["first token", &ms(usage.first_token_ms)]);
        facts.add_row(["answering", &ms(usage.decode_ms)]);
    }
    if let Some(error) = &task.error {
        facts.add_row(["error", &format!("{}: {}", error.code.as_str(), error.message)]);
    }
    for place in &task.placements {
        facts.add_row([
            "placed",
            &format!("{}/{} on {}", place.pool_id, place.replica_id, place.node_id),
        ]);
        for reason in &place.reasons {
            facts.add_row(["", reason]);
        }
    }
    facts.add_row(["correlation", &task.correlation_id]);
    facts
}

async fn submit_task(client: &Client, submit: Submit, json: bool) -> Result<()> {
    let follow_events = submit.follow;
    let request = request(client, submit).await?;
    if follow_events {
        let events = client.post_events("/v2/tasks", &request).await?;
        // The stream carries no task id of its own to resume by unless the client chose one.
        return print_events(
            client,
            request.task_id.as_ref().map(|id| id.as_str()),
            events,
            json,
        )
        .await;
    }
    let accepted: TaskAccepted = client.post("/v2/tasks", &request).await?;
    if json {
        return print_json(&accepted);
    }
    let start = duration(Duration::from_millis(accepted.estimated_start_ms));
    anstream::eprintln!(
        "{}",
        dim(format!(
            "{} before it, starts in about {start}",
            accepted.position
        ))
    );
    anstream::println!("{}", accepted.task_id);
    Ok(())
}

async fn request(client: &Client, submit: Submit) -> Result<TaskRequest> {
    let body = if let Some(file) = &submit.file {
        let text = if file.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin()).context("reading standard input")?
        } else {
            std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?
        };
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?
    } else {
        let model = match (submit.model, &submit.pool) {
            (Some(model), _) => Some(model),
            (None, Some(_)) => None,
            (None, None) => Some(crate::answer::only_model(client).await?),
        };
        let text_field = if matches!(submit.workload, Kind::Embedding) {
            "input"
        } else {
            "prompt"
        };
        let mut body = json!({
            "task_id": task_api::TaskId::generate(),
            "workload": name(&submit.workload),
            "priority": name(&submit.priority),
            "model": model,
            "pool": submit.pool,
            "max_tokens": submit.max_tokens,
            "deadline_ms": submit.deadline.map(|deadline| deadline.as_millis()),
            "session_id": submit.session,
        });
        body[text_field] = submit.prompt.into();
        body
    };
    let request: TaskRequest = serde_json::from_value(body)
        .map_err(|error| Failure::new(Exit::Usage, format!("this is no task: {error}")))?;
    request
        .validate()
        .map_err(|error| Failure::new(Exit::Usage, error.message.into_owned()))?;
    Ok(request)
}

fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .expect("no value is hidden")
        .get_name()
        .to_owned()
}

async fn follow(client: &Client, task: &str, json: bool) -> Result<()> {
    let events = client.get_events(&format!("{}/events", path(task)), None).await?;
    print_events(client, Some(task), events, json).await
}

/// Prints events until the last one. A broken connection is taken up again after the last event that came.
async fn print_events(client: &Client, task: Option<&str>, mut events: Events, json: bool) -> Result<()> {
    let mut last_id = None;
    let mut resumes = 0;
    loop {
        let broken = match events.next().await {
            Ok(Some(event)) => {
                last_id = event.id.clone().or(last_id);
                if print_event(&event, json)? {
                    return Ok(());
                }
                continue;
            }
            Ok(None) => Failure::new(Exit::Failed, "the stream ended before the task did").into(),
            Err(error) => error,
        };
        let Some(task) = task.filter(|_| resumes < RESUMES_MAX) else {
            return Err(broken);
        };
        resumes += 1;
        anstream::eprintln!("{}", dim(format!("{broken:#}; taking it up again")));
        tokio::time::sleep(RESUME_DELAY * resumes).await;
        match client
            .get_events(&format!("{}/events", path(task)), last_id.as_deref())
            .await
        {
            Ok(resumed) => events = resumed,
            Err(error) if resumes == RESUMES_MAX => return Err(error),
            Err(_) => {}
        }
    }
}

/// Prints one event; true after the last one.
fn print_event(event: &ServerEvent, json: bool) -> Result<bool> {
    let data: Value = serde_json::from_str(&event.data).context("an event holds no JSON")?;
    if json {
        let line = json!({"id": event.id, "event": event.name, "data": data});
        anstream::println!("{line}");
    }
    let value = json!({"event": event.name, "data": data});
    // Events of a newer control plane are shown to programs and otherwise passed over.
    let Ok(parsed) = serde_json::from_value::<Event>(value) else {
        return Ok(false);
    };
    match &parsed {
        Event::Error { code, message, .. } => {
            if !json {
                anstream::println!();
            }
            Err(Failure::new(Exit::of_code(*code), format!("{message} ({})", code.as_str())).into())
        }
        _ if json => Ok(parsed.is_last()),
        _ => {
            print_for_people(&parsed);
            Ok(parsed.is_last())
        }
    }
}

fn print_for_people(event: &Event) {
    let ms = |ms| duration(Duration::from_millis(ms));
    match event {
        Event::Queued {
            position,
            estimated_start_ms,
        } => {
            anstream::eprintln!(
                "{}",
                dim(format!(
                    "queued: {position} before it, about {}",
                    ms(*estimated_start_ms)
                ))
            );
        }
        Event::Started {
            pool_id,
            replica_id,
            node_id,
            level,
        } => {
            let level = level.map_or_else(String::new, |level| format!(", {}", name_of(&level)));
            anstream::eprintln!(
                "{}",
                dim(format!("started: {pool_id}/{replica_id} on {node_id}{level}"))
            );
        }
        Event::Token { t, .. } => {
            anstream::print!("{t}");
            // Nobody reads any more when this fails; the next print says so too.
            let _ = std::io::stdout().flush();
        }
        Event::Output { value } => anstream::println!("{value}"),
        Event::TextReplaced { .. }
        | Event::Tool(_)
        | Event::Files { .. }
        | Event::Workspace { .. }
        | Event::Limit { .. }
        | Event::EgressDenied { .. }
        | Event::Raw { .. } => agent::print_note(event),
        Event::Metrics(_) | Event::Error { .. } => {}
        Event::End(usage) => {
            anstream::println!();
            let text = format!(
                "end: {} tokens in, {} out; waited {}, first token after {}, answered for {}",
                usage.tokens_in,
                usage.tokens_out,
                ms(usage.queue_ms),
                ms(usage.first_token_ms),
                ms(usage.decode_ms)
            );
            anstream::eprintln!("{}", dim(text));
        }
    }
}

/// Reads a length of time as people write it: 500ms, 30s, 10m, 2h.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor_ms = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => {
            return Err(format!(
                "{unit:?} is no unit of time; write 500ms, 30s, 10m or 2h"
            ));
        }
    };
    let number: u64 = number
        .trim()
        .parse()
        .map_err(|_| "write a whole number and a unit, such as 30s".to_owned())?;
    let ms = number
        .checked_mul(factor_ms)
        .ok_or_else(|| "that is too long".to_owned())?;
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let case = |text: &str, expect: Option<u64>| {
            assert_eq!(
                parse_duration(text).ok(),
                expect.map(Duration::from_millis),
                "{text}"
            );
        };
        case("500ms", Some(500));
        case("30s", Some(30_000));
        case("30", Some(30_000));
        case("10m", Some(600_000));
        case("2h", Some(7_200_000));
        case("", None);
        case("-1s", None);
        case("5 weeks", None);
        case("99999999999999999999h", None);
        case("18446744073709551615h", None);
    }

    #[test]
    fn the_last_event_ends_the_printing_and_an_error_is_one() {
        let event = |name: &str, data: &str| ServerEvent {
            name: name.into(),
            data: data.into(),
            id: None,
        };
        let usage = r#"{"tokens_in":1,"tokens_out":1,"queue_ms":0,"first_token_ms":1,"decode_ms":1}"#;
        assert!(print_event(&event("end", usage), true).unwrap());
        assert!(!print_event(&event("token", r#"{"t":"2","i":0}"#), true).unwrap());
        assert!(!print_event(&event("news", r#"{"x":1}"#), true).unwrap());
        let error = r#"{"code":"WORKER_RESET","message":"gone","retriable":true}"#;
        assert_eq!(
            print_event(&event("error", error), true).unwrap_err().to_string(),
            "gone (WORKER_RESET)"
        );
    }

    #[test]
    fn a_task_shows_where_it_was_placed_and_why() {
        let task: TaskView = serde_json::from_value(json!({
            "task_id": "t1", "workload": "chat", "priority": "batch", "model": "demo", "owner": "alice",
            "state": "completed", "created_at": "2026-11-20T16:00:00Z", "correlation_id": "c1",
            "placements": [{"pool_id": "demo", "replica_id": "r0", "node_id": "gpu1", "reasons": ["most free slots"]}],
            "usage": {"tokens_in": 7, "tokens_out": 3, "queue_ms": 1, "first_token_ms": 12, "decode_ms": 40},
        }))
        .unwrap();
        let expect = "\
TASK  STATE      MODEL  CLASS  OWNER  CREATED               WHERE    TOKENS  TOOK
t1    completed  demo   batch  alice  2026-11-20T16:00:00Z  gpu1/r0  7 + 3   52 ms
";
        assert_eq!(
            crate::output::plain(&tasks_table(std::slice::from_ref(&task))),
            expect
        );
        let expect = "\
TASK         t1
state        completed
workload     chat
class        batch
model        demo
owner        alice
created      2026-11-20T16:00:00Z
tokens       7 in, 3 out
waited       1 ms
first token  12 ms
answering    40 ms
placed       demo/r0 on gpu1
             most free slots
correlation  c1
";
        assert_eq!(crate::output::plain(&task_table(&task)), expect);
    }
}
