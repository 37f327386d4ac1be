//! What every request and every streamed chunk costs.

#![expect(clippy::unwrap_used, reason = "what is measured is known to be right")]

use std::hint::black_box;

use adapter_host::{Assembler, RequestRules, Rewrite, StreamWatch, read_request};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pool_registry_types::Dialect;
use serde_json::{Value, json};

const RULES: RequestRules = RequestRules {
    model_required: true,
    media_allowed: false,
};

fn chat_body(len: usize) -> Vec<u8> {
    let body = json!({
        "model": "demo",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant.\nAnswer in one word."},
            {"role": "user", "content": "lorem \"ipsum\" dolor sit amet, ".repeat(len / 30)},
        ],
        "temperature": 0.7, "max_tokens": 256, "stream": false, "user": "somebody",
    });
    body.to_string().into_bytes()
}

/// What Claude Code sends: many tools, a long conversation with blocks.
fn agent_body() -> Vec<u8> {
    let tool = |n: usize| {
        json!({"name": format!("tool_{n}"), "description": "What it does, at some length. ".repeat(60), "input_schema": {
            "type": "object", "properties": {"path": {"type": "string"}, "limit": {"type": "integer"}},
        }})
    };
    let turn = |n: usize| {
        json!({"role": if n.is_multiple_of(2) { "user" } else { "assistant" }, "content": [
            {"type": "text", "text": "fn main() {\n    println!(\"hello\");\n}\n".repeat(40)},
        ]})
    };
    let body = json!({
        "model": "demo", "max_tokens": 32000, "stream": true,
        "system": [{"type": "text", "text": "You are an agent. ".repeat(500)}],
        "tools": (0..20).map(tool).collect::<Vec<Value>>(),
        "messages": (0..41).map(turn).collect::<Vec<Value>>(),
    });
    body.to_string().into_bytes()
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read_request");
    let (short, long, agent) = (chat_body(1024), chat_body(2048), agent_body());
    let bodies = [
        ("chat_1k", Dialect::ChatCompletions, &short),
        ("chat_2k", Dialect::ChatCompletions, &long),
        ("messages_agent", Dialect::Messages, &agent),
    ];
    for (name, dialect, body) in bodies {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| read_request(dialect, black_box(body), &RULES).unwrap());
        });
    }
    group.throughput(Throughput::Bytes(long.len() as u64));
    group.bench_function("rewrite_2k", |bencher| {
        let facts = read_request(Dialect::ChatCompletions, &long, &RULES).unwrap();
        let rewrite = Rewrite {
            stream: true,
            model: Some("engine-name"),
        };
        bencher.iter(|| facts.places.rewrite(black_box(&long), &rewrite));
    });
    group.finish();
}

fn chunk(content: &str) -> Vec<u8> {
    format!(
        "data: {{\"choices\":[{{\"finish_reason\":null,\"index\":0,\"delta\":{{\"content\":\"{content}\"}}}}],\
         \"created\":1795193855,\"id\":\"chatcmpl-qIht8lzPcarOajcLxSJwdRG5pOEoESqt\",\"model\":\"demo\",\
         \"system_fingerprint\":\"b1-0c1e570\",\"object\":\"chat.completion.chunk\"}}\n\n"
    )
    .into_bytes()
}

fn streams(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stream");
    let openai = chunk(" word");
    let anthropic = b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
        \"delta\":{\"type\":\"text_delta\",\"text\":\" word\"}}\n\n"
        .to_vec();
    let responses = b"event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\
        \"item_id\":\"msg_0123456789012345678901234567890123456789\",\"delta\":\" word\"}\n\n"
        .to_vec();
    let chunks = [
        ("watch_chat", Dialect::ChatCompletions, &openai),
        ("watch_messages", Dialect::Messages, &anthropic),
        ("watch_responses", Dialect::Responses, &responses),
    ];
    for (name, dialect, chunk) in chunks {
        group.throughput(Throughput::Bytes(chunk.len() as u64));
        group.bench_function(name, |bencher| {
            let mut watch = StreamWatch::new(dialect);
            bencher.iter(|| watch.feed(black_box(chunk)));
        });
    }
    group.throughput(Throughput::Bytes(openai.len() as u64));
    group.bench_function("watch_chat_cut_in_two", |bencher| {
        let mut watch = StreamWatch::new(Dialect::ChatCompletions);
        let (head, tail) = openai.split_at(100);
        bencher.iter(|| watch.feed(black_box(head)) + watch.feed(black_box(tail)));
    });
    let whole: Vec<u8> = std::iter::repeat_n(openai.clone(), 100)
        .flatten()
        .chain(*b"data: [DONE]\n\n")
        .collect();
    group.throughput(Throughput::Elements(100));
    group.bench_function("assemble_chat_100_chunks", |bencher| {
        bencher.iter(|| {
            let mut assembler = Assembler::new(Dialect::ChatCompletions).unwrap();
            for chunk in black_box(&whole).chunks(openai.len()) {
                assembler.feed(chunk).unwrap();
            }
            assembler.finish().unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, requests, streams);
criterion_main!(benches);
