//! Claude Code's `stream-json`, in both directions.
//!
//! Text comes as stream events and then once more as a whole block in an `assistant` line; after a stream that broke it
//! may come as a whole block only. A turn is judged by `is_error` of its `result`: the subtype says `success` also when
//! the login was refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::event::{Bounded, TITLE_BYTES_MAX, cut};
use super::failure::until;
use super::{AgentEvent, Approval, Common, Outcome, Reaction, Refusal, Speaker, Turn};
use crate::profile::Level;

const INITIALIZE: &str = "initialize";
const INTERRUPT: &str = "interrupt";
const SET_MODEL: &str = "set_model";

/// How many tool calls of a turn are remembered.
const TOOLS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Claude {
    session: String,
    /// The model that the CLI was told last.
    model: Option<String>,
    /// `/clear` messages without an answer.
    clearing: u32,
    /// The provider's id of the message that is streamed.
    streaming: String,
    /// The text blocks of that message: index to the number of our message.
    blocks: BTreeMap<u64, u32>,
    /// The block that is streamed, when it is text.
    open_text: bool,
    /// Files that running tool calls will write, by call.
    writes: BTreeMap<String, String>,
    /// When a limit that was told ends.
    retry_after_ms: Option<u64>,
}

impl Speaker for Claude {
    fn start(&mut self, common: &mut Common, reaction: &mut Reaction) {
        self.model.clone_from(&common.model_at_start);
        match common.level {
            Level::Hot => reaction.write(&control(INITIALIZE, &json!({"subtype": "initialize"}))),
            // The prompt may lie on its input before it reads.
            Level::OneShot => common.ready(reaction),
        }
    }

    fn prompt(&mut self, common: &mut Common, turn: &Turn, reaction: &mut Reaction) {
        let model = turn.model.as_ref().or(common.settings.model.as_ref());
        if model.is_some() && model != self.model.as_ref() {
            self.model = model.cloned();
            reaction.write(&control(
                SET_MODEL,
                &json!({"subtype": "set_model", "model": model}),
            ));
        }
        self.streaming.clear();
        self.blocks.clear();
        self.writes.clear();
        self.retry_after_ms = None;
        reaction.write(&user(&turn.prompt));
    }

    fn interrupt(&mut self, _common: &mut Common, reaction: &mut Reaction) -> Result<(), Refusal> {
        reaction.write(&control(INTERRUPT, &json!({"subtype": "interrupt"})));
        Ok(())
    }

    fn new_conversation(&mut self, _common: &mut Common, reaction: &mut Reaction) -> Result<(), Refusal> {
        self.clearing += 1;
        reaction.write(&user("/clear"));
        Ok(())
    }

    fn value(&mut self, common: &mut Common, now_ms: u64, value: &Value, reaction: &mut Reaction) -> bool {
        // A sub-agent's lines are not the answer.
        let own = value["parent_tool_use_id"].is_null();
        match value["type"].as_str().unwrap_or_default() {
            "system" => self.system(common, value, reaction),
            "stream_event" if own => self.stream_event(common, &value["event"], value, reaction),
            "assistant" if common.in_turn() => {
                self.assistant(common, &value["message"], own, reaction);
                true
            }
            "user" if common.in_turn() => {
                self.tool_results(&value["message"], reaction);
                true
            }
            "result" if self.clearing > 0 || common.in_turn() => {
                self.result(common, value, reaction);
                true
            }
            "control_response" => self.control_response(common, &value["response"], reaction),
            "control_request" => permission(common, value, reaction),
            "rate_limit_event" => {
                self.rate_limit(now_ms, &value["rate_limit_info"], reaction);
                true
            }
            "stream_event" | "conversation_reset" | "control_cancel_request" => true,
            _ => false,
        }
    }
}

impl Claude {
    fn system(&mut self, common: &mut Common, value: &Value, reaction: &mut Reaction) -> bool {
        match value["subtype"].as_str().unwrap_or_default() {
            "init" => {
                let session = value["session_id"].as_str().unwrap_or_default();
                if !session.is_empty() && session != self.session {
                    session.clone_into(&mut self.session);
                    reaction.event(AgentEvent::Session {
                        id: session.to_owned(),
                    });
                }
                if common.in_turn() && self.clearing == 0 {
                    reaction.event(AgentEvent::TurnStarted);
                }
                true
            }
            "api_retry" if common.in_turn() => {
                self.abandon(common, 0, reaction);
                let message = value["error"].as_str().unwrap_or("unknown");
                if value["error_status"] == 429 {
                    self.retry_after_ms = value["retry_delay_ms"].as_u64();
                    reaction.event(AgentEvent::Limit {
                        retry_after_ms: self.retry_after_ms,
                        message: cut(message, TITLE_BYTES_MAX),
                    });
                } else {
                    reaction.event(AgentEvent::Retry {
                        attempt: attempt(&value["attempt"]),
                        message: cut(message, TITLE_BYTES_MAX),
                    });
                }
                true
            }
            "status" | "background_tasks_changed" => true,
            _ => false,
        }
    }

    fn stream_event(
        &mut self,
        common: &mut Common,
        event: &Value,
        line: &Value,
        reaction: &mut Reaction,
    ) -> bool {
        if !common.in_turn() {
            return false;
        }
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => {
                self.streaming = event["message"]["id"].as_str().unwrap_or_default().to_owned();
                self.blocks.clear();
                self.open_text = false;
            }
            "content_block_start" => {
                self.open_text = event["content_block"]["type"] == "text";
                if self.open_text {
                    common.text.next_message();
                    self.blocks
                        .insert(event["index"].as_u64().unwrap_or(0), common.text.message());
                    let text = event["content_block"]["text"].as_str().unwrap_or_default();
                    common.text.push(text, reaction);
                }
            }
            "content_block_delta" => {
                let delta = &event["delta"];
                if let Some(text) = delta["text"].as_str() {
                    common.text.push(text, reaction);
                } else if let Some(text) = delta["thinking"].as_str() {
                    reaction.event(AgentEvent::Thinking {
                        text: text.to_owned(),
                    });
                }
            }
            "message_stop" => {
                if let Some(from) = line["abandoned_blocks"]["from_block_index"].as_u64() {
                    self.abandon(common, from, reaction);
                }
                self.blocks.clear();
            }
            "content_block_stop" | "message_delta" | "ping" => {}
            _ => return false,
        }
        true
    }

    /// The blocks of the streamed message from this one on are void: they will be fetched again.
    fn abandon(&mut self, common: &mut Common, from_block: u64, reaction: &mut Reaction) {
        for message in self.blocks.split_off(&from_block).into_values() {
            common.text.void(message, reaction);
        }
    }

    fn assistant(&mut self, common: &mut Common, message: &Value, own: bool, reaction: &mut Reaction) {
        let streamed = message["id"].as_str() == Some(self.streaming.as_str()) && !self.streaming.is_empty();
        // What the CLI itself says about a failure comes again in the result.
        let synthetic = message["model"] == "<synthetic>";
        for block in blocks(message) {
            match block["type"].as_str().unwrap_or_default() {
                "text" if own && !synthetic => {
                    let text = block["text"].as_str().unwrap_or_default();
                    if streamed && self.open_text {
                        common.text.settle(text, reaction);
                        self.open_text = false;
                    } else {
                        common.text.next_message();
                        common.text.push(text, reaction);
                    }
                }
                "tool_use" => self.tool_use(block, reaction),
                _ => {}
            }
        }
    }

    fn tool_use(&mut self, block: &Value, reaction: &mut Reaction) {
        let id = block["id"].as_str().unwrap_or_default().to_owned();
        let input = &block["input"];
        let file = ["file_path", "notebook_path"]
            .iter()
            .find_map(|name| input[*name].as_str());
        let tool = block["name"].as_str().unwrap_or_default().to_owned();
        let writes = matches!(tool.as_str(), "Write" | "Edit" | "MultiEdit" | "NotebookEdit");
        if let Some(file) = file
            && writes
            && self.writes.len() < TOOLS_MAX
        {
            self.writes.insert(id.clone(), file.to_owned());
        }
        let title = (input["command"].as_str().or(file))
            .or_else(|| input["description"].as_str())
            .map_or_else(|| input.to_string(), str::to_owned);
        reaction.event(AgentEvent::ToolStarted {
            id,
            tool,
            title: cut(&title, TITLE_BYTES_MAX),
        });
    }

    fn tool_results(&mut self, message: &Value, reaction: &mut Reaction) {
        for block in blocks(message).filter(|block| block["type"] == "tool_result") {
            let id = block["tool_use_id"].as_str().unwrap_or_default().to_owned();
            let succeeded = block["is_error"] != true;
            let output = match &block["content"] {
                Value::String(text) => Bounded::end_of(text),
                content => Bounded::end_of(&joined(content)),
            };
            let written = self.writes.remove(&id);
            reaction.event(AgentEvent::ToolFinished {
                id,
                succeeded,
                output,
            });
            if let Some(path) = written.filter(|_| succeeded) {
                reaction.event(AgentEvent::FilesChanged { paths: vec![path] });
            }
        }
    }

    fn result(&mut self, common: &mut Common, value: &Value, reaction: &mut Reaction) {
        if self.clearing > 0 {
            self.clearing -= 1;
            reaction.event(AgentEvent::Cleared);
            return;
        }
        let said = value["result"].as_str().unwrap_or_default();
        let usage = &value["usage"];
        let count = |name: &str| usage[name].as_u64().unwrap_or(0);
        reaction.event(AgentEvent::Usage {
            tokens_in: count("input_tokens")
                + count("cache_creation_input_tokens")
                + count("cache_read_input_tokens"),
            tokens_out: count("output_tokens"),
        });
        if value["is_error"] == true {
            let errors = joined(&value["errors"]);
            let message = if said.is_empty() { &errors } else { said };
            let status = value["api_error_status"].as_u64();
            let outcome = common.failed(status, message, self.retry_after_ms);
            common.end_turn(outcome, reaction);
        } else {
            if !common.text.any() {
                common.text.push(said, reaction);
            }
            common.end_turn(Outcome::Completed, reaction);
        }
    }

    fn control_response(&mut self, common: &mut Common, response: &Value, reaction: &mut Reaction) -> bool {
        let refused = response["subtype"] == "error";
        match response["request_id"].as_str().unwrap_or_default() {
            // A CLI that refuses it takes prompts nevertheless.
            INITIALIZE => common.ready(reaction),
            INTERRUPT => {}
            SET_MODEL if refused => reaction.event(AgentEvent::Refused {
                what: SET_MODEL,
                message: cut(response["error"].as_str().unwrap_or_default(), TITLE_BYTES_MAX),
            }),
            SET_MODEL => {}
            _ => return false,
        }
        true
    }

    fn rate_limit(&mut self, now_ms: u64, info: &Value, reaction: &mut Reaction) {
        if info["status"] != "rejected" {
            return;
        }
        self.retry_after_ms = info["resetsAt"].as_u64().map(|at_s| until(now_ms, at_s));
        let kind = info["rateLimitType"].as_str().unwrap_or("unknown");
        reaction.event(AgentEvent::Limit {
            retry_after_ms: self.retry_after_ms,
            message: format!("the provider's limit is reached ({})", cut(kind, TITLE_BYTES_MAX)),
        });
    }
}

/// Answers a request for permission; any other request is refused.
fn permission(common: &Common, value: &Value, reaction: &mut Reaction) -> bool {
    let request = &value["request"];
    let id = &value["request_id"];
    if request["subtype"] != "can_use_tool" {
        reaction.write(&json!({"type": "control_response", "response": {
            "subtype": "error", "request_id": id, "error": "not supported",
        }}));
        return false;
    }
    let allowed = common.settings.approval == Approval::Allow;
    let answer = if allowed {
        json!({"behavior": "allow", "updatedInput": request["input"]})
    } else {
        json!({"behavior": "deny", "message": "not allowed here"})
    };
    reaction.write(&json!({"type": "control_response", "response": {
        "subtype": "success", "request_id": id, "response": answer,
    }}));
    reaction.event(AgentEvent::Ask {
        tool: cut(request["tool_name"].as_str().unwrap_or_default(), TITLE_BYTES_MAX),
        allowed,
    });
    true
}

fn control(id: &str, request: &Value) -> Value {
    json!({"type": "control_request", "request_id": id, "request": request})
}

fn user(text: &str) -> Value {
    json!({"type": "user", "message": {"role": "user", "content": [{"type": "text", "text": text}]}})
}

fn blocks(message: &Value) -> impl Iterator<Item = &Value> {
    message["content"].as_array().into_iter().flatten()
}

/// The texts of a list of strings or of blocks with text.
fn joined(value: &Value) -> String {
    let texts: Vec<&str> = value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().or_else(|| item["text"].as_str()))
        .collect();
    texts.join("\n")
}

fn attempt(value: &Value) -> u32 {
    value
        .as_u64()
        .and_then(|attempt| attempt.try_into().ok())
        .unwrap_or(0)
}
