//! Answers of a real llama-server, recorded with and without a stream (`recordings/record.py`): the stream put together
//! must be the answer without one.

#![expect(
    clippy::unwrap_used,
    reason = "a recording that cannot be read stops the test, as it should"
)]

use std::path::Path;

use adapter_host::{
    Assembler, RequestRules, Rewrite, StreamEnd, StreamWatch, dialect_of_path, read_request, usage_of_body,
};
use pool_registry_types::Dialect;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Recording {
    path: String,
    request: Value,
    stream: String,
    answer: Value,
}

fn each_recording(mut check: impl FnMut(&str, Dialect, &Recording)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let recording: Recording = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            check(&name, dialect_of_path(&recording.path).unwrap(), &recording);
            count += 1;
        }
    }
    assert!(count >= 18, "{count} recordings were found");
}

/// Takes out what is another one each time: ids, times, and how much of the prompt was in the cache.
fn without_chance(mut value: Value) -> Value {
    match &mut value {
        Value::Object(members) => {
            if let Some(cached) = members.remove("cache_read_input_tokens") {
                let read = cached.as_u64().unwrap() + members["input_tokens"].as_u64().unwrap();
                members.insert("input_tokens".to_owned(), read.into());
            }
            for chance in [
                "id",
                "call_id",
                "created",
                "created_at",
                "completed_at",
                "timings",
                "prompt_tokens_details",
                "input_tokens_details",
            ] {
                members.remove(chance);
            }
            for member in members.values_mut() {
                *member = without_chance(member.take());
            }
        }
        Value::Array(elements) => {
            for element in elements {
                *element = without_chance(element.take());
            }
        }
        _ => {}
    }
    value
}

fn assemble(dialect: Dialect, stream: &[u8], chunk_len: usize) -> Value {
    let mut assembler = Assembler::new(dialect).unwrap();
    for chunk in stream.chunks(chunk_len) {
        assembler.feed(chunk).unwrap();
    }
    assert!(assembler.has_ended());
    serde_json::from_slice(&assembler.finish().unwrap().0).unwrap()
}

#[test]
fn a_stream_put_together_is_the_answer() {
    each_recording(|name, dialect, recording| {
        let expect = without_chance(recording.answer.clone());
        for chunk_len in [1, 7, 1000, usize::MAX] {
            let got = without_chance(assemble(dialect, recording.stream.as_bytes(), chunk_len));
            let mut expect = expect.clone();
            known_differences(name, &got, &mut expect);
            assert_eq!(
                got, expect,
                "{name} in chunks of {chunk_len}\n{got:#}\n{expect:#}"
            );
        }
    });
}

/// Where the engine itself tells something else in the two cases.
fn known_differences(name: &str, got: &Value, expect: &mut Value) {
    // Of several choices the engine counts only the first when it does not stream.
    if matches!(name, "chat_choices" | "completions_several") {
        expect["usage"] = got["usage"].clone();
    }
    // A token that ends the answer has no chunk, and so no logprobs.
    if name == "chat_logprobs" {
        let told = expect["choices"][0]["logprobs"]["content"]
            .as_array_mut()
            .unwrap();
        assert_eq!(told.pop().unwrap()["token"], "");
    }
    // Reasoning items have no status in the last event of a stream.
    if name == "responses_thinking" {
        expect["output"][0].as_object_mut().unwrap().remove("status");
    }
}

#[test]
fn a_watch_sees_the_end_and_the_usage() {
    each_recording(|name, dialect, recording| {
        let told = usage_of_body(recording.answer.to_string().as_bytes());
        for chunk_len in [1, 7, 1000, usize::MAX] {
            let mut watch = StreamWatch::new(dialect);
            for chunk in recording.stream.as_bytes().chunks(chunk_len) {
                watch.feed(chunk);
            }
            assert_eq!(watch.finish(), StreamEnd::Complete, "{name}");
            let several = matches!(name, "chat_choices" | "completions_several");
            assert!(
                several || watch.usage() == told,
                "{name}: {:?} {told:?}",
                watch.usage()
            );
            // The chunks counted stand in for the tokens when the engine does not tell. One token ends the answer
            // without a text, some bring none of their own, and a signature counts as one.
            let (counted, tokens) = (watch.contents(), told.tokens_out.unwrap());
            assert!(
                several || (tokens / 3..=tokens + 1).contains(&counted),
                "{name}: {counted} of {tokens}"
            );
        }
    });
}

#[test]
fn a_stream_that_was_cut_is_no_answer() {
    each_recording(|name, dialect, recording| {
        // The last event is the end; without its line end it still counts, without more of it no longer.
        let stream = recording.stream.trim_end();
        let last_event = stream.rfind("\n\n").unwrap();
        for cut in [
            0,
            1,
            stream.len() / 3,
            stream.len() / 2,
            last_event,
            last_event + 2,
        ] {
            let mut watch = StreamWatch::new(dialect);
            let mut assembler = Assembler::new(dialect).unwrap();
            watch.feed(&stream.as_bytes()[..cut]);
            assembler.feed(&stream.as_bytes()[..cut]).unwrap();
            assert!(matches!(watch.finish(), StreamEnd::Cut { .. }), "{name} at {cut}");
            assert!(assembler.finish().is_err(), "{name} at {cut}");
        }
    });
}

#[test]
fn complete_events_are_told_from_the_beginning_of_the_next() {
    each_recording(|name, dialect, recording| {
        let stream = recording.stream.as_bytes();
        for chunk_len in [1, 7, 333] {
            let mut watch = StreamWatch::new(dialect);
            let (mut fed, mut complete) = (0, 0);
            for chunk in stream.chunks(chunk_len) {
                let complete_len = watch.feed(chunk);
                if complete_len > 0 {
                    complete = fed + complete_len;
                }
                fed += chunk.len();
                assert!(complete == 0 || stream[..complete].ends_with(b"\n\n"), "{name}");
                assert!(
                    !stream[complete..fed].windows(4).any(|window| window == b"\n\nda"),
                    "{name}"
                );
            }
            assert_eq!(complete, stream.len(), "{name}");
        }
    });
}

#[test]
fn the_requests_can_be_read_and_asked_as_streams() {
    let rules = RequestRules {
        model_required: true,
        media_allowed: false,
    };
    each_recording(|name, dialect, recording| {
        let body = recording.request.to_string();
        let facts = read_request(dialect, body.as_bytes(), &rules).unwrap();
        assert_eq!(facts.model.as_deref(), Some("demo"), "{name}");
        assert!(!facts.stream && facts.can_be_streamed, "{name}");
        assert_eq!(
            facts.prefix_hashes.is_empty(),
            name == "completions_several",
            "{name}"
        );
        let streamed = facts.places.rewrite(
            body.as_bytes(),
            &Rewrite {
                stream: true,
                model: Some("other"),
            },
        );
        let mut expect = recording.request.clone();
        expect["stream"] = true.into();
        expect["model"] = "other".into();
        if matches!(dialect, Dialect::ChatCompletions | Dialect::Completions) {
            expect["stream_options"] = serde_json::json!({"include_usage": true});
        }
        assert_eq!(
            serde_json::from_slice::<Value>(&streamed).unwrap(),
            expect,
            "{name}"
        );
        let facts = read_request(dialect, &streamed, &rules).unwrap();
        assert!(facts.stream, "{name}");
    });
}
