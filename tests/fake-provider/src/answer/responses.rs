//! OpenAI's responses.

use serde_json::{Value, json};

use super::{Piece, Said, named};
use crate::Seen;

pub(super) fn stream(asked: &Seen, said: &Said, number: u64) -> Vec<Piece> {
    let mut begun = whole(asked, said, number);
    begun["status"] = "in_progress".into();
    begun["output"] = json!([]);
    begun["usage"] = Value::Null;
    let mut events = vec![named(&json!({"type": "response.created", "response": begun}))];
    let done = item(said, number);
    let id = done["id"].clone();
    let mut added = done.clone();
    added["status"] = "in_progress".into();
    if said.call.is_none() {
        added["content"] = json!([]);
    }
    events.push(named(
        &json!({"type": "response.output_item.added", "output_index": 0, "item": added}),
    ));
    events.extend(said.texts(|text| {
        named(&json!({
            "type": "response.output_text.delta", "item_id": id, "output_index": 0, "content_index": 0,
            "delta": text,
        }))
    }));
    if said.breaks(&mut events) {
        return events;
    }
    events.push(named(
        &json!({"type": "response.output_item.done", "output_index": 0, "item": done}),
    ));
    events.push(named(
        &json!({"type": "response.completed", "response": whole(asked, said, number)}),
    ));
    events
}

pub(super) fn whole(asked: &Seen, said: &Said, number: u64) -> Value {
    let tokens_out = said.tokens_out();
    json!({
        "id": format!("resp_fake_{number}"), "object": "response", "created_at": 0, "status": "completed",
        "model": asked.model, "output": [item(said, number)],
        "usage": {
            "input_tokens": 10, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens_out, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 10 + tokens_out,
        },
    })
}

fn item(said: &Said, number: u64) -> Value {
    let Some(call) = &said.call else {
        return json!({
            "type": "message", "id": format!("item_fake_{number}"), "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": said.text(), "annotations": []}],
        });
    };
    let call_id = format!("call_fake_{number}");
    let id = format!("item_fake_{number}");
    match &call.text {
        Some(text) => json!({
            "type": "custom_tool_call", "id": id, "call_id": call_id, "name": call.name, "input": text,
            "status": "completed",
        }),
        None => json!({
            "type": "function_call", "id": id, "call_id": call_id, "name": call.name,
            "arguments": call.arguments.to_string(), "status": "completed",
        }),
    }
}
