//! `remuda run --agent`: one task of a coding agent, its text on standard output and everything else on standard error.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};
use task_api::{ErrorCode, Event, TaskId, TaskRequest, ToolEvent, Usage, WorkspaceId, WorkspaceRequest};

use crate::client::{Client, Events};
use crate::commands::workspace::Workspace;
use crate::failure::{Exit, Failure};
use crate::output::{dim, duration, name_of, print_json};

/// How long a cancel may take when nobody waits for the task any more.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// How much of a tool's input and output is shown to people, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// What an agent is asked.
#[derive(Clone, Debug)]
pub(crate) struct AgentQuestion<'a> {
    pub(crate) agent: &'a str,
    pub(crate) prompt: &'a str,
    pub(crate) model: Option<&'a str>,
    pub(crate) effort: Option<&'static str>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) workspace: Option<&'a Workspace>,
}

/// What has come of it, for programs.
#[derive(Debug, Default, Serialize)]
struct AgentAnswer {
    task_id: String,
    agent: String,
    text: String,
    tools: Vec<Value>,
    files: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace: Option<WorkspaceEnd>,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// What has become of the workspace.
#[derive(Debug, Serialize)]
struct WorkspaceEnd {
    workspace_id: WorkspaceId,
    changed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Asks, and prints what comes. A task that was left is cancelled: nobody would read its answer.
pub(crate) async fn ask(client: &Client, question: &AgentQuestion<'_>, json: bool) -> Result<()> {
    let workspace = match question.workspace {
        Some(workspace) => {
            let given = workspace.give(client, question.agent, json);
            Some(super::interruptible(given).await?)
        }
        None => None,
    };
    let request = request(question, workspace.as_ref())?;
    let id = request.task_id.clone().unwrap_or_else(TaskId::generate);
    let mut events = client.post_events("/v2/tasks", &request).await?;
    let outcome = tokio::select! {
        outcome = read(&mut events, question, &id, json) => outcome,
        () = super::told_to_end() => Err(Failure::new(Exit::Interrupted, "interrupted").into()),
    };
    match outcome {
        Ok(told) => Ok(told?),
        Err(error) => {
            let (path, body) = (format!("/v2/tasks/{id}/cancel"), json!({}));
            let cancelled = client.post::<Value>(&path, &body);
            // If that does not come through either, the task ends by itself.
            let _ = tokio::time::timeout(CANCEL_TIMEOUT, cancelled).await;
            Err(error)
        }
    }
}

fn request(question: &AgentQuestion<'_>, workspace: Option<&WorkspaceRequest>) -> Result<TaskRequest> {
    let body = json!({
        "task_id": TaskId::generate(),
        "workload": "agent",
        "agent": question.agent,
        "prompt": question.prompt,
        "model": question.model,
        "effort": question.effort,
        "workspace": workspace,
        "deadline_ms": question.timeout.map(|timeout| timeout.as_millis()),
    });
    let request: TaskRequest = serde_json::from_value(body)
        .map_err(|error| Failure::new(Exit::Usage, format!("this is no task: {error}")))?;
    request
        .validate()
        .map_err(|error| Failure::new(Exit::Usage, error.message.into_owned()))?;
    Ok(request)
}

/// Reads to the task's own end, which the inner result is.
async fn read(
    events: &mut Events,
    question: &AgentQuestion<'_>,
    id: &TaskId,
    json: bool,
) -> Result<Result<(), Failure>> {
    let mut answer = AgentAnswer {
        task_id: id.to_string(),
        agent: question.agent.to_owned(),
        ..AgentAnswer::default()
    };
    while let Some(event) = events.next().await? {
        let data: Value = serde_json::from_str(&event.data).context("an event holds no JSON")?;
        // Events of a newer control plane are passed over.
        let Ok(event) = serde_json::from_value::<Event>(json!({"event": event.name, "data": data})) else {
            continue;
        };
        match &event {
            Event::Token { t, .. } => {
                answer.text.push_str(t);
                if !json {
                    print_text(t);
                }
            }
            Event::TextReplaced { t } => {
                answer.text.clone_from(t);
                if !json {
                    anstream::println!();
                    print_note(&event);
                    print_text(t);
                }
            }
            Event::End(usage) => {
                answer.usage = Some(*usage);
                return finish(&answer, json).map(Ok);
            }
            Event::Error { code, message, .. } => {
                if !json && !answer.text.is_empty() {
                    anstream::println!();
                }
                return Ok(Err(failed(question.agent, *code, message)));
            }
            other => {
                keep(&mut answer, other);
                // What has become of the workspace stands below the answer.
                if !json && !matches!(other, Event::Workspace { .. }) {
                    print_note(other);
                }
            }
        }
    }
    Err(Failure::new(Exit::Failed, "the answer broke off before its end").into())
}

fn keep(answer: &mut AgentAnswer, event: &Event) {
    match event {
        Event::Started { level, .. } => answer.level = level.as_ref().map(name_of),
        Event::Tool(tool) => answer.tools.push(json!(tool)),
        Event::Files { paths } => answer.files.extend(paths.iter().cloned()),
        Event::Workspace {
            workspace_id,
            changed,
            problem,
        } => {
            answer.workspace = Some(WorkspaceEnd {
                workspace_id: workspace_id.clone(),
                changed: *changed,
                problem: problem.clone(),
            });
        }
        _ => {}
    }
}

fn finish(answer: &AgentAnswer, json: bool) -> Result<()> {
    if json {
        return print_json(answer);
    }
    anstream::println!();
    if let Some(workspace) = &answer.workspace {
        let note = workspace_note(workspace.changed, workspace.problem.as_deref());
        anstream::eprintln!("{}", dim(note));
        if workspace.changed > 0 {
            for command in ["diff", "files", "download"] {
                let line = format!("  remuda tasks {command} {}", answer.task_id);
                anstream::eprintln!("{}", dim(line));
            }
        }
    }
    Ok(())
}

fn workspace_note(changed: u64, problem: Option<&str>) -> String {
    match (problem, changed) {
        (Some(problem), _) => problem.to_owned(),
        (None, 0) => "no file of the workspace has changed".to_owned(),
        (None, 1) => "1 file of the workspace has changed".to_owned(),
        (None, count) => format!("{count} files of the workspace have changed"),
    }
}

/// What to do about it depends on what it is.
fn failed(agent: &str, code: ErrorCode, message: &str) -> Failure {
    let failure = Failure::new(Exit::of_code(code), format!("{message} ({})", code.as_str()));
    match code {
        ErrorCode::Unauthenticated => failure.hint(format!(
            "log in with `remuda login {agent}`, or use a model of your own: --model local:demo"
        )),
        ErrorCode::DecodeTimeout | ErrorCode::DeadlineUnmet => failure.hint("give it longer with --timeout"),
        _ => failure,
    }
}

fn print_text(text: &str) {
    anstream::print!("{text}");
    // Nobody reads any more when this fails; the next print says so too.
    let _ = std::io::stdout().flush();
}

/// Everything that is no text, for people, on standard error.
pub(crate) fn print_note(event: &Event) {
    let note = match event {
        Event::Queued { position, .. } => format!("queued: {position} before it"),
        Event::Started { node_id, level, .. } => match level {
            Some(level) => format!("started on {node_id} ({})", name_of(level)),
            None => format!("started on {node_id}"),
        },
        Event::TextReplaced { .. } => "the answer begins anew:".to_owned(),
        Event::Tool(ToolEvent::Started { name, input, .. }) => format!("{name} {}", short(input)),
        Event::Tool(ToolEvent::Finished { ok, output, .. }) => {
            let mark = if *ok { "done" } else { "failed" };
            format!("  {mark}: {}", short(output))
        }
        Event::Files { paths } => format!("changed: {}", paths.join(", ")),
        Event::Limit {
            message,
            retry_after_ms,
        } => match retry_after_ms {
            Some(ms) => format!(
                "limit: {message} (again in {})",
                duration(Duration::from_millis(*ms))
            ),
            None => format!("limit: {message}"),
        },
        Event::Workspace { changed, problem, .. } => workspace_note(*changed, problem.as_deref()),
        Event::EgressDenied { host, port, reason } => format!("not reached: {host}:{port}: {reason}"),
        Event::Raw { source, line } => format!("{source}: {line}"),
        Event::Token { .. }
        | Event::Output { .. }
        | Event::Metrics(_)
        | Event::End(_)
        | Event::Error { .. } => return,
    };
    anstream::eprintln!("{}", dim(note));
}

/// One line, and not too long.
fn short(text: &str) -> String {
    let flat: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN_CHARS_MAX + 1)
        .collect();
    match flat.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &flat[..at]),
        None => flat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_becomes_an_agents_task() {
        let question = AgentQuestion {
            agent: "claude",
            prompt: "3*67",
            model: Some("local:demo"),
            effort: Some("low"),
            timeout: Some(Duration::from_secs(30)),
            workspace: None,
        };
        let request = request(&question, None).unwrap();
        assert_eq!(request.agent.as_deref(), Some("claude"));
        assert_eq!(
            (request.local_model(), request.deadline_ms),
            (Some("demo"), Some(30_000))
        );
        let wrong = AgentQuestion {
            agent: "no agent",
            ..question
        };
        assert!(super::request(&wrong, None).is_err());
    }

    #[test]
    fn a_note_is_one_line_and_short() {
        assert_eq!(short("a\nb"), "a b");
        let long = short(&"ä".repeat(1000));
        assert_eq!(long.chars().count(), SHOWN_CHARS_MAX + 1);
        assert!(long.ends_with('…'));
    }
}
