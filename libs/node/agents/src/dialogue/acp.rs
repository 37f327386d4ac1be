//! The Agent Client Protocol, version 1: JSON-RPC 2.0 in lines.
//!
//! ```text
//! initialize ─▶ session/new or session/load ─▶ session/prompt ─▶ session/update ... ─▶ the prompt's answer
//! ```
//!
//! An agent that fetches a stream again says nothing about it: Gemini CLI and opencode wait a second or two and stream
//! the message from its beginning. So a beginning that comes again after a pause replaces the text so far; one that is
//! worded otherwise cannot be told from more of the same message.
//!
//! A conversation that is loaded repeats its past, and not all of it before the answer to `session/load`: Gemini CLI
//! tells the rest after it, one update after the other. So after that answer the agent is asked something that it does not
//! know, and again until an answer comes with nothing of the conversation before it. An agent writes its lines in one
//! queue, and a past that is not over always has its next line in it: an answer without one before it comes after the last.
//!
//! Read by member and not by the protocol's own types: a kind of update that is new must not make the rest of a line
//! unreadable. It offers the agent no files and no terminals of its own, so that everything happens in the sandbox.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::event::{Bounded, FILES_MAX, TITLE_BYTES_MAX, cut};
use super::text::REFETCH_PAUSE_MS;
use super::{AgentEvent, Approval, Common, Outcome, Reaction, Refusal, Speaker, Turn};
use crate::template::{Template, Values, Variable};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Initialize,
    Session {
        loaded: bool,
    },
    /// Nothing: only when its answer comes says something.
    Past,
    SetModel,
    Prompt,
}

/// How many requests may be without an answer; the oldest are forgotten.
const ASKED_MAX: usize = 64;

/// How many tool calls of a turn are remembered.
const TOOLS_MAX: usize = 1024;

/// A method that no agent has: names that begin so are nobody's but ours.
const PAST: &str = "_remuda/past";

/// How an agent wants things to be named.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// A model. None: by its name.
    pub(super) model: Option<Template>,
    /// A conversation that is to be continued. None: by its id.
    pub(super) resumed: Option<Template>,
}

#[derive(Debug, Default)]
pub(super) struct Acp {
    names: Names,
    next_id: u64,
    asked: Vec<(u64, Asked)>,
    /// The session, by the name that the agent knows it by.
    session: Option<String>,
    /// The conversation that is loaded, by its id.
    loading: Option<String>,
    /// There is no session yet, or one that still repeats its past.
    session_asked: bool,
    /// Whether something of its past has come since the last answer.
    past_heard: bool,
    clearing: bool,
    pending: Option<Turn>,
    /// The model that the session has, as far as it is known, by the name that the agent knows it by.
    model: Option<String>,
    /// The model that it was asked to take, without an answer yet.
    model_asked: Option<String>,
    /// The id of the message that comes; not every agent gives one.
    message: Option<String>,
    /// When the last piece of text came.
    text_at_ms: u64,
    /// Tool calls that run, with what they write.
    tools: BTreeMap<String, Call>,
}

#[derive(Debug, Default)]
struct Call {
    told: bool,
    tool: String,
    title: String,
    edits: bool,
    paths: Vec<String>,
    output: String,
}

impl Speaker for Acp {
    fn start(&mut self, _common: &mut Common, reaction: &mut Reaction) {
        let params = json!({"protocolVersion": 1, "clientCapabilities": {}});
        self.ask("initialize", &params, Asked::Initialize, reaction);
    }

    fn prompt(&mut self, common: &mut Common, turn: &Turn, reaction: &mut Reaction) {
        self.tools.clear();
        self.message = None;
        if self.session_asked {
            self.pending = Some(turn.clone());
        } else if self.session.is_some() {
            self.say(common, turn, reaction);
        } else {
            self.pending = Some(turn.clone());
            self.new_session(common, reaction);
        }
    }

    fn interrupt(&mut self, common: &mut Common, reaction: &mut Reaction) -> Result<(), Refusal> {
        if self.pending.take().is_some() {
            common.end_turn(Outcome::Interrupted, reaction);
        } else {
            reaction.write(&json!({
                "jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": self.session},
            }));
        }
        Ok(())
    }

    fn new_conversation(&mut self, common: &mut Common, reaction: &mut Reaction) -> Result<(), Refusal> {
        self.clearing = true;
        self.new_session(common, reaction);
        Ok(())
    }

    fn resume(&mut self, common: &mut Common, session: &str, reaction: &mut Reaction) -> Result<(), Refusal> {
        self.load_session(common, session, reaction);
        Ok(())
    }

    fn value(&mut self, common: &mut Common, now_ms: u64, value: &Value, reaction: &mut Reaction) -> bool {
        match (value["method"].as_str(), value.get("id")) {
            (Some(method), Some(id)) => request(common, method, id, &value["params"], reaction),
            (Some("session/update"), None) => {
                let params = &value["params"];
                let own = self.session.is_some() && params["sessionId"].as_str() == self.session.as_deref();
                if own && !self.session_asked {
                    return self.update(common, now_ms, &params["update"], reaction);
                }
                // The past of a session that is loaded, or what another one still says.
                self.past_heard |= own;
                true
            }
            (None, Some(id)) => self.answer(common, id, value, reaction),
            _ => false,
        }
    }
}

impl Acp {
    pub(super) fn new(names: Names) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }

    fn ask(&mut self, method: &str, params: &Value, asked: Asked, reaction: &mut Reaction) {
        self.next_id += 1;
        if self.asked.len() == ASKED_MAX {
            self.asked.remove(0);
        }
        self.asked.push((self.next_id, asked));
        reaction.write(&json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params}));
    }

    fn new_session(&mut self, common: &Common, reaction: &mut Reaction) {
        self.session = None;
        self.loading = None;
        self.session_asked = true;
        let params = json!({"cwd": common.settings.workspace, "mcpServers": []});
        self.ask("session/new", &params, Asked::Session { loaded: false }, reaction);
    }

    fn load_session(&mut self, common: &Common, session: &str, reaction: &mut Reaction) {
        self.session = None;
        self.loading = Some(session.to_owned());
        self.session_asked = true;
        let name = named(self.names.resumed.as_ref(), Variable::Session, session);
        let params = json!({"sessionId": name, "cwd": common.settings.workspace, "mcpServers": []});
        self.ask("session/load", &params, Asked::Session { loaded: true }, reaction);
    }

    fn say(&mut self, common: &Common, turn: &Turn, reaction: &mut Reaction) {
        let model = turn.model.as_ref().or(common.settings.model.as_ref());
        let model = model.map(|model| named(self.names.model.as_ref(), Variable::Model, model));
        if model.is_some() && model != self.model {
            // The prompt waits for the answer: it must not go to another model.
            self.pending = Some(turn.clone());
            self.model_asked.clone_from(&model);
            let params = json!({"sessionId": self.session, "modelId": model});
            self.ask("session/set_model", &params, Asked::SetModel, reaction);
            return;
        }
        let params = json!({"sessionId": self.session, "prompt": [{"type": "text", "text": turn.prompt}]});
        self.ask("session/prompt", &params, Asked::Prompt, reaction);
        reaction.event(AgentEvent::TurnStarted);
    }

    fn answer(&mut self, common: &mut Common, id: &Value, value: &Value, reaction: &mut Reaction) -> bool {
        let Some(index) = self
            .asked
            .iter()
            .position(|(asked, _)| Some(*asked) == id.as_u64())
        else {
            return false;
        };
        let (_, asked) = self.asked.remove(index);
        let result = &value["result"];
        match (asked, value.get("error")) {
            (Asked::Initialize, None) => match common.settings.session.clone() {
                Some(session) => self.load_session(common, &session, reaction),
                None => self.new_session(common, reaction),
            },
            (Asked::Session { loaded }, None) => self.session_told(common, loaded, result, reaction),
            (Asked::Past, _) => self.past_told(common, reaction),
            (Asked::SetModel, None) => {
                self.model = self.model_asked.take();
                if let Some(turn) = self.pending.take() {
                    self.say(common, &turn, reaction);
                }
            }
            (Asked::Prompt, None) => prompt_answered(common, result, reaction),
            (Asked::SetModel, Some(error)) => {
                self.pending = None;
                reaction.event(AgentEvent::Refused {
                    what: "set_model",
                    message: message(error),
                });
                let outcome = common.failed(Some(400), &message(error), None);
                common.end_turn(outcome, reaction);
            }
            (Asked::Session { loaded }, Some(error)) => {
                self.session_asked = false;
                self.clearing = false;
                self.pending = None;
                self.loading = None;
                reaction.event(AgentEvent::Refused {
                    what: if loaded { "resume" } else { "new_conversation" },
                    message: message(error),
                });
                failed(common, error, reaction);
            }
            (Asked::Initialize | Asked::Prompt, Some(error)) => failed(common, error, reaction),
        }
        true
    }

    /// There is a session; one that is loaded may not have told all of its past.
    fn session_told(&mut self, common: &mut Common, loaded: bool, result: &Value, reaction: &mut Reaction) {
        let told = result["sessionId"].as_str().map(str::to_owned);
        let name = |id: &String| named(self.names.resumed.as_ref(), Variable::Session, id);
        let known = self.loading.as_ref().map(name);
        self.session = Some(told.or(known).unwrap_or_default());
        let at_start = common.model_at_start.as_ref();
        let at_start = at_start.map(|model| named(self.names.model.as_ref(), Variable::Model, model));
        self.model = current_model(result).or(at_start);
        if loaded {
            self.past_heard = false;
            self.ask(PAST, &json!({}), Asked::Past, reaction);
        } else {
            self.session_is(common, reaction);
        }
    }

    fn past_told(&mut self, common: &mut Common, reaction: &mut Reaction) {
        if self.session.is_none() {
            // Another one was asked for meanwhile.
        } else if std::mem::take(&mut self.past_heard) {
            self.ask(PAST, &json!({}), Asked::Past, reaction);
        } else if self.session_asked {
            self.session_is(common, reaction);
        }
    }

    fn session_is(&mut self, common: &mut Common, reaction: &mut Reaction) {
        let id = self.loading.take().or_else(|| self.session.clone());
        self.session_asked = false;
        reaction.event(AgentEvent::Session {
            id: id.unwrap_or_default(),
        });
        if std::mem::take(&mut self.clearing) {
            reaction.event(AgentEvent::Cleared);
        }
        common.ready(reaction);
        if let Some(turn) = self.pending.take() {
            self.say(common, &turn, reaction);
        }
    }

    fn update(&mut self, common: &mut Common, now_ms: u64, update: &Value, reaction: &mut Reaction) -> bool {
        let text = update["content"]["text"].as_str().unwrap_or_default();
        match update["sessionUpdate"].as_str().unwrap_or_default() {
            "agent_message_chunk" if common.in_turn() => {
                let id = update["messageId"].as_str().map(str::to_owned);
                if id != self.message {
                    self.message = id;
                    common.text.next_message();
                }
                if now_ms.saturating_sub(self.text_at_ms) >= REFETCH_PAUSE_MS {
                    common.text.pause();
                }
                self.text_at_ms = now_ms;
                common.text.push_or_begin_again(text, reaction);
            }
            "agent_thought_chunk" if common.in_turn() => reaction.event(AgentEvent::Thinking {
                text: text.to_owned(),
            }),
            "tool_call" | "tool_call_update" if common.in_turn() => {
                // What is said after a tool is another message.
                common.text.next_message();
                self.tool(update, reaction);
            }
            "user_message_chunk"
            | "available_commands_update"
            | "current_mode_update"
            | "config_option_update"
            | "session_info_update"
            | "usage_update"
            | "plan" => {}
            _ => return false,
        }
        true
    }

    fn tool(&mut self, update: &Value, reaction: &mut Reaction) {
        let id = update["toolCallId"].as_str().unwrap_or_default().to_owned();
        if !self.tools.contains_key(&id) && self.tools.len() >= TOOLS_MAX {
            return;
        }
        let call = self.tools.entry(id.clone()).or_default();
        call.learn(update);
        let status = update["status"].as_str().unwrap_or_default();
        let ended = matches!(status, "completed" | "failed");
        // A call that is only announced has no title worth telling yet.
        if !call.told && status != "pending" {
            call.told = true;
            reaction.event(AgentEvent::ToolStarted {
                id: id.clone(),
                tool: call.tool.clone(),
                title: call.title.clone(),
            });
        }
        if ended && let Some(call) = self.tools.remove(&id) {
            reaction.event(AgentEvent::ToolFinished {
                id,
                succeeded: status == "completed",
                output: Bounded::end_of(&call.output),
            });
            if call.edits && status == "completed" && !call.paths.is_empty() {
                reaction.event(AgentEvent::FilesChanged { paths: call.paths });
            }
        }
    }
}

impl Call {
    /// Takes what an update says; it repeats what has not changed, or leaves it out.
    fn learn(&mut self, update: &Value) {
        if let Some(kind) = update["kind"].as_str() {
            self.tool = cut(kind, TITLE_BYTES_MAX);
            self.edits = matches!(kind, "edit" | "delete" | "move");
        }
        if let Some(title) = update["title"].as_str() {
            self.title = cut(title, TITLE_BYTES_MAX);
        }
        let content = update["content"].as_array().map_or(&[][..], Vec::as_slice);
        let diffs = content.iter().filter(|item| item["type"] == "diff");
        let located = update["locations"].as_array().into_iter().flatten();
        let paths = diffs.chain(located).filter_map(|place| place["path"].as_str());
        for path in paths {
            if self.paths.len() < FILES_MAX && !self.paths.iter().any(|known| known == path) {
                self.paths.push(path.to_owned());
            }
        }
        let texts: Vec<&str> = content
            .iter()
            .filter_map(|item| item["content"]["text"].as_str())
            .collect();
        if !texts.is_empty() {
            self.output = Bounded::end_of(&texts.join("\n")).text;
        }
    }
}

/// What the agent calls something. A value that fits in no template is refused by the agent, in its own words.
fn named(template: Option<&Template>, variable: Variable, value: &str) -> String {
    let name = template.map(|template| template.expand(&Values::new().with(variable, value)));
    name.and_then(Result::ok).unwrap_or_else(|| value.to_owned())
}

/// The model that a session has: Gemini CLI says it in one way, opencode in another.
fn current_model(session: &Value) -> Option<String> {
    let options = session["configOptions"].as_array();
    let option = options.and_then(|options| options.iter().find(|option| option["id"] == "model"));
    let told = session["models"]["currentModelId"].as_str();
    let told = told.or_else(|| option?["currentValue"].as_str());
    told.map(str::to_owned)
}

fn prompt_answered(common: &mut Common, result: &Value, reaction: &mut Reaction) {
    let gemini = &result["_meta"]["quota"]["token_count"];
    let count = |standard: &str, other: &str| {
        result["usage"][standard]
            .as_u64()
            .or_else(|| gemini[other].as_u64())
            .unwrap_or(0)
    };
    let (tokens_in, tokens_out) = (
        count("inputTokens", "input_tokens"),
        count("outputTokens", "output_tokens"),
    );
    if common.in_turn() && tokens_in + tokens_out > 0 {
        reaction.event(AgentEvent::Usage {
            tokens_in,
            tokens_out,
        });
    }
    let outcome = match result["stopReason"].as_str().unwrap_or_default() {
        "cancelled" => Outcome::Interrupted,
        "refusal" => common.failed(Some(400), "the model refused", None),
        // A limit of tokens or of requests in a turn: what was produced stands.
        _ => Outcome::Completed,
    };
    common.end_turn(outcome, reaction);
}

fn failed(common: &mut Common, error: &Value, reaction: &mut Reaction) {
    // Gemini CLI gives HTTP statuses as codes; -32000 is the protocol's "authentication required".
    let status = match error["code"].as_i64() {
        Some(-32000) => Some(401),
        Some(code @ 400..=599) => u64::try_from(code).ok(),
        _ => None,
    };
    let outcome = common.failed(status, &message(error), None);
    common.ready(reaction);
    common.end_turn(outcome, reaction);
}

/// The words of an error; some agents put the provider's whole JSON there.
fn message(error: &Value) -> String {
    let said = error["message"].as_str().unwrap_or("refused");
    let inner = serde_json::from_str::<Value>(said).ok();
    let inner = inner
        .as_ref()
        .and_then(|value| value["error"]["message"].as_str());
    let detail = error["data"]["details"].as_str();
    match (inner, detail) {
        (Some(inner), _) => cut(inner, TITLE_BYTES_MAX),
        (None, Some(detail)) => cut(&format!("{said}: {detail}"), TITLE_BYTES_MAX),
        (None, None) => cut(said, TITLE_BYTES_MAX),
    }
}

/// Answers what the agent asks: permissions by policy, anything else by a refusal.
fn request(common: &Common, method: &str, id: &Value, params: &Value, reaction: &mut Reaction) -> bool {
    if method != "session/request_permission" {
        reaction.write(&json!({
            "jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "not supported"},
        }));
        return false;
    }
    let kinds = match common.settings.approval {
        Approval::Allow => ["allow_always", "allow_once"],
        Approval::Deny => ["reject_once", "reject_always"],
    };
    let options = params["options"].as_array().map_or(&[][..], Vec::as_slice);
    let option = kinds
        .iter()
        .find_map(|kind| options.iter().find(|option| option["kind"] == *kind));
    let outcome = match option {
        Some(option) => json!({"outcome": "selected", "optionId": option["optionId"]}),
        None => json!({"outcome": "cancelled"}),
    };
    reaction.write(&json!({"jsonrpc": "2.0", "id": id, "result": {"outcome": outcome}}));
    reaction.event(AgentEvent::Ask {
        tool: cut(
            params["toolCall"]["title"].as_str().unwrap_or_default(),
            TITLE_BYTES_MAX,
        ),
        allowed: option.is_some() && common.settings.approval == Approval::Allow,
    });
    true
}

#[cfg(test)]
mod tests;
