//! `GET /v1/models`, for both kinds of clients.
//!
//! A client that says by its `anthropic-version` header that it is Anthropic's gets Anthropic's list, any other one
//! OpenAI's.

use bytes::Bytes;
use serde::Serialize;

/// A model as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedModel<'m> {
    /// The name by which it is asked for.
    pub id: &'m str,
    /// Since when it is there, in seconds since 1970.
    pub created_s: u64,
    /// How many tokens one task may hold, where the engine says.
    pub context_length: Option<u32>,
}

#[derive(Serialize)]
struct OpenAiModel<'m> {
    id: &'m str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
}

#[derive(Serialize)]
struct AnthropicModel<'m> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'m str,
    display_name: &'m str,
    created_at: String,
}

/// Whether the request comes from one of Anthropic's clients.
pub fn wants_anthropic(headers: &http::HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

/// The body of `GET /v1/models`.
pub fn models_body(models: &[ListedModel<'_>], anthropic: bool) -> Bytes {
    #[derive(Serialize)]
    struct OpenAi<'m> {
        object: &'static str,
        data: Vec<OpenAiModel<'m>>,
    }
    #[derive(Serialize)]
    struct Anthropic<'m> {
        data: Vec<AnthropicModel<'m>>,
        has_more: bool,
        first_id: Option<&'m str>,
        last_id: Option<&'m str>,
    }
    if anthropic {
        to_bytes(&Anthropic {
            data: models.iter().map(anthropic_model).collect(),
            has_more: false,
            first_id: models.first().map(|model| model.id),
            last_id: models.last().map(|model| model.id),
        })
    } else {
        to_bytes(&OpenAi {
            object: "list",
            data: models.iter().map(openai_model).collect(),
        })
    }
}

/// The body of `GET /v1/models/{id}`.
pub fn model_body(model: &ListedModel<'_>, anthropic: bool) -> Bytes {
    if anthropic {
        to_bytes(&anthropic_model(model))
    } else {
        to_bytes(&openai_model(model))
    }
}

fn openai_model<'m>(model: &ListedModel<'m>) -> OpenAiModel<'m> {
    OpenAiModel {
        id: model.id,
        object: "model",
        created: model.created_s,
        owned_by: "remuda",
        context_length: model.context_length,
    }
}

fn anthropic_model<'m>(model: &ListedModel<'m>) -> AnthropicModel<'m> {
    AnthropicModel {
        kind: "model",
        id: model.id,
        display_name: model.id,
        created_at: rfc3339(model.created_s),
    }
}

fn to_bytes(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value)
        .expect("strings and numbers can always be written as JSON")
        .into()
}

/// Seconds since 1970 as RFC 3339; what no calendar holds becomes 1970.
fn rfc3339(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn body(anthropic: bool) -> Value {
        let model = |id| ListedModel {
            id,
            created_s: 1_795_190_400,
            context_length: Some(4096),
        };
        serde_json::from_slice(&models_body(&[model("a"), model("b")], anthropic)).unwrap()
    }

    #[test]
    fn each_client_gets_its_own_list() {
        let openai = |id| json!({"id": id, "object": "model", "created": 1_795_190_400, "owned_by": "remuda", "context_length": 4096});
        assert_eq!(
            body(false),
            json!({"object": "list", "data": [openai("a"), openai("b")]})
        );
        let anthropic =
            |id| json!({"type": "model", "id": id, "display_name": id, "created_at": "2026-11-20T16:00:00Z"});
        let expect = json!({
            "data": [anthropic("a"), anthropic("b")], "has_more": false, "first_id": "a", "last_id": "b",
        });
        assert_eq!(body(true), expect);
    }

    #[test]
    fn no_model_is_a_list_too() {
        let empty: Value = serde_json::from_slice(&models_body(&[], true)).unwrap();
        assert_eq!(
            empty,
            json!({"data": [], "has_more": false, "first_id": null, "last_id": null})
        );
    }

    #[test]
    fn no_time_is_out_of_reach() {
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }
}
