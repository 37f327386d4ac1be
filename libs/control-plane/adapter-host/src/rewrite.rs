//! Changes to a request's body that leave every other byte alone.
//!
//! A body is edited as text: values of top-level members are replaced where they stand, and members that are missing
//! go right behind the opening brace. Members of the same name further down are never touched. When a member stands
//! there twice, every one of them is replaced: readers differ in which one they take.

use crate::json::{JsonError, Scanner, Span};

/// What is to be changed. `Default` changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite<'m> {
    /// Ask for a stream, with usage at its end, whatever the client asked for.
    pub stream: bool,
    /// Ask for this model.
    pub model: Option<&'m str>,
}

/// Where the members stand that may be changed; found while the request is read, so that a rewrite reads nothing again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Right behind the opening brace.
    pub(crate) head: u32,
    /// Whether the object has no members, so that none follows an inserted one.
    pub(crate) is_empty: bool,
    pub(crate) model: Option<Span>,
    pub(crate) stream: Option<Span>,
    pub(crate) stream_options: Option<Span>,
    /// A member stands there twice: each has to be looked for.
    pub(crate) repeated: bool,
    /// The dialect has `stream_options`.
    pub(crate) has_stream_options: bool,
}

impl Places {
    /// Notes a member's value.
    pub(crate) fn note(&mut self, key: &str, value: Span) {
        let place = match key {
            "model" => &mut self.model,
            "stream" => &mut self.stream,
            "stream_options" => &mut self.stream_options,
            _ => return,
        };
        self.repeated |= place.is_some();
        *place = Some(value);
    }

    /// The changed body. `body` must be the one that the places were found in.
    pub fn rewrite(&self, body: &[u8], rewrite: &Rewrite<'_>) -> Vec<u8> {
        let model = rewrite.model.map(quote);
        let usage = rewrite.stream && self.has_stream_options;
        let changes = [
            ("model", self.model, model.as_deref()),
            ("stream", self.stream, rewrite.stream.then_some("true")),
            (
                "stream_options",
                self.stream_options,
                usage.then_some(r#"{"include_usage":true}"#),
            ),
        ];
        let mut inserted = String::new();
        let mut edits: Vec<(Span, &str)> = Vec::with_capacity(changes.len());
        for (key, place, value) in changes {
            let Some(value) = value else { continue };
            match place {
                None => inserted.extend(["\"", key, "\":", value, ","]),
                Some(_) if self.repeated => {
                    edits.extend(values_of(body, key).into_iter().map(|place| (place, value)));
                }
                Some(place) => edits.push((place, value)),
            }
        }
        if self.is_empty {
            inserted.pop();
        }
        edits.sort_unstable_by_key(|(place, _)| place.start);
        splice(body, self.head as usize, &inserted, &edits)
    }
}

/// The body with another model. A body that is no JSON object comes back as it is.
pub fn set_model(body: &[u8], model: &str) -> Vec<u8> {
    match find(body) {
        Some(places) => places.rewrite(
            body,
            &Rewrite {
                stream: false,
                model: Some(model),
            },
        ),
        None => body.to_vec(),
    }
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn splice(body: &[u8], head: usize, inserted: &str, edits: &[(Span, &str)]) -> Vec<u8> {
    let grown: usize = edits.iter().map(|(_, value)| value.len()).sum();
    let mut out = Vec::with_capacity(body.len() + inserted.len() + grown);
    out.extend_from_slice(&body[..head]);
    out.extend_from_slice(inserted.as_bytes());
    let mut from = head;
    for (place, value) in edits {
        let place = place.range();
        out.extend_from_slice(&body[from..place.start]);
        out.extend_from_slice(value.as_bytes());
        from = place.end;
    }
    out.extend_from_slice(&body[from..]);
    out
}

/// The places of every top-level member called `key`.
fn values_of(body: &[u8], key: &str) -> Vec<Span> {
    let mut found = Vec::new();
    members(body, |name, value| {
        if name == key {
            found.push(value);
        }
    });
    found
}

fn find(body: &[u8]) -> Option<Places> {
    let mut places = Places {
        is_empty: true,
        ..Places::default()
    };
    let head = members(body, |name, value| {
        places.is_empty = false;
        places.note(name, value);
    })?;
    places.head = head;
    Some(places)
}

/// Calls `member` for each top-level member; gives the place behind the opening brace, or none when `body` is no
/// JSON object.
fn members(body: &[u8], mut member: impl FnMut(&str, Span)) -> Option<u32> {
    let mut scanner = Scanner::new(std::str::from_utf8(body).ok()?);
    scanner.next_byte()?;
    let head = scanner.at() + 1;
    let walked: Result<(), JsonError> = scanner.object(|scanner, key| {
        let value = scanner.skip(&mut ())?;
        member(&key.decode(), value);
        Ok(())
    });
    walked.and_then(|()| scanner.end()).ok()?;
    u32::try_from(head).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn streamed(body: &str) -> String {
        let mut places = find(body.as_bytes()).unwrap();
        places.has_stream_options = true;
        String::from_utf8(places.rewrite(
            body.as_bytes(),
            &Rewrite {
                stream: true,
                model: None,
            },
        ))
        .unwrap()
    }

    fn check(body: &str, expect: &str) {
        assert_eq!(streamed(body), expect);
    }

    #[test]
    fn asks_for_a_stream_and_touches_nothing_else() {
        const OPTIONS: &str = r#""stream_options":{"include_usage":true}"#;
        check("{}", &format!(r#"{{"stream":true,{OPTIONS}}}"#));
        check(" { } ", &format!(r#" {{"stream":true,{OPTIONS} }} "#));
        check(r#"{"a": 1}"#, &format!(r#"{{"stream":true,{OPTIONS},"a": 1}}"#));
        check(
            r#"{"stream" : false ,"a":1}"#,
            &format!(r#"{{{OPTIONS},"stream" : true ,"a":1}}"#),
        );
        check(
            r#"{"a":{"stream":false}}"#,
            &format!(r#"{{"stream":true,{OPTIONS},"a":{{"stream":false}}}}"#),
        );
        check(
            r#"{"a":"\",\"stream\":false"}"#,
            &format!(r#"{{"stream":true,{OPTIONS},"a":"\",\"stream\":false"}}"#),
        );
        check(
            r#"{"str\u0065am":null}"#,
            &format!(r#"{{{OPTIONS},"str\u0065am":true}}"#),
        );
        check(
            r#"{"stream":false,"stream":false}"#,
            &format!(r#"{{{OPTIONS},"stream":true,"stream":true}}"#),
        );
        check(
            r#"{"stream_options":{"x":[1]},"stream":false}"#,
            r#"{"stream_options":{"include_usage":true},"stream":true}"#,
        );
    }

    #[test]
    fn sets_the_model() {
        let set = |body: &str, model: &str| String::from_utf8(set_model(body.as_bytes(), model)).unwrap();
        assert_eq!(
            set(r#"{"model":"a","x":"model"}"#, "b\"c"),
            r#"{"model":"b\"c","x":"model"}"#
        );
        assert_eq!(set("{}", "b"), r#"{"model":"b"}"#);
        assert_eq!(set("[", "b"), "[");
        assert_eq!(set("[]", "b"), "[]");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((any_key(), inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn any_key() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("stream".to_owned()),
            Just("model".to_owned()),
            Just("stream_options".to_owned()),
            "\\PC{0,6}",
        ]
    }

    proptest! {
        #[test]
        fn every_other_member_stays(
            members in proptest::collection::vec((any_key(), any_json()), 0..6),
            pretty in any::<bool>(),
        ) {
            let mut expect: serde_json::Map<String, Value> = members.into_iter().collect();
            let body = if pretty { serde_json::to_string_pretty(&expect) } else { serde_json::to_string(&expect) };
            let changed = streamed(&body.unwrap());
            expect.insert("stream".to_owned(), json!(true));
            expect.insert("stream_options".to_owned(), json!({"include_usage": true}));
            prop_assert_eq!(serde_json::from_str::<Value>(&changed).unwrap(), Value::Object(expect));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            set_model(&bytes, "x");
        }
    }
}
