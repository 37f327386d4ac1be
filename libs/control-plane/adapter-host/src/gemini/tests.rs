use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const STREAMED: GeminiCall<'_> = GeminiCall {
    model: "demo",
    stream: true,
};

fn chat(body: &Value) -> Result<Value, ApiError> {
    let written = chat_request(&STREAMED, body.to_string().as_bytes())?;
    Ok(serde_json::from_slice(&written).unwrap())
}

#[test]
fn an_address_tells_model_and_stream() {
    let of = |path, query| GeminiCall::of(path, query).map(|call| call.map(|call| (call.model, call.stream)));
    assert_eq!(
        of("/v1beta/models/demo:generateContent", None),
        Some(Ok(("demo", false)))
    );
    let path = "/v1beta/models/org/qwen3:8b:streamGenerateContent";
    assert_eq!(of(path, Some("key=x&alt=sse")), Some(Ok(("org/qwen3:8b", true))));
    let refused = |path, query| of(path, query).unwrap().unwrap_err().code;
    assert_eq!(refused(path, None), ErrorCode::InvalidParams);
    for path in [
        "/v1/chat/completions",
        "/v1beta/models",
        "/v1beta/models/demo",
        "/v1beta/models/demo:countTokens",
        "/v1/models/qwen3:8b",
        "",
    ] {
        assert_eq!(of(path, None), None, "{path}");
    }
}

#[test]
fn a_conversation_with_tools_is_put_into_chats_words() {
    let body = json!({
        "systemInstruction": {"parts": [{"text": "be"}, {"text": "brief"}], "role": "user"},
        "contents": [
            {"role": "user", "parts": [{"text": "look"}]},
            {"role": "model", "parts": [
                {"text": "I wonder", "thought": true}, {"text": "I "}, {"text": "look"},
                {"functionCall": {"name": "ls", "args": {"z": 1, "a": 2}}, "thoughtSignature": "x"},
                {"functionCall": {"id": "own", "name": "cat", "args": {}}},
                {"functionCall": {"name": "ls"}},
            ]},
            {"role": "user", "parts": [
                {"functionResponse": {"id": "own", "name": "cat", "response": {"output": "meow\n"}}},
                {"functionResponse": {"name": "ls", "response": {"output": "a", "more": 1}}},
                {"functionResponse": {"name": "ls", "response": {"error": "no"}}},
                {"text": "and?"},
                {"inlineData": {"mimeType": "image/png", "data": "AA=="}},
            ]},
        ],
        "tools": [{"functionDeclarations": [
            {"name": "ls", "description": "lists", "parametersJsonSchema": {"type": "object"}},
            {"name": "cat", "parameters": {"type": "OBJECT", "properties": {"type": {"type": "STRING", "enum": ["A"]}}}},
            {"name": "rm"},
        ]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["ls", "cat"]}},
        "generationConfig": {
            "temperature": 0.5, "topP": 0.9, "topK": 40.0, "maxOutputTokens": 7, "stopSequences": ["!"], "seed": 3,
            "responseMimeType": "application/json", "thinkingConfig": {"includeThoughts": true},
        },
        "safetySettings": [],
    });
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let expect = json!({
        "model": "demo", "stream": true, "stream_options": {"include_usage": true},
        "messages": [
            {"role": "system", "content": "be\n\nbrief"},
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": "I look", "tool_calls": [
                call("call_1", "ls", "{\"a\":2,\"z\":1}"), call("own", "cat", "{}"), call("call_3", "ls", "{}"),
            ]},
            {"role": "tool", "tool_call_id": "own", "content": "meow\n"},
            {"role": "tool", "tool_call_id": "call_1", "content": "{\"more\":1,\"output\":\"a\"}"},
            {"role": "tool", "tool_call_id": "call_3", "content": "{\"error\":\"no\"}"},
            {"role": "user", "content": [
                {"type": "text", "text": "and?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ]},
        ],
        "tools": [
            {"type": "function", "function": {"name": "ls", "description": "lists", "parameters": {"type": "object"}}},
            {"type": "function", "function": {"name": "cat", "parameters": {
                "type": "object", "properties": {"type": {"type": "string", "enum": ["A"]}},
            }}},
        ],
        "tool_choice": "required",
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_tokens": 7, "stop": ["!"], "seed": 3,
        "response_format": {"type": "json_object"},
    });
    assert_eq!(chat(&body).unwrap(), expect);
}

#[test]
fn both_ways_of_writing_names_are_read() {
    let body = json!({
        "system_instruction": {"parts": [{"text": "s"}]},
        "contents": [{"parts": [{"text": "u"}]}],
        "generation_config": {"max_output_tokens": 5, "response_schema": {"type": "ARRAY", "items": {"type": "INTEGER"}}},
        "tool_config": {"function_calling_config": {"mode": "NONE"}},
    });
    let written = chat(&body).unwrap();
    assert_eq!(written["messages"][0], json!({"role": "system", "content": "s"}));
    assert_eq!(
        (&written["max_tokens"], &written["tool_choice"]),
        (&json!(5), &json!("none"))
    );
    assert_eq!(
        written["response_format"]["json_schema"]["schema"],
        json!({"type": "array", "items": {"type": "integer"}})
    );
}

#[test]
fn what_cannot_be_said_is_refused_by_name() {
    let user = |part: Value| json!({"contents": [{"role": "user", "parts": [part]}]});
    let with = |name: &str, value: Value| json!({"contents": [], name: value});
    for (body, expect) in [
        (user(json!({"fileData": {"fileUri": "x"}})), "fileData"),
        (
            user(json!({"inlineData": {"mimeType": "video/mp4", "data": ""}})),
            "contents[0].parts[0].inlineData",
        ),
        (
            user(json!({"functionCall": {"name": "f"}})),
            "contents[0].parts[0].functionCall",
        ),
        (
            user(json!({"functionResponse": {"name": "f"}})),
            "contents[0].parts[0].functionResponse",
        ),
        (
            json!({"contents": [{"role": "system", "parts": []}]}),
            "contents[0].role",
        ),
        (with("tools", json!([{"googleSearch": {}}])), "googleSearch"),
        (with("cachedContent", json!("x")), "cachedContent"),
        (
            with("generationConfig", json!({"candidateCount": 2})),
            "generationConfig.candidateCount",
        ),
        (
            with("generationConfig", json!({"responseModalities": ["IMAGE"]})),
            "generationConfig.responseModalities",
        ),
        (json!({"contents": "x"}), "contents"),
    ] {
        let error = chat(&body).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParams);
        let (_, told) = gemini_error(&error, None);
        let told: Value = serde_json::from_slice(&told).unwrap();
        let message = told["error"]["message"].as_str().unwrap();
        assert!(
            message.contains(expect) || expect == "contents",
            "{message} names {expect}"
        );
    }
}

/// What a client makes of a stream: texts, thoughts, calls, and the rest of the last piece.
fn read(stream: &[u8]) -> (String, Vec<Value>, Value) {
    let stream = std::str::from_utf8(stream).unwrap();
    let (mut text, mut calls, mut last) = (String::new(), Vec::new(), Value::Null);
    for event in stream.split("\r\n\r\n").filter(|event| !event.is_empty()) {
        last = serde_json::from_str(event.strip_prefix("data: ").unwrap_or(event)).unwrap();
        for part in last["candidates"][0]["content"]["parts"]
            .as_array()
            .into_iter()
            .flatten()
        {
            text.push_str(part["text"].as_str().unwrap_or_default());
            calls.extend(part.get("functionCall").cloned());
        }
    }
    (text, calls, last)
}

const CHAT: &str = r#"data: {"id":"c1","model":"demo","choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}

data: {"id":"c1","model":"demo","choices":[{"index":0,"delta":{"reasoning_content":"hm "}}]}

data: {"id":"c1","model":"demo","choices":[{"index":0,"delta":{"content":"2"}}]}

data: {"id":"c1","model":"demo","choices":[{"index":0,"delta":{"content":"01"}}]}

data: {"id":"c1","model":"demo","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"ls","arguments":"{\"p"}}]}}]}

data: {"id":"c1","model":"demo","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\":1}"}}]}}]}

data: {"id":"c1","model":"demo","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"b","function":{"name":"ls","arguments":""}}]}}]}

data: {"id":"c1","model":"demo","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}

data: {"id":"c1","model":"demo","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}

data: [DONE]

"#;

#[test]
fn a_stream_says_text_at_once_and_calls_at_its_end() {
    let told = GeminiStream::default().feed(CHAT.as_bytes());
    let (text, calls, last) = read(&told);
    assert_eq!(text, "hm 201");
    assert_eq!(
        calls,
        [
            json!({"id": "a", "name": "ls", "args": {"p": 1}}),
            json!({"id": "b", "name": "ls", "args": {}}),
        ]
    );
    let used = json!({"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13});
    assert_eq!(
        (&last["usageMetadata"], &last["responseId"]),
        (&used, &json!("c1"))
    );
    assert_eq!(last["candidates"][0]["finishReason"], "STOP");
    assert!(told.starts_with(b"data: ") && told.ends_with(b"\r\n\r\n"));
}

#[test]
fn an_answer_without_a_stream_is_one_piece() {
    for (finish, content, expect) in [
        ("stop", "201", "STOP"),
        ("length", "20", "MAX_TOKENS"),
        ("content_filter", "", "SAFETY"),
    ] {
        let chat = json!({
            "id": "c", "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        });
        let told: Value =
            serde_json::from_slice(&gemini_answer(chat.to_string().as_bytes()).unwrap()).unwrap();
        let candidate = &told["candidates"][0];
        assert_eq!(
            (&candidate["finishReason"], &candidate["content"]),
            (
                &json!(expect),
                &json!({"role": "model", "parts": [{"text": content}]})
            )
        );
        assert_eq!(told["usageMetadata"]["totalTokenCount"], 3);
    }
    assert!(gemini_answer(b"<html>").is_err());
}

#[test]
fn a_call_that_is_no_json_is_said_to_be_malformed() {
    let chat = CHAT.replace(r#"\":1}"#, "oops");
    let (_, calls, last) = read(&GeminiStream::default().feed(chat.as_bytes()));
    assert_eq!(
        (calls.len(), &last["candidates"][0]["finishReason"]),
        (1, &json!("MALFORMED_FUNCTION_CALL"))
    );
}

#[test]
fn an_error_in_a_stream_stands_alone_and_ends_it() {
    let ours = crate::error_event(
        pool_registry_types::Dialect::ChatCompletions,
        &ApiError::new(ErrorCode::WorkerReset, "the engine went away"),
        false,
    );
    let mut stream = GeminiStream::default();
    assert_eq!(
        stream
            .feed(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n")
            .iter()
            .filter(|byte| **byte == b'\n')
            .count(),
        2
    );
    let told = stream.feed(&ours);
    let error: Value = serde_json::from_slice(&told).expect("a JSON text of its own");
    assert_eq!(
        (
            &error["error"]["code"],
            &error["error"]["status"],
            &error["error"]["message"]
        ),
        (&json!(502), &json!("UNAVAILABLE"), &json!("the engine went away"))
    );
    assert!(stream.feed(CHAT.as_bytes()).is_empty(), "nothing follows");
}

#[test]
fn an_error_tells_when_to_come_again() {
    let error = ApiError::new(ErrorCode::AdmissionReject, "full").with_retry_after_ms(1200);
    let (status, body) = gemini_error(&error, Some("id"));
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (status, &body["error"]["status"]),
        (429, &json!("RESOURCE_EXHAUSTED"))
    );
    assert_eq!(body["error"]["details"][1]["retryDelay"], "2s");
    assert_eq!(body["error"]["details"][0]["metadata"]["correlation_id"], "id");
}

proptest! {
    #[test]
    fn cuts_make_no_difference_and_nothing_is_fatal(
        cuts in proptest::collection::vec(0..CHAT.len(), 0..8),
        broken in proptest::collection::vec((0..CHAT.len(), any::<u8>()), 0..3),
    ) {
        let mut bytes = CHAT.as_bytes().to_vec();
        for (at, byte) in broken {
            bytes[at] = byte;
        }
        let mut cuts = cuts;
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut stream = GeminiStream::default();
        let pieces = cuts.windows(2).flat_map(|pair| stream.feed(&bytes[pair[0]..pair[1]]));
        let pieces: Vec<u8> = pieces.collect();
        prop_assert_eq!(pieces, GeminiStream::default().feed(&bytes).to_vec());
    }
}
