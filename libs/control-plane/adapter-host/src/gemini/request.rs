//! From generateContent's requests to chat completions'.

use std::collections::VecDeque;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use task_api::{ApiError, ErrorCode};

use super::GeminiCall;

/// Writes the request of chat completions that means the same as `body`.
pub fn chat_request(call: &GeminiCall<'_>, body: &[u8]) -> Result<Vec<u8>, ApiError> {
    let request: Request<'_> = serde_json::from_slice(body)
        .map_err(|error| refused(format!("the body cannot be read: {error}"), ""))?;
    let config = request.generation_config.unwrap_or_default();
    if config.candidate_count.is_some_and(|count| count != 1) {
        return Err(refused(
            "there is one candidate only",
            "generationConfig.candidateCount",
        ));
    }
    if !config.response_modalities.iter().all(|kind| kind == "TEXT") {
        return Err(refused(
            "models here answer in text",
            "generationConfig.responseModalities",
        ));
    }
    let (tool_choice, allowed) = tool_choice(request.tool_config);
    let chat = Chat {
        model: call.model,
        messages: messages(request.system_instruction, request.contents)?,
        stream: call.stream,
        stream_options: call.stream.then(|| json!({"include_usage": true})),
        tools: tools(request.tools, allowed.as_deref()),
        tool_choice,
        response_format: response_format(&config),
        temperature: config.temperature,
        top_p: config.top_p,
        // Python's clients write it as a fraction, and engines want a whole number.
        top_k: config.top_k.and_then(|top_k| format!("{top_k:.0}").parse().ok()),
        max_tokens: config.max_output_tokens,
        stop: config.stop_sequences,
        seed: config.seed,
        presence_penalty: config.presence_penalty,
        frequency_penalty: config.frequency_penalty,
    };
    Ok(serde_json::to_vec(&chat).expect("what was read as JSON can be written as JSON"))
}

fn refused(message: impl Into<String>, param: impl Into<String>) -> ApiError {
    let error = ApiError::new(ErrorCode::InvalidParams, message.into());
    match param.into() {
        param if param.is_empty() => error,
        param => error.with_param(param),
    }
}

/// What generateContent is asked. Names may be written in either of the ways that Google takes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Request<'b> {
    #[serde(borrow)]
    contents: Vec<Content<'b>>,
    #[serde(borrow, alias = "system_instruction")]
    system_instruction: Option<Content<'b>>,
    #[serde(borrow, default)]
    tools: Vec<Tool<'b>>,
    #[serde(alias = "tool_config")]
    tool_config: Option<ToolConfig>,
    #[serde(alias = "generation_config")]
    generation_config: Option<Config>,
    // These mean nothing to an engine.
    #[serde(rename = "model")]
    _model: Option<IgnoredAny>,
    #[serde(rename = "safetySettings", alias = "safety_settings")]
    _safety_settings: Option<IgnoredAny>,
    #[serde(rename = "labels")]
    _labels: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content<'b> {
    #[serde(borrow, default)]
    parts: Vec<Part<'b>>,
    role: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Part<'b> {
    text: Option<String>,
    #[serde(default)]
    thought: bool,
    #[serde(alias = "inline_data")]
    inline_data: Option<Blob>,
    #[serde(borrow, alias = "function_call")]
    function_call: Option<FunctionCall<'b>>,
    #[serde(alias = "function_response")]
    function_response: Option<FunctionResponse>,
    #[serde(rename = "thoughtSignature", alias = "thought_signature")]
    _thought_signature: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Blob {
    #[serde(alias = "mime_type")]
    mime_type: String,
    data: String,
}

#[derive(Deserialize)]
struct FunctionCall<'b> {
    id: Option<String>,
    name: String,
    #[serde(borrow)]
    args: Option<&'b RawValue>,
}

#[derive(Deserialize)]
struct FunctionResponse {
    id: Option<String>,
    name: String,
    #[serde(default)]
    response: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tool<'b> {
    #[serde(borrow, default, alias = "function_declarations")]
    function_declarations: Vec<Function<'b>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Function<'b> {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    #[serde(borrow, alias = "parameters_json_schema")]
    parameters_json_schema: Option<&'b RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ToolConfig {
    #[serde(alias = "function_calling_config")]
    function_calling_config: Option<Calling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Calling {
    mode: Option<String>,
    #[serde(alias = "allowed_function_names")]
    allowed_function_names: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Config {
    temperature: Option<f64>,
    #[serde(alias = "top_p")]
    top_p: Option<f64>,
    #[serde(alias = "top_k")]
    top_k: Option<f64>,
    #[serde(alias = "max_output_tokens")]
    max_output_tokens: Option<u64>,
    #[serde(default, alias = "stop_sequences")]
    stop_sequences: Vec<String>,
    seed: Option<i64>,
    #[serde(alias = "presence_penalty")]
    presence_penalty: Option<f64>,
    #[serde(alias = "frequency_penalty")]
    frequency_penalty: Option<f64>,
    #[serde(alias = "candidate_count")]
    candidate_count: Option<u64>,
    #[serde(default, alias = "response_modalities")]
    response_modalities: Vec<String>,
    #[serde(alias = "response_mime_type")]
    response_mime_type: Option<String>,
    #[serde(alias = "response_schema")]
    response_schema: Option<Value>,
    #[serde(alias = "response_json_schema")]
    response_json_schema: Option<Value>,
    #[serde(rename = "thinkingConfig", alias = "thinking_config")]
    _thinking_config: Option<IgnoredAny>,
    #[serde(rename = "mediaResolution", alias = "media_resolution")]
    _media_resolution: Option<IgnoredAny>,
}

/// What chat completions are asked.
#[derive(Serialize)]
struct Chat<'c> {
    model: &'c str,
    messages: Vec<Message>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<ToolOfChat<'c>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f64>,
}

#[derive(Serialize)]
struct ToolOfChat<'c> {
    #[serde(rename = "type")]
    kind: &'static str,
    function: FunctionOfChat<'c>,
}

#[derive(Serialize)]
struct FunctionOfChat<'c> {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    parameters: Schema<'c>,
}

/// A schema as it came, with its members in their order, or put into JSON's words.
#[derive(Serialize)]
#[serde(untagged)]
enum Schema<'c> {
    AsItCame(&'c RawValue),
    Translated(Value),
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
}

impl Message {
    fn new(role: &'static str, content: impl Into<Value>) -> Self {
        Self {
            role,
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

/// The calls that have no result yet, by name: not every client gives them ids, and then their order counts.
#[derive(Default)]
struct Calls {
    open: VecDeque<(String, String)>,
    count: usize,
}

impl Calls {
    fn begin(&mut self, name: &str, id: Option<String>) -> String {
        self.count += 1;
        let id = id.unwrap_or_else(|| format!("call_{}", self.count));
        self.open.push_back((name.to_owned(), id.clone()));
        id
    }

    fn end(&mut self, result: &FunctionResponse, at: &str) -> Result<String, ApiError> {
        let found = self.open.iter().position(|(name, id)| match &result.id {
            Some(wanted) => wanted == id,
            None => *name == result.name,
        });
        let open = found.and_then(|index| self.open.remove(index));
        open.map(|(_, id)| id).ok_or_else(|| {
            let message = format!("{} has no call that this could be the result of", result.name);
            refused(message, format!("{at}.functionResponse"))
        })
    }
}

fn messages(system: Option<Content<'_>>, contents: Vec<Content<'_>>) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::with_capacity(contents.len() + 1);
    if let Some(system) = system {
        let texts: Vec<String> = system.parts.into_iter().filter_map(|part| part.text).collect();
        messages.push(Message::new("system", texts.join("\n\n")));
    }
    let mut calls = Calls::default();
    for (index, content) in contents.into_iter().enumerate() {
        let at = format!("contents[{index}]");
        match content.role.as_deref().unwrap_or("user") {
            "model" => messages.push(said(content.parts, &mut calls, &at)?),
            "user" | "function" | "tool" => asked(content.parts, &mut calls, &at, &mut messages)?,
            role => {
                return Err(refused(
                    format!("there is no role {role:?}, only user and model"),
                    format!("{at}.role"),
                ));
            }
        }
    }
    Ok(messages)
}

/// What the model has said: text and calls. What it thought is its own.
fn said(parts: Vec<Part<'_>>, calls: &mut Calls, at: &str) -> Result<Message, ApiError> {
    let mut text = String::new();
    let mut tool_calls = Vec::new();
    for (index, part) in parts.into_iter().enumerate() {
        if part.inline_data.is_some() || part.function_response.is_some() {
            return Err(refused(
                "a model says text and calls only",
                format!("{at}.parts[{index}]"),
            ));
        }
        if let Some(call) = part.function_call {
            let id = calls.begin(&call.name, call.id);
            let arguments = call.args.map_or("{}", RawValue::get);
            tool_calls.push(json!({
                "id": id, "type": "function", "function": {"name": call.name, "arguments": arguments},
            }));
        }
        if !part.thought {
            text.push_str(&part.text.unwrap_or_default());
        }
    }
    Ok(Message {
        tool_calls,
        ..Message::new("assistant", text)
    })
}

/// What the model is told: results of its calls, each a message of its own, then what the user says.
fn asked(
    parts: Vec<Part<'_>>,
    calls: &mut Calls,
    at: &str,
    messages: &mut Vec<Message>,
) -> Result<(), ApiError> {
    let mut pieces = Vec::new();
    for (index, part) in parts.into_iter().enumerate() {
        let at = format!("{at}.parts[{index}]");
        if part.function_call.is_some() {
            return Err(refused("a user calls nothing", format!("{at}.functionCall")));
        }
        if let Some(result) = part.function_response {
            messages.push(Message {
                tool_call_id: Some(calls.end(&result, &at)?),
                ..Message::new("tool", result_text(result.response))
            });
        }
        if let Some(blob) = part.inline_data {
            pieces.push(media(&blob, &at)?);
        }
        if let Some(text) = part.text {
            pieces.push(json!({"type": "text", "text": text}));
        }
    }
    match &mut pieces[..] {
        [] => {}
        [only] if only["type"] == "text" => messages.push(Message::new("user", only["text"].take())),
        _ => messages.push(Message::new("user", pieces)),
    }
    Ok(())
}

/// Google's documents call a result's text `output`; anything else is told as it is.
fn result_text(mut response: Map<String, Value>) -> String {
    match (response.len(), response.get_mut("output")) {
        (1, Some(Value::String(output))) => std::mem::take(output),
        _ => Value::Object(response).to_string(),
    }
}

fn media(blob: &Blob, at: &str) -> Result<Value, ApiError> {
    let Blob { mime_type, data } = blob;
    match mime_type.split_once('/') {
        Some(("image", _)) => {
            Ok(json!({"type": "image_url", "image_url": {"url": format!("data:{mime_type};base64,{data}")}}))
        }
        Some(("audio", format)) => {
            let format = format.trim_start_matches("x-");
            let format = if format == "mpeg" { "mp3" } else { format };
            Ok(json!({"type": "input_audio", "input_audio": {"data": data, "format": format}}))
        }
        _ => Err(refused(
            format!("{mime_type} cannot be told to a model here, only pictures and sound"),
            format!("{at}.inlineData"),
        )),
    }
}

fn tools<'b>(tools: Vec<Tool<'b>>, allowed: Option<&[String]>) -> Vec<ToolOfChat<'b>> {
    let functions = tools.into_iter().flat_map(|tool| tool.function_declarations);
    let may_be_called =
        |function: &Function<'b>| allowed.is_none_or(|allowed| allowed.contains(&function.name));
    let tool = |function: Function<'b>| ToolOfChat {
        kind: "function",
        function: FunctionOfChat {
            name: function.name,
            description: function.description,
            parameters: match (function.parameters_json_schema, function.parameters) {
                (Some(schema), _) => Schema::AsItCame(schema),
                (None, Some(schema)) => Schema::Translated(json_schema(schema)),
                (None, None) => Schema::Translated(json!({"type": "object", "properties": {}})),
            },
        },
    };
    functions.filter(may_be_called).map(tool).collect()
}

/// Google's schemas are JSON's but for the names of types, which are in capitals.
fn json_schema(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                match member {
                    Value::String(kind) if name == "type" => *kind = kind.to_ascii_lowercase(),
                    other => *other = json_schema(other.take()),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = json_schema(item.take());
            }
        }
        _ => {}
    }
    schema
}

/// Whether tools are to be called, and which of them may.
fn tool_choice(config: Option<ToolConfig>) -> (Option<Value>, Option<Vec<String>>) {
    let Some(calling) = config.and_then(|config| config.function_calling_config) else {
        return (None, None);
    };
    let choice = match calling.mode.as_deref() {
        Some("NONE") => Some("none".into()),
        Some("ANY") => Some("required".into()),
        _ => None,
    };
    let allowed = calling.allowed_function_names.filter(|names| !names.is_empty());
    (choice, allowed)
}

fn response_format(config: &Config) -> Option<Value> {
    let translated = || config.response_schema.clone().map(json_schema);
    match config.response_json_schema.clone().or_else(translated) {
        Some(schema) => {
            Some(json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}))
        }
        None if config.response_mime_type.as_deref() == Some("application/json") => {
            Some(json!({"type": "json_object"}))
        }
        None => None,
    }
}
