//! Answers as they go out: whole HTTP messages, ready to be written.

use std::io::Write;

use serde_json::json;

use crate::request::Endpoint;

/// How many chunks a stream has when nobody says.
pub(crate) const CHUNKS_DEFAULT: u32 = 16;
/// What the head of a stream looks like.
pub(crate) const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
    transfer-encoding: chunked\r\n\r\n";
/// The last chunk of a chunked body.
pub(crate) const STREAM_END: &[u8] = b"0\r\n\r\n";
/// What no HTTP client understands.
pub(crate) const GARBAGE: &[u8] = b"\x00\xff\xfethis is not HTTP\r\n\r\n\x01\x02\x03";
const GARBAGE_BODY: &[u8] = b"data: {\"choices\":[{]}\xff\xfe\n\n<html>neither JSON nor events\n\n";

/// The tokens that the prompt is said to have.
const TOKENS_IN: u32 = 12;

/// A message with `body`.
pub(crate) fn message(status: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(body.len() + 128);
    write!(
        message,
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .expect("a Vec takes every write");
    message.extend_from_slice(body);
    message
}

/// A message with a JSON body.
pub(crate) fn json(status: &str, body: &serde_json::Value) -> Vec<u8> {
    message(status, "application/json", body.to_string().as_bytes())
}

/// An error in OpenAI's shape.
pub(crate) fn error(status: &str, code: u16, kind: &str, text: &str) -> Vec<u8> {
    json(
        status,
        &json!({"error": {"code": code, "message": text, "type": kind}}),
    )
}

/// A message whose head is right and whose body is not.
pub(crate) fn garbage_body(stream: bool) -> Vec<u8> {
    message(
        "200 OK",
        if stream {
            "text/event-stream"
        } else {
            "application/json"
        },
        GARBAGE_BODY,
    )
}

/// A message that has come whole, as the first chunk of a body that does not say so.
pub(crate) fn never_ended(message: &[u8]) -> Vec<u8> {
    let body = memchr::memmem::find(message, b"\r\n\r\n").map_or(0, |end| end + 4);
    let mut open =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    write!(open, "{:x}\r\n", message.len() - body).expect("a Vec takes every write");
    open.extend_from_slice(&message[body..]);
    open.extend_from_slice(b"\r\n");
    open
}

/// The whole answer to a chat; without `chunks` one of about 600 bytes.
pub(crate) fn whole(model: &str, chunks: Option<u32>) -> Vec<u8> {
    let (text, tokens) = text(chunks);
    json(
        "200 OK",
        &json!({
            "id": "chatcmpl-fake", "object": "chat.completion", "created": 1_700_000_000, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": usage(tokens),
        }),
    )
}

/// The whole answer to a text completion.
pub(crate) fn whole_completion(model: &str, chunks: Option<u32>) -> Vec<u8> {
    let (text, tokens) = text(chunks);
    json(
        "200 OK",
        &json!({
            "id": "cmpl-fake", "object": "text_completion", "created": 1_700_000_000, "model": model,
            "choices": [{"index": 0, "text": text, "finish_reason": "stop"}],
            "usage": usage(tokens),
        }),
    )
}

/// An embedding of eight numbers.
pub(crate) fn embedding(model: &str) -> Vec<u8> {
    json(
        "200 OK",
        &json!({
            "object": "list", "model": model,
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5]}],
            "usage": {"prompt_tokens": TOKENS_IN, "total_tokens": TOKENS_IN},
        }),
    )
}

/// Writes event `index` of a stream, as one chunk of the body.
pub(crate) fn event(out: &mut Vec<u8>, endpoint: Endpoint, model: &str, index: u32) {
    if endpoint == Endpoint::Chat {
        chunk(
            out,
            format_args!(
                "data: {{\"id\":\"chatcmpl-fake\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
                 \"model\":\"{model}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"w{index} \"}},\
                 \"finish_reason\":null}}]}}\n\n"
            ),
        );
    } else {
        chunk(
            out,
            format_args!(
                "data: {{\"id\":\"cmpl-fake\",\"object\":\"text_completion\",\"created\":1700000000,\
                 \"model\":\"{model}\",\"choices\":[{{\"index\":0,\"text\":\"w{index} \",\
                 \"finish_reason\":null}}]}}\n\n"
            ),
        );
    }
}

/// Writes a stream's end: the event with the reason, the usage when it was asked for, and `[DONE]`.
pub(crate) fn last_events(out: &mut Vec<u8>, endpoint: Endpoint, model: &str, tokens: u32, with_usage: bool) {
    let (id, object, piece) = if endpoint == Endpoint::Chat {
        ("chatcmpl-fake", "chat.completion.chunk", "\"delta\":{}")
    } else {
        ("cmpl-fake", "text_completion", "\"text\":\"\"")
    };
    let head = format!(
        "data: {{\"id\":\"{id}\",\"object\":\"{object}\",\"created\":1700000000,\"model\":\"{model}\",\"choices\":["
    );
    chunk(
        out,
        format_args!("{head}{{\"index\":0,{piece},\"finish_reason\":\"stop\"}}]}}\n\n"),
    );
    if with_usage {
        chunk(out, format_args!("{head}],\"usage\":{}}}\n\n", usage(tokens)));
    }
    chunk(out, format_args!("data: [DONE]\n\n"));
}

fn text(chunks: Option<u32>) -> (String, u32) {
    // 92 words make a body of about 600 bytes.
    let tokens = chunks.unwrap_or(92);
    let mut text = String::new();
    for index in 0..tokens {
        text.push('w');
        text.push_str(&index.to_string());
        text.push(' ');
    }
    (text, tokens)
}

fn usage(tokens: u32) -> serde_json::Value {
    json!({
        "prompt_tokens": TOKENS_IN, "completion_tokens": tokens, "total_tokens": u64::from(TOKENS_IN) + u64::from(tokens),
    })
}

/// Writes one chunk of a chunked body. The size comes first and is known last, so its place is kept: four digits.
fn chunk(out: &mut Vec<u8>, event: std::fmt::Arguments<'_>) {
    let start = out.len();
    out.extend_from_slice(b"0000\r\n");
    let data = out.len();
    out.write_fmt(event).expect("a Vec takes every write");
    let length = out.len() - data;
    let size = format!("{length:04x}");
    out[start..start + 4].copy_from_slice(&size.as_bytes()[..4]);
    out.extend_from_slice(b"\r\n");
}
