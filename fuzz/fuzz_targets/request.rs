//! The request parser and the rewriting of bodies, held against `serde_json`.

#![no_main]

use adapter_host::{DIALECTS, RequestRules, Rewrite, engine_error, read_request, set_model};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let rules = RequestRules {
        model_required: false,
        media_allowed: true,
    };
    let known = serde_json::from_slice::<Value>(body).ok();
    for dialect in DIALECTS {
        let Ok(facts) = read_request(dialect, body, &rules) else {
            continue;
        };
        let known = known
            .as_ref()
            .and_then(Value::as_object)
            .expect("only JSON objects are taken");
        assert_eq!(facts.stream, known.get("stream") == Some(&Value::Bool(true)));
        assert_eq!(facts.model.as_deref(), known.get("model").and_then(Value::as_str));
        let changed = facts.places.rewrite(
            body,
            &Rewrite {
                stream: true,
                model: Some("other \"one\""),
            },
        );
        let mut changed: Value = serde_json::from_slice(&changed).expect("a changed body is JSON");
        assert_eq!(changed["stream"], true);
        assert_eq!(changed["model"], "other \"one\"");
        let changed = changed.as_object_mut().expect("a changed body is an object");
        for (key, value) in known {
            let may_change = matches!(key.as_str(), "stream" | "model" | "stream_options");
            assert!(may_change || changed.get(key) == Some(value), "{key} has changed");
        }
    }
    set_model(body, "x");
    engine_error(500, body);
});
