//! What is asked for: which dialect, which model, which conversation.

use serde_json::Value;

/// A wire format that a CLI speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Anthropic's messages.
    Messages,
    /// OpenAI's responses.
    Responses,
    /// OpenAI's chat completions.
    ChatCompletions,
    /// Gemini's generateContent.
    GenerateContent,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who: `user`, `assistant`, `model`, `tool`, ...
    pub role: String,
    /// All texts in it, tool results included.
    pub text: String,
}

/// One model request as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How it was asked.
    pub dialect: Dialect,
    /// The model asked for.
    pub model: String,
    /// The key that came with it, whichever header carried it.
    pub key: Option<String>,
    /// Whether a stream is wanted.
    pub stream: bool,
    /// The names of the tools offered. None: a side request.
    pub tools: Vec<String>,
    /// The conversation so far, without system prompts.
    pub conversation: Vec<Message>,
    /// The whole body.
    pub body: Value,
}

impl Seen {
    /// Reads a request by its path. None: no model request.
    pub(crate) fn read(path: &str, query: &str, key: Option<String>, body: Value) -> Option<Self> {
        let path = path.trim_end_matches('/');
        let streamed = body["stream"].as_bool().unwrap_or(false);
        let (dialect, model, stream) = if path.ends_with("/messages") {
            (Dialect::Messages, text(&body["model"]), streamed)
        } else if path.ends_with("/responses") {
            (Dialect::Responses, text(&body["model"]), streamed)
        } else if path.ends_with("/chat/completions") {
            (Dialect::ChatCompletions, text(&body["model"]), streamed)
        } else {
            let (_, call) = path.rsplit_once("/models/")?;
            let (model, verb) = call.split_once(':')?;
            if !matches!(verb, "generateContent" | "streamGenerateContent") {
                return None;
            }
            let stream = verb == "streamGenerateContent" || query.contains("alt=sse");
            (Dialect::GenerateContent, model.to_owned(), stream)
        };
        Some(Self {
            dialect,
            model,
            key,
            stream,
            tools: tools(&body),
            conversation: conversation(dialect, &body),
            body,
        })
    }

    /// The first of `names` that is offered as a tool.
    pub(crate) fn tool(&self, names: &[&str]) -> Option<&str> {
        names
            .iter()
            .find_map(|name| self.tools.iter().find(|tool| tool == name))
            .map(String::as_str)
    }

    /// All texts of one role, joined.
    pub fn said_by(&self, role: &str) -> String {
        let texts: Vec<&str> = self
            .conversation
            .iter()
            .filter(|message| message.role == role)
            .map(|message| message.text.as_str())
            .collect();
        texts.join("\n")
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The names of all tools, in any of the shapes.
fn tools(body: &Value) -> Vec<String> {
    let list = body["tools"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .flat_map(|tool| {
            let declared = tool["functionDeclarations"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            let plain = [&tool["name"], &tool["function"]["name"]].into_iter();
            plain.chain(declared.iter().map(|declared| &declared["name"]))
        })
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

fn conversation(dialect: Dialect, body: &Value) -> Vec<Message> {
    let list = match dialect {
        Dialect::Messages | Dialect::ChatCompletions => &body["messages"],
        Dialect::Responses => &body["input"],
        Dialect::GenerateContent => &body["contents"],
    };
    if let Some(input) = list.as_str() {
        return vec![Message {
            role: "user".to_owned(),
            text: input.to_owned(),
        }];
    }
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .filter(|message| !matches!(message["role"].as_str(), Some("system" | "developer")))
        .map(|message| {
            let mut parts = Vec::new();
            collect_text(message, &mut parts);
            Message {
                role: message["role"].as_str().unwrap_or("tool").to_owned(),
                text: parts.join("\n"),
            }
        })
        .collect()
}

/// Every text below `value`: the members that carry text in any of the dialects.
fn collect_text(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_text(item, into)),
        Value::Object(members) => {
            for name in [
                "text",
                "content",
                "parts",
                "output",
                "functionResponse",
                "response",
            ] {
                match members.get(name) {
                    Some(Value::String(text)) => into.push(text.clone()),
                    Some(inner) => collect_text(inner, into),
                    None => {}
                }
            }
        }
        _ => {}
    }
}
