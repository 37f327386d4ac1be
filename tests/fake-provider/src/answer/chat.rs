//! OpenAI's chat completions.

use serde_json::{Value, json};

use super::{Piece, Said, data};
use crate::Seen;

pub(super) fn stream(asked: &Seen, said: &Said, number: u64) -> Vec<Piece> {
    let chunk = |delta: Value, finish: Value| {
        data(&json!({
            "id": format!("chatcmpl-fake-{number}"), "object": "chat.completion.chunk", "created": 0,
            "model": asked.model, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }))
    };
    let mut events = vec![chunk(json!({"role": "assistant", "content": ""}), Value::Null)];
    events.extend(said.texts(|text| chunk(json!({"content": text}), Value::Null)));
    if said.breaks(&mut events) {
        return events;
    }
    if let Some(call) = call(said, number) {
        let mut call = call;
        call["index"] = 0.into();
        events.push(chunk(json!({"tool_calls": [call]}), Value::Null));
    }
    events.push(chunk(json!({}), finish(said)));
    events.push(data(&json!({
        "id": format!("chatcmpl-fake-{number}"), "object": "chat.completion.chunk", "created": 0,
        "model": asked.model, "choices": [], "usage": usage(said),
    })));
    events.push(Piece::Bytes("data: [DONE]\n\n".to_owned()));
    events
}

pub(super) fn whole(asked: &Seen, said: &Said, number: u64) -> Value {
    let mut message = json!({"role": "assistant", "content": said.text()});
    if let Some(call) = call(said, number) {
        message["tool_calls"] = json!([call]);
    }
    json!({
        "id": format!("chatcmpl-fake-{number}"), "object": "chat.completion", "created": 0, "model": asked.model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish(said)}], "usage": usage(said),
    })
}

fn call(said: &Said, number: u64) -> Option<Value> {
    let call = said.call.as_ref()?;
    Some(json!({
        "id": format!("call_fake_{number}"), "type": "function",
        "function": {"name": call.name, "arguments": call.arguments.to_string()},
    }))
}

fn finish(said: &Said) -> Value {
    if said.call.is_some() { "tool_calls" } else { "stop" }.into()
}

fn usage(said: &Said) -> Value {
    json!({"prompt_tokens": 10, "completion_tokens": said.tokens_out(), "total_tokens": 10 + said.tokens_out()})
}
