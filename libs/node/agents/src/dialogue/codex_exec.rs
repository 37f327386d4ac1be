//! `codex exec --json`: one prompt, and messages that come whole.

use serde_json::Value;

use super::event::{Bounded, FILES_MAX, TITLE_BYTES_MAX, cut};
use super::{AgentEvent, Common, Outcome, Reaction, Speaker, Turn};

#[derive(Debug, Default)]
pub(super) struct CodexExec;

impl Speaker for CodexExec {
    fn start(&mut self, common: &mut Common, reaction: &mut Reaction) {
        common.ready(reaction);
    }

    fn prompt(&mut self, _common: &mut Common, turn: &Turn, reaction: &mut Reaction) {
        reaction.lines.push(turn.prompt.clone());
    }

    fn value(&mut self, common: &mut Common, _now_ms: u64, value: &Value, reaction: &mut Reaction) -> bool {
        if !common.in_turn() {
            return false;
        }
        match value["type"].as_str().unwrap_or_default() {
            "thread.started" => reaction.event(AgentEvent::Session {
                id: value["thread_id"].as_str().unwrap_or_default().to_owned(),
            }),
            "turn.started" => reaction.event(AgentEvent::TurnStarted),
            "item.started" => item_started(&value["item"], reaction),
            "item.updated" => {}
            "item.completed" => return item_completed(common, &value["item"], reaction),
            "turn.completed" => {
                let usage = &value["usage"];
                reaction.event(AgentEvent::Usage {
                    tokens_in: usage["input_tokens"].as_u64().unwrap_or(0),
                    tokens_out: usage["output_tokens"].as_u64().unwrap_or(0),
                });
                common.end_turn(Outcome::Completed, reaction);
            }
            "turn.failed" => {
                let message = value["error"]["message"].as_str().unwrap_or_default();
                let outcome = common.failed(status(message), message, None);
                common.end_turn(outcome, reaction);
            }
            "error" => retry(value["message"].as_str().unwrap_or_default(), reaction),
            _ => return false,
        }
        true
    }
}

fn item_started(item: &Value, reaction: &mut Reaction) {
    let (tool, title) = match item["type"].as_str().unwrap_or_default() {
        "command_execution" => ("shell", item["command"].as_str()),
        "file_change" => ("edit", item["changes"][0]["path"].as_str()),
        "mcp_tool_call" => (item["tool"].as_str().unwrap_or("mcp"), item["server"].as_str()),
        "web_search" => ("web_search", item["query"].as_str()),
        _ => return,
    };
    reaction.event(AgentEvent::ToolStarted {
        id: item["id"].as_str().unwrap_or_default().to_owned(),
        tool: cut(tool, TITLE_BYTES_MAX),
        title: cut(title.unwrap_or_default(), TITLE_BYTES_MAX),
    });
}

fn item_completed(common: &mut Common, item: &Value, reaction: &mut Reaction) -> bool {
    let id = item["id"].as_str().unwrap_or_default().to_owned();
    let succeeded = item["status"] == "completed";
    match item["type"].as_str().unwrap_or_default() {
        "agent_message" => {
            common.text.next_message();
            common
                .text
                .push(item["text"].as_str().unwrap_or_default(), reaction);
        }
        "reasoning" => reaction.event(AgentEvent::Thinking {
            text: item["text"].as_str().unwrap_or_default().to_owned(),
        }),
        "command_execution" => reaction.event(AgentEvent::ToolFinished {
            id,
            succeeded: succeeded && item["exit_code"] == 0,
            output: Bounded::end_of(item["aggregated_output"].as_str().unwrap_or_default()),
        }),
        "file_change" => {
            reaction.event(AgentEvent::ToolFinished {
                id,
                succeeded,
                output: Bounded::default(),
            });
            let changes = item["changes"].as_array().into_iter().flatten();
            let paths: Vec<String> = changes
                .filter_map(|change| change["path"].as_str().map(str::to_owned))
                .take(FILES_MAX)
                .collect();
            if succeeded && !paths.is_empty() {
                reaction.event(AgentEvent::FilesChanged { paths });
            }
        }
        "mcp_tool_call" | "web_search" => reaction.event(AgentEvent::ToolFinished {
            id,
            succeeded,
            output: Bounded::default(),
        }),
        _ => return false,
    }
    true
}

/// "Reconnecting... 2/5 (why)"; an error that is no such thing is said again at the end of the turn.
fn retry(message: &str, reaction: &mut Reaction) {
    let Some(rest) = message.strip_prefix("Reconnecting... ") else {
        return;
    };
    let attempt = rest.split('/').next().and_then(|attempt| attempt.parse().ok());
    let message = cut(rest, TITLE_BYTES_MAX);
    reaction.event(if status(rest) == Some(429) {
        AgentEvent::Limit {
            retry_after_ms: None,
            message,
        }
    } else {
        AgentEvent::Retry {
            attempt: attempt.unwrap_or(0),
            message,
        }
    });
}

/// The HTTP status in "... status: 429 Too Many Requests" or "unexpected status 401 Unauthorized: ...".
fn status(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("status")?;
    let rest = rest.trim_start_matches([':', ' ']);
    rest.get(..3)?.parse().ok()
}
