//! `codex app-server`: requests, answers and notifications as JSON lines without a version member.
//!
//! ```text
//! initialize ─▶ initialized, thread/start or thread/resume ─▶ turn/start ─▶ notifications ─▶ turn/completed
//! ```
//!
//! A stream that broke is fetched again as a new item; the text of the item that was not completed is void then.

use serde_json::{Value, json};

use super::event::{Bounded, FILES_MAX, TITLE_BYTES_MAX, cut};
use super::failure::until;
use super::{AgentEvent, Approval, Common, Outcome, Reaction, Refusal, Speaker, Turn};

/// What an answer is an answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Initialize,
    Thread { resumed: bool },
    Turn,
    Interrupt,
}

/// How many requests may be without an answer; the oldest are forgotten.
const ASKED_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct CodexServer {
    next_id: u64,
    asked: Vec<(u64, Asked)>,
    thread: Option<String>,
    /// The thread for the next prompt is asked for.
    thread_asked: bool,
    clearing: bool,
    /// A prompt that waits for its thread.
    pending: Option<Turn>,
    turn: Option<String>,
    interrupt_when_begun: bool,
    /// The item whose text is streamed.
    item: String,
    tokens_in: u64,
    tokens_out: u64,
    limit: Option<u64>,
}

impl Speaker for CodexServer {
    fn start(&mut self, _common: &mut Common, reaction: &mut Reaction) {
        let client = json!({"name": "remuda", "title": "Remuda", "version": env!("CARGO_PKG_VERSION")});
        self.ask(
            "initialize",
            &json!({"clientInfo": client}),
            Asked::Initialize,
            reaction,
        );
    }

    fn prompt(&mut self, common: &mut Common, turn: &Turn, reaction: &mut Reaction) {
        self.turn = None;
        self.interrupt_when_begun = false;
        self.item.clear();
        (self.tokens_in, self.tokens_out) = (0, 0);
        if self.thread_asked {
            self.pending = Some(turn.clone());
        } else if self.thread.is_some() {
            self.say(common, turn, reaction);
        } else {
            self.pending = Some(turn.clone());
            self.start_thread(common, reaction);
        }
    }

    fn interrupt(&mut self, _common: &mut Common, reaction: &mut Reaction) -> Result<(), Refusal> {
        match (&self.thread, &self.turn) {
            (Some(thread), Some(turn)) => {
                let ids = json!({"threadId": thread, "turnId": turn});
                self.ask("turn/interrupt", &ids, Asked::Interrupt, reaction);
            }
            // Its id is needed, and comes with the answer.
            _ => self.interrupt_when_begun = true,
        }
        Ok(())
    }

    fn new_conversation(&mut self, common: &mut Common, reaction: &mut Reaction) -> Result<(), Refusal> {
        self.clearing = true;
        self.start_thread(common, reaction);
        Ok(())
    }

    fn resume(&mut self, common: &mut Common, session: &str, reaction: &mut Reaction) -> Result<(), Refusal> {
        self.resume_thread(common, session, reaction);
        Ok(())
    }

    fn value(&mut self, common: &mut Common, now_ms: u64, value: &Value, reaction: &mut Reaction) -> bool {
        match (value["method"].as_str(), value.get("id")) {
            (Some(method), Some(id)) => request(common, method, id, reaction),
            (Some(method), None) => self.notification(common, now_ms, method, &value["params"], reaction),
            (None, Some(id)) => self.answer(common, id, value, reaction),
            (None, None) => false,
        }
    }
}

impl CodexServer {
    fn ask(&mut self, method: &str, params: &Value, asked: Asked, reaction: &mut Reaction) {
        self.next_id += 1;
        if self.asked.len() == ASKED_MAX {
            self.asked.remove(0);
        }
        self.asked.push((self.next_id, asked));
        reaction.write(&json!({"id": self.next_id, "method": method, "params": params}));
    }

    fn start_thread(&mut self, common: &Common, reaction: &mut Reaction) {
        let mut params = json!({"cwd": common.settings.workspace});
        if let Some(model) = &common.settings.model {
            params["model"] = model.as_str().into();
        }
        self.thread = None;
        self.thread_asked = true;
        self.ask(
            "thread/start",
            &params,
            Asked::Thread { resumed: false },
            reaction,
        );
    }

    fn resume_thread(&mut self, common: &Common, session: &str, reaction: &mut Reaction) {
        let params = json!({"threadId": session, "cwd": common.settings.workspace, "excludeTurns": true});
        self.thread = None;
        self.thread_asked = true;
        self.ask(
            "thread/resume",
            &params,
            Asked::Thread { resumed: true },
            reaction,
        );
    }

    fn say(&mut self, common: &Common, turn: &Turn, reaction: &mut Reaction) {
        let mut params = json!({"threadId": self.thread, "input": [{"type": "text", "text": turn.prompt}]});
        if let Some(model) = turn.model.as_ref().or(common.settings.model.as_ref()) {
            params["model"] = model.as_str().into();
        }
        if let Some(effort) = &turn.effort {
            params["effort"] = effort.as_str().into();
        }
        self.ask("turn/start", &params, Asked::Turn, reaction);
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
        let error = value.get("error").map(|error| {
            let message = error["message"].as_str().unwrap_or("refused");
            cut(message, TITLE_BYTES_MAX)
        });
        match (asked, error) {
            (Asked::Initialize, None) => {
                reaction.write(&json!({"method": "initialized"}));
                match common.settings.session.clone() {
                    Some(session) => self.resume_thread(common, &session, reaction),
                    None => self.start_thread(common, reaction),
                }
            }
            (Asked::Thread { .. }, None) => self.thread_is(common, &result["thread"], reaction),
            (Asked::Turn, None) => self.turn_is(common, &result["turn"], reaction),
            (Asked::Interrupt, None) => {}
            (Asked::Thread { resumed }, Some(message)) => {
                self.no_thread(common, resumed, message, reaction);
            }
            (Asked::Initialize | Asked::Turn, Some(message)) => {
                let outcome = common.failed(None, &message, None);
                common.ready(reaction);
                common.end_turn(outcome, reaction);
            }
            (Asked::Interrupt, Some(message)) => reaction.event(AgentEvent::Refused {
                what: "interrupt",
                message,
            }),
        }
        true
    }

    fn thread_is(&mut self, common: &mut Common, thread: &Value, reaction: &mut Reaction) {
        let id = thread["id"].as_str().unwrap_or_default().to_owned();
        self.thread = Some(id.clone());
        self.thread_asked = false;
        reaction.event(AgentEvent::Session { id });
        if std::mem::take(&mut self.clearing) {
            reaction.event(AgentEvent::Cleared);
        }
        common.ready(reaction);
        if let Some(turn) = self.pending.take() {
            self.say(common, &turn, reaction);
        }
    }

    fn no_thread(&mut self, common: &mut Common, resumed: bool, message: String, reaction: &mut Reaction) {
        self.thread_asked = false;
        self.clearing = false;
        self.pending = None;
        let outcome = common.failed(None, &message, None);
        reaction.event(AgentEvent::Refused {
            what: if resumed { "resume" } else { "new_conversation" },
            message,
        });
        common.ready(reaction);
        common.end_turn(outcome, reaction);
    }

    /// The turn has its id. Comes as an answer and as a notification.
    fn turn_is(&mut self, common: &mut Common, turn: &Value, reaction: &mut Reaction) {
        if !common.in_turn() || self.turn.is_some() {
            return;
        }
        self.turn = turn["id"].as_str().map(str::to_owned);
        reaction.event(AgentEvent::TurnStarted);
        if std::mem::take(&mut self.interrupt_when_begun) {
            // It can only be refused for a missing id, and the id is there.
            let _ = self.interrupt(common, reaction);
        }
    }

    fn notification(
        &mut self,
        common: &mut Common,
        now_ms: u64,
        method: &str,
        params: &Value,
        reaction: &mut Reaction,
    ) -> bool {
        // Another thread's turn (a sub-agent's) is not the answer.
        let thread = params["threadId"].as_str();
        let own = thread.is_none() || thread == self.thread.as_deref();
        match method {
            "turn/started" if own => self.turn_is(common, &params["turn"], reaction),
            "item/started" if own && common.in_turn() => self.item_started(common, &params["item"], reaction),
            "item/completed" if own && common.in_turn() => {
                self.item_completed(common, &params["item"], reaction);
            }
            "item/agentMessage/delta" if own && common.in_turn() => {
                self.in_item(common, params["itemId"].as_str().unwrap_or_default());
                let delta = params["delta"].as_str().unwrap_or_default();
                common.text.push(delta, reaction);
            }
            "item/reasoning/summaryTextDelta" | "item/reasoning/textDelta" if own && common.in_turn() => {
                let text = params["delta"].as_str().unwrap_or_default().to_owned();
                reaction.event(AgentEvent::Thinking { text });
            }
            "thread/tokenUsage/updated" if own && common.in_turn() => {
                let last = &params["tokenUsage"]["last"];
                self.tokens_in += last["inputTokens"].as_u64().unwrap_or(0);
                self.tokens_out += last["outputTokens"].as_u64().unwrap_or(0);
            }
            "account/rateLimits/updated" => self.limit = reset(now_ms, &params["rateLimits"]),
            "error" if own => self.error(common, params, reaction),
            "turn/completed" if own => self.turn_completed(common, &params["turn"], reaction),
            "warning" | "configWarning" | "deprecationNotice" => return false,
            "remoteControl/status/changed"
            | "item/commandExecution/outputDelta"
            | "item/fileChange/outputDelta" => {}
            // The many notices of a thread say nothing about its turn.
            _ => return method.starts_with("thread/") || method.starts_with("turn/"),
        }
        true
    }

    /// What comes next belongs to this item.
    fn in_item(&mut self, common: &mut Common, id: &str) {
        if self.item != id {
            id.clone_into(&mut self.item);
            common.text.next_message();
        }
    }

    fn item_started(&mut self, common: &mut Common, item: &Value, reaction: &mut Reaction) {
        let id = item["id"].as_str().unwrap_or_default();
        match item["type"].as_str().unwrap_or_default() {
            "agentMessage" => self.in_item(common, id),
            "commandExecution" => started(id, "shell", item["command"].as_str(), reaction),
            "fileChange" => started(id, "edit", changed(item).first().map(String::as_str), reaction),
            "mcpToolCall" => started(
                id,
                item["tool"].as_str().unwrap_or("mcp"),
                item["server"].as_str(),
                reaction,
            ),
            "webSearch" => started(id, "web_search", item["query"].as_str(), reaction),
            _ => {}
        }
    }

    fn item_completed(&mut self, common: &mut Common, item: &Value, reaction: &mut Reaction) {
        let id = item["id"].as_str().unwrap_or_default();
        let succeeded = item["status"] == "completed";
        match item["type"].as_str().unwrap_or_default() {
            "agentMessage" => {
                self.in_item(common, id);
                let text = item["text"].as_str().unwrap_or_default();
                common.text.settle(text, reaction);
                self.item.clear();
                common.text.next_message();
            }
            "commandExecution" => {
                let output = item["aggregatedOutput"].as_str().unwrap_or_default();
                finished(
                    id,
                    succeeded && item["exitCode"] == 0,
                    Bounded::end_of(output),
                    reaction,
                );
            }
            "fileChange" => {
                finished(id, succeeded, Bounded::default(), reaction);
                let paths = changed(item);
                if succeeded && !paths.is_empty() {
                    reaction.event(AgentEvent::FilesChanged { paths });
                }
            }
            "mcpToolCall" => {
                let output = Bounded::end_of(&item["result"].to_string());
                finished(id, succeeded, output, reaction);
            }
            "webSearch" => finished(id, true, Bounded::default(), reaction),
            _ => {}
        }
    }

    fn error(&mut self, common: &mut Common, params: &Value, reaction: &mut Reaction) {
        let error = &params["error"];
        if params["willRetry"] != true || !common.in_turn() {
            // The end of the turn says it again.
            return;
        }
        if !self.item.is_empty() {
            self.item.clear();
            common.text.withdraw(reaction);
        }
        let message = error["message"].as_str().unwrap_or_default();
        let detail = error["additionalDetails"].as_str().unwrap_or(message);
        if http_status(error) == Some(429) {
            reaction.event(AgentEvent::Limit {
                retry_after_ms: self.limit,
                message: cut(detail, TITLE_BYTES_MAX),
            });
        } else {
            // "Reconnecting... 2/5"
            let attempt = message
                .split(|character: char| !character.is_ascii_digit())
                .find_map(|digits| digits.parse().ok());
            reaction.event(AgentEvent::Retry {
                attempt: attempt.unwrap_or(0),
                message: cut(detail, TITLE_BYTES_MAX),
            });
        }
    }

    fn turn_completed(&mut self, common: &mut Common, turn: &Value, reaction: &mut Reaction) {
        let ours = self.turn.is_none() || self.turn.as_deref() == turn["id"].as_str();
        if !common.in_turn() || !ours {
            return;
        }
        reaction.event(AgentEvent::Usage {
            tokens_in: self.tokens_in,
            tokens_out: self.tokens_out,
        });
        let outcome = match turn["status"].as_str().unwrap_or_default() {
            "completed" => Outcome::Completed,
            "interrupted" => Outcome::Interrupted,
            _ => {
                let error = &turn["error"];
                let status = http_status(error).or_else(|| kind_status(error));
                let message = error["message"].as_str().unwrap_or_default();
                common.failed(status, message, self.limit)
            }
        };
        self.turn = None;
        common.end_turn(outcome, reaction);
    }
}

fn started(id: &str, tool: &str, title: Option<&str>, reaction: &mut Reaction) {
    reaction.event(AgentEvent::ToolStarted {
        id: id.to_owned(),
        tool: cut(tool, TITLE_BYTES_MAX),
        title: cut(title.unwrap_or_default(), TITLE_BYTES_MAX),
    });
}

fn finished(id: &str, succeeded: bool, output: Bounded, reaction: &mut Reaction) {
    reaction.event(AgentEvent::ToolFinished {
        id: id.to_owned(),
        succeeded,
        output,
    });
}

/// The paths of a file change.
fn changed(item: &Value) -> Vec<String> {
    let changes = item["changes"].as_array().into_iter().flatten();
    changes
        .filter_map(|change| change["path"].as_str().map(str::to_owned))
        .take(FILES_MAX)
        .collect()
}

/// The HTTP status in any of the kinds of error that have one.
fn http_status(error: &Value) -> Option<u64> {
    let kinds = error["codexErrorInfo"].as_object()?;
    kinds.values().find_map(|kind| kind["httpStatusCode"].as_u64())
}

/// The HTTP status that a kind of error without one stands for.
fn kind_status(error: &Value) -> Option<u64> {
    match error["codexErrorInfo"].as_str()? {
        "unauthorized" => Some(401),
        "usageLimitExceeded" => Some(429),
        "badRequest" | "contextWindowExceeded" => Some(400),
        "serverOverloaded" | "internalServerError" => Some(503),
        _ => None,
    }
}

/// How long until the last of the limits that are reached ends.
fn reset(now_ms: u64, limits: &Value) -> Option<u64> {
    [&limits["primary"], &limits["secondary"]]
        .into_iter()
        .filter(|window| window["usedPercent"].as_f64().is_some_and(|used| used >= 100.0))
        .filter_map(|window| window["resetsAt"].as_u64())
        .map(|at_s| until(now_ms, at_s))
        .max()
}

/// Answers what the CLI asks: permissions by policy, anything else by a refusal.
fn request(common: &Common, method: &str, id: &Value, reaction: &mut Reaction) -> bool {
    let allowed = common.settings.approval == Approval::Allow;
    let decision = match method {
        "item/commandExecution/requestApproval" | "item/fileChange/requestApproval" => {
            if allowed {
                "accept"
            } else {
                "decline"
            }
        }
        "execCommandApproval" | "applyPatchApproval" => {
            if allowed {
                "approved"
            } else {
                "denied"
            }
        }
        _ => {
            reaction.write(&json!({"id": id, "error": {"code": -32601, "message": "not supported"}}));
            return false;
        }
    };
    reaction.write(&json!({"id": id, "result": {"decision": decision}}));
    reaction.event(AgentEvent::Ask {
        tool: method.to_owned(),
        allowed,
    });
    true
}
