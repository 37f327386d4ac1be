//! Anthropic's messages.

use serde_json::{Value, json};

use super::{Piece, Said, named};
use crate::Seen;

const TOKENS_IN: u32 = 10;

pub(super) fn stream(asked: &Seen, said: &Said, number: u64) -> Vec<Piece> {
    let mut start = whole(asked, said, number);
    start["content"] = json!([]);
    start["stop_reason"] = Value::Null;
    start["usage"] = json!({"input_tokens": TOKENS_IN, "output_tokens": 1});
    let mut events = vec![named(&json!({"type": "message_start", "message": start}))];
    let delta = |delta: Value| named(&json!({"type": "content_block_delta", "index": 0, "delta": delta}));
    let block = match &said.call {
        Some(call) => {
            json!({"type": "tool_use", "id": call_id(number), "name": call.name, "input": {}})
        }
        None => json!({"type": "text", "text": ""}),
    };
    events.push(named(
        &json!({"type": "content_block_start", "index": 0, "content_block": block}),
    ));
    events.extend(said.texts(|text| delta(json!({"type": "text_delta", "text": text}))));
    if said.breaks(&mut events) {
        return events;
    }
    if let Some(call) = &said.call {
        events.push(delta(
            json!({"type": "input_json_delta", "partial_json": call.arguments.to_string()}),
        ));
    }
    events.push(named(&json!({"type": "content_block_stop", "index": 0})));
    events.push(named(&json!({
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason(said), "stop_sequence": null},
        "usage": {"output_tokens": said.tokens_out()},
    })));
    events.push(named(&json!({"type": "message_stop"})));
    events
}

pub(super) fn whole(asked: &Seen, said: &Said, number: u64) -> Value {
    let content = match &said.call {
        Some(call) => {
            json!([{"type": "tool_use", "id": call_id(number), "name": call.name, "input": call.arguments}])
        }
        None => json!([{"type": "text", "text": said.text()}]),
    };
    json!({
        "id": format!("msg_fake_{number}"), "type": "message", "role": "assistant", "model": asked.model,
        "content": content, "stop_reason": stop_reason(said), "stop_sequence": null,
        "usage": {"input_tokens": TOKENS_IN, "output_tokens": said.tokens_out()},
    })
}

fn stop_reason(said: &Said) -> &'static str {
    if said.call.is_some() {
        "tool_use"
    } else {
        "end_turn"
    }
}

fn call_id(number: u64) -> String {
    format!("toolu_fake_{number}")
}
