//! Gemini CLI's `stream-json`: one prompt. It can end with exit code 0 after a `result` of status `error`.
//! As over the Agent Client Protocol, a stream that is fetched again begins again without a word.

use std::collections::BTreeMap;

use serde_json::Value;

use super::event::{Bounded, TITLE_BYTES_MAX, cut};
use super::text::REFETCH_PAUSE_MS;
use super::{AgentEvent, Common, Outcome, Reaction, Speaker, Turn};

/// How many tool calls of a turn are remembered.
const TOOLS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct GeminiStream {
    /// Files that running tool calls will write, by call.
    writes: BTreeMap<String, String>,
    /// When the last piece of text came.
    text_at_ms: u64,
}

impl Speaker for GeminiStream {
    fn start(&mut self, common: &mut Common, reaction: &mut Reaction) {
        common.ready(reaction);
    }

    fn prompt(&mut self, _common: &mut Common, turn: &Turn, reaction: &mut Reaction) {
        reaction.lines.push(turn.prompt.clone());
    }

    fn value(&mut self, common: &mut Common, now_ms: u64, value: &Value, reaction: &mut Reaction) -> bool {
        if !common.in_turn() {
            return false;
        }
        match value["type"].as_str().unwrap_or_default() {
            "init" => {
                reaction.event(AgentEvent::Session {
                    id: value["session_id"].as_str().unwrap_or_default().to_owned(),
                });
                reaction.event(AgentEvent::TurnStarted);
            }
            "message" if value["role"] == "assistant" => {
                let text = value["content"].as_str().unwrap_or_default();
                if value["delta"] != true {
                    common.text.next_message();
                }
                if now_ms.saturating_sub(self.text_at_ms) >= REFETCH_PAUSE_MS {
                    common.text.pause();
                }
                self.text_at_ms = now_ms;
                common.text.push_or_begin_again(text, reaction);
            }
            "message" => {}
            "tool_use" => self.tool_use(common, value, reaction),
            "tool_result" => self.tool_result(value, reaction),
            "error" => reaction.event(AgentEvent::Retry {
                attempt: 0,
                message: cut(value["message"].as_str().unwrap_or_default(), TITLE_BYTES_MAX),
            }),
            "result" => result(common, value, reaction),
            _ => return false,
        }
        true
    }
}

impl GeminiStream {
    fn tool_use(&mut self, common: &mut Common, value: &Value, reaction: &mut Reaction) {
        // What is said after a tool is another message.
        common.text.next_message();
        let id = value["tool_id"].as_str().unwrap_or_default().to_owned();
        let tool = value["tool_name"].as_str().unwrap_or_default();
        let parameters = &value["parameters"];
        let file = parameters["file_path"].as_str();
        if let Some(file) = file
            && matches!(tool, "write_file" | "replace")
            && self.writes.len() < TOOLS_MAX
        {
            self.writes.insert(id.clone(), file.to_owned());
        }
        let title = parameters["command"]
            .as_str()
            .or(file)
            .map_or_else(|| parameters.to_string(), str::to_owned);
        reaction.event(AgentEvent::ToolStarted {
            id,
            tool: cut(tool, TITLE_BYTES_MAX),
            title: cut(&title, TITLE_BYTES_MAX),
        });
    }

    fn tool_result(&mut self, value: &Value, reaction: &mut Reaction) {
        let id = value["tool_id"].as_str().unwrap_or_default().to_owned();
        let succeeded = value["status"] == "success";
        let written = self.writes.remove(&id);
        let output = value["output"]
            .as_str()
            .or_else(|| value["error"]["message"].as_str());
        reaction.event(AgentEvent::ToolFinished {
            id,
            succeeded,
            output: Bounded::end_of(output.unwrap_or_default()),
        });
        if let Some(path) = written.filter(|_| succeeded) {
            reaction.event(AgentEvent::FilesChanged { paths: vec![path] });
        }
    }
}

fn result(common: &mut Common, value: &Value, reaction: &mut Reaction) {
    let stats = &value["stats"];
    reaction.event(AgentEvent::Usage {
        tokens_in: stats["input_tokens"].as_u64().unwrap_or(0),
        tokens_out: stats["output_tokens"].as_u64().unwrap_or(0),
    });
    let outcome = if value["status"] == "success" {
        Outcome::Completed
    } else {
        let said = value["error"]["message"].as_str().unwrap_or_default();
        let (status, message) = provider_error(said);
        common.failed(status, &message, None)
    };
    common.end_turn(outcome, reaction);
}

/// The status and the words in `[API Error: {"error":{"code":401,"message":"..."}}]`.
fn provider_error(said: &str) -> (Option<u64>, String) {
    let inner = said
        .strip_prefix("[API Error: ")
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(said);
    match serde_json::from_str::<Value>(inner) {
        Ok(value) if value["error"].is_object() => (
            value["error"]["code"].as_u64(),
            value["error"]["message"].as_str().unwrap_or(inner).to_owned(),
        ),
        _ => (None, inner.to_owned()),
    }
}
