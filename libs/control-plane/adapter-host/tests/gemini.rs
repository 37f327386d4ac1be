//! Requests of real clients of Google's API, recorded with long texts cut: Gemini CLI 0.61.0 and the package `google-genai`
//! 3.4.0. And answers of a real llama-server, put into that API's words from a stream and as a whole.
//!
//! `REMUDA_RECORD_GOLDENS=replay` writes what comes of the requests anew.

#![expect(
    clippy::unwrap_used,
    reason = "a recording that cannot be read stops the test, as it should"
)]

use std::path::Path;

use adapter_host::{GeminiCall, GeminiStream, chat_request, gemini_answer, read_request};
use adapter_host::{RequestRules, dialect_of_path};
use pool_registry_types::Dialect;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Deserialize, Serialize)]
struct Asked {
    client: String,
    path: String,
    query: String,
    body: Value,
    chat: Value,
}

#[test]
fn requests_of_real_clients_become_requests_of_chat() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gemini/requests.json");
    let mut recorded: Vec<Asked> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let records = std::env::var("REMUDA_RECORD_GOLDENS").is_ok_and(|value| value == "replay");
    assert!(recorded.len() >= 6);
    for asked in &mut recorded {
        let call = GeminiCall::of(&asked.path, Some(&asked.query)).unwrap().unwrap();
        let chat = chat_request(&call, asked.body.to_string().as_bytes()).unwrap();
        // What comes of it is a request that this control plane takes.
        let rules = RequestRules {
            model_required: true,
            media_allowed: true,
        };
        let facts = read_request(Dialect::ChatCompletions, &chat, &rules).unwrap();
        assert_eq!(
            (facts.model.as_deref(), facts.stream),
            (Some(call.model), call.stream)
        );
        let chat: Value = serde_json::from_slice(&chat).unwrap();
        if records {
            asked.chat = chat;
        } else {
            assert_eq!(chat, asked.chat, "{} {}", asked.client, asked.path);
        }
    }
    if records {
        let text = serde_json::to_string_pretty(&recorded).unwrap();
        std::fs::write(&file, format!("{text}\n")).unwrap();
    }
}

#[derive(Deserialize)]
struct Recording {
    path: String,
    stream: String,
    answer: Value,
}

/// Texts, calls, and how it ended.
fn read(pieces: &[Value]) -> (String, Vec<Value>, Value, Value) {
    let parts = pieces
        .iter()
        .flat_map(|piece| piece["candidates"][0]["content"]["parts"].as_array());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for part in parts.flatten() {
        text.push_str(part["text"].as_str().unwrap_or_default());
        calls.extend(part.get("functionCall").map(|call| call["args"].clone()));
    }
    let last = pieces.last().unwrap();
    let ended = last["candidates"][0]["finishReason"].clone();
    (
        text,
        calls,
        ended,
        last["usageMetadata"]["candidatesTokenCount"].clone(),
    )
}

#[test]
fn a_stream_says_what_the_whole_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(recording) = path
            .extension()
            .filter(|extension| *extension == "json")
            .map(|_| serde_json::from_slice::<Recording>(&std::fs::read(&path).unwrap()).unwrap())
        else {
            continue;
        };
        let is_chat = dialect_of_path(&recording.path) == Some(Dialect::ChatCompletions);
        let choices = recording.answer["choices"].as_array().map_or(0, Vec::len);
        if !is_chat || choices != 1 {
            continue;
        }
        let told = GeminiStream::default().feed(recording.stream.as_bytes());
        let told = std::str::from_utf8(&told).unwrap();
        let events = told
            .split("\r\n\r\n")
            .filter_map(|event| event.strip_prefix("data: "));
        let events: Vec<Value> = events.map(|event| serde_json::from_str(event).unwrap()).collect();
        let whole = gemini_answer(recording.answer.to_string().as_bytes()).unwrap();
        let whole: Value = serde_json::from_slice(&whole).unwrap();
        assert_eq!(read(&events), read(&[whole]), "{}", path.display());
        count += 1;
    }
    assert!(count >= 4, "{count} recordings were found");
}
