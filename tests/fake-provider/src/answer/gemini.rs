//! Gemini's generateContent.

use serde_json::{Value, json};

use super::{Piece, Said, data};
use crate::Seen;

pub(super) fn stream(asked: &Seen, said: &Said, number: u64) -> Vec<Piece> {
    let mut events = said.texts(|text| data(&chunk(asked, &json!([{"text": text}]), None, number)));
    if said.breaks(&mut events) {
        return events;
    }
    let mut last = match &said.call {
        Some(call) => json!([{"functionCall": {"name": call.name, "args": call.arguments}}]),
        None => json!([{"text": ""}]),
    };
    if !said.pieces.is_empty() && said.call.is_none() {
        // The end may come with a text of its own, which is empty here.
        last = json!([{"text": ""}]);
    }
    events.push(data(&chunk(asked, &last, Some(said), number)));
    events
}

pub(super) fn whole(asked: &Seen, said: &Said, number: u64) -> Value {
    let parts = match &said.call {
        Some(call) => json!([{"functionCall": {"name": call.name, "args": call.arguments}}]),
        None => json!([{"text": said.text()}]),
    };
    chunk(asked, &parts, Some(said), number)
}

fn chunk(asked: &Seen, parts: &Value, end: Option<&Said>, number: u64) -> Value {
    let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
    let mut chunk = json!({"modelVersion": asked.model, "responseId": format!("fake-{number}")});
    if let Some(said) = end {
        candidate["finishReason"] = "STOP".into();
        chunk["usageMetadata"] = json!({
            "promptTokenCount": 10, "candidatesTokenCount": said.tokens_out(),
            "totalTokenCount": 10 + said.tokens_out(),
        });
    }
    chunk["candidates"] = json!([candidate]);
    chunk
}
