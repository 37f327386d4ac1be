//! Asking an engine whether it answers, and what it offers.
//!
//! Reading the answers is pure and takes anything: an engine that answers garbage is an engine that is not ready, with
//! the reason in words.

use std::time::Duration;

use bytes::Bytes;
use engine_provisioner::recipe;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use pool_registry_types::ModelInfo;
use serde_json::Value;
use upstream::{EngineClient, SendError};

/// The largest answer to a probe that is read.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// More models than this are not looked at.
const MODELS_MAX: usize = 1024;
/// More slots than this are not believed.
pub const SLOTS_MAX: u32 = 65_536;

/// Why an engine counts as not answering. The text is what `last_error` shows.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No connection.
    #[error("{0}")]
    Unreachable(String),
    /// It accepts and does not answer.
    #[error("no answer from {to} to GET {path} within {} ms", timeout.as_millis())]
    Timeout {
        /// Who was asked.
        to: String,
        /// For what.
        path: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// It closed the connection or sent no HTTP.
    #[error("{0}")]
    Broken(String),
    /// It answered with an error.
    #[error("{to} answered GET {path} with {status}")]
    Status {
        /// Who was asked.
        to: String,
        /// For what.
        path: String,
        /// The answer.
        status: StatusCode,
    },
    /// It answered something that is not what it should be.
    #[error("{to} answered GET {path} with something else than expected: {message}")]
    Content {
        /// Who was asked.
        to: String,
        /// For what.
        path: String,
        /// What is wrong.
        message: String,
    },
}

impl ProbeError {
    /// Whether it is certain that no engine is there.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// What an engine says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its models.
    pub models: Vec<ModelInfo>,
    /// Room for tasks, when it tells.
    pub slots_total: Option<u32>,
    /// Its version, when it tells.
    pub version: Option<String>,
    /// How many of its slots are busy, when it tells.
    pub busy_slots: Option<u32>,
    /// Whether its model takes pictures or sound, when it tells.
    pub media: Option<bool>,
}

/// How to ask one engine.
#[derive(Clone)]
pub struct Prober {
    /// Connections for probes alone, so that a probe never takes one from a task.
    pub client: EngineClient,
    /// The engine's key.
    pub key: Option<HeaderValue>,
    /// What to ask for.
    pub paths: recipe::Probe,
    /// How long one answer may take.
    pub timeout: Duration,
}

impl Prober {
    /// Asks only whether it is well.
    pub async fn health(&self) -> Result<(), ProbeError> {
        self.get(&self.paths.health).await.map(|_| ())
    }

    /// Asks everything.
    pub async fn all(&self) -> Result<Answer, ProbeError> {
        self.health().await?;
        let models = self.get_json(&self.paths.models, read_models).await?;
        let mut answer = Answer {
            models,
            ..Answer::default()
        };
        if let Some(path) = &self.paths.props {
            // Optional for whoever only looks like this engine: a stand-in without it has slots from the settings.
            match self.get_json(path, read_props).await {
                Ok(props) => {
                    answer.slots_total = props.slots_total;
                    answer.version = props.version;
                    answer.media = props.media;
                    for model in &mut answer.models {
                        model.context_length = model.context_length.or(props.context_length);
                    }
                }
                Err(ProbeError::Status { status, .. }) if status.is_client_error() => {}
                Err(error) => return Err(error),
            }
        }
        answer.busy_slots = match self.busy_slots().await {
            Ok(busy) => busy,
            Err(ProbeError::Status { .. } | ProbeError::Content { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(answer)
    }

    /// How many slots are busy; None when the engine cannot tell.
    pub async fn busy_slots(&self) -> Result<Option<u32>, ProbeError> {
        match &self.paths.slots {
            Some(path) => self.get_json(path, read_busy).await.map(Some),
            None => Ok(None),
        }
    }

    async fn get_json<T>(
        &self,
        path: &str,
        read: impl Fn(&Value) -> Result<T, String>,
    ) -> Result<T, ProbeError> {
        let body = self.get(path).await?;
        let content = |message| ProbeError::Content {
            to: self.to(),
            path: path.to_owned(),
            message,
        };
        let value: Value =
            serde_json::from_slice(&body).map_err(|error| content(format!("no JSON ({error})")))?;
        read(&value).map_err(content)
    }

    async fn get(&self, path: &str) -> Result<Bytes, ProbeError> {
        match tokio::time::timeout(self.timeout, self.get_unbounded(path)).await {
            Ok(result) => result,
            Err(_) => Err(ProbeError::Timeout {
                to: self.to(),
                path: path.to_owned(),
                timeout: self.timeout,
            }),
        }
    }

    async fn get_unbounded(&self, path: &str) -> Result<Bytes, ProbeError> {
        let base = self.client.origin().base_path();
        let mut request = Request::builder()
            .uri(format!("{base}{path}"))
            .header(header::ACCEPT, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, key);
        }
        let request = request
            .body(Bytes::new())
            .map_err(|error| ProbeError::Broken(error.to_string()))?;
        let response = self.client.send(&request).await.map_err(|error| sort(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(ProbeError::Status {
                to: self.to(),
                path: path.to_owned(),
                status,
            });
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let broken = |error| {
            ProbeError::Broken(format!(
                "{} broke off its answer to GET {path}: {error}",
                self.to()
            ))
        };
        body.map(http_body_util::Collected::to_bytes).map_err(broken)
    }

    fn to(&self) -> String {
        self.client.origin().authority().to_owned()
    }
}

fn sort(error: &SendError) -> ProbeError {
    match error {
        SendError::Connect { .. } | SendError::ConnectTimeout { .. } => {
            ProbeError::Unreachable(describe(error))
        }
        SendError::Closed { .. } | SendError::Garbage { .. } => ProbeError::Broken(describe(error)),
    }
}

/// What `last_error` says of a request that came to nothing.
pub fn describe(error: &SendError) -> String {
    match error {
        SendError::Connect { to, source } => format!("nothing answers at {to}: {source}"),
        SendError::ConnectTimeout { to, after } => {
            format!(
                "nothing answers at {to}: no connection within {} ms",
                after.as_millis()
            )
        }
        SendError::Closed { .. } | SendError::Garbage { .. } => crate::door::chain(error),
    }
}

/// The models of an OpenAI-shaped list.
fn read_models(value: &Value) -> Result<Vec<ModelInfo>, String> {
    let list = value["data"].as_array().ok_or("no list `data`")?;
    let models: Vec<_> = list.iter().take(MODELS_MAX).filter_map(read_model).collect();
    if models.is_empty() {
        Err("no model in `data`".to_owned())
    } else {
        Ok(models)
    }
}

fn read_model(value: &Value) -> Option<ModelInfo> {
    let id = value["id"]
        .as_str()
        .filter(|id| !id.is_empty() && id.len() <= 1024)?;
    let aliases = value["aliases"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    Some(ModelInfo {
        id: id.to_owned(),
        aliases: aliases
            .filter(|alias| *alias != id)
            .take(16)
            .map(str::to_owned)
            .collect(),
        context_length: number(&value["max_model_len"]).or_else(|| number(&value["context_length"])),
        media: false,
    })
}

struct Props {
    slots_total: Option<u32>,
    version: Option<String>,
    context_length: Option<u32>,
    media: Option<bool>,
}

fn read_props(value: &Value) -> Result<Props, String> {
    if !value.is_object() {
        return Err("no object".to_owned());
    }
    let slots_total = number(&value["total_slots"]);
    if slots_total.is_some_and(|slots| slots == 0 || slots > SLOTS_MAX) {
        return Err(format!("`total_slots` is {}", value["total_slots"]));
    }
    Ok(Props {
        slots_total,
        version: value["build_info"]
            .as_str()
            .map(|version| version.chars().take(128).collect()),
        context_length: number(&value["default_generation_settings"]["n_ctx"]).filter(|tokens| *tokens > 0),
        // Each kind by name, such as {"vision": true, "audio": false}.
        media: value["modalities"]
            .as_object()
            .map(|kinds| kinds.values().any(|takes| *takes == true)),
    })
}

fn read_busy(value: &Value) -> Result<u32, String> {
    let slots = value.as_array().ok_or("no list of slots")?;
    let mut busy = 0;
    for slot in slots {
        busy += u32::from(
            slot["is_processing"]
                .as_bool()
                .ok_or("a slot without `is_processing`")?,
        );
    }
    Ok(busy)
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn models_are_read_as_engines_list_them() {
        let model = |id: &str, aliases: &[&str], context_length| ModelInfo {
            id: id.to_owned(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            context_length,
            media: false,
        };
        let check = |value: Value, expect: Result<Vec<ModelInfo>, &str>| {
            assert_eq!(read_models(&value), expect.map_err(str::to_owned), "{value}");
        };
        check(
            json!({"data": [{"id": "m"}, {"id": "n", "max_model_len": 4096}]}),
            Ok(vec![model("m", &[], None), model("n", &[], Some(4096))]),
        );
        check(
            json!({"data": [{"id": "m", "aliases": ["m", "x"]}, {"id": 5}, 7]}),
            Ok(vec![model("m", &["x"], None)]),
        );
        check(json!({"data": []}), Err("no model in `data`"));
        check(json!({"data": "m"}), Err("no list `data`"));
        check(json!([]), Err("no list `data`"));
        check(json!(null), Err("no list `data`"));
    }

    #[test]
    fn props_and_slots_are_not_believed_blindly() {
        assert_eq!(
            read_props(&json!({"total_slots": 4})).unwrap().slots_total,
            Some(4)
        );
        assert_eq!(read_props(&json!({})).unwrap().slots_total, None);
        let props =
            json!({"total_slots": 1, "build_info": "b1", "default_generation_settings": {"n_ctx": 512}});
        let props = read_props(&props).unwrap();
        assert_eq!(
            (props.version.as_deref(), props.context_length),
            (Some("b1"), Some(512))
        );
        let media = |props: Value| read_props(&props).unwrap().media;
        assert_eq!(media(json!({})), None);
        assert_eq!(
            media(json!({"modalities": {"vision": false, "audio": false}})),
            Some(false)
        );
        assert_eq!(
            media(json!({"modalities": {"vision": true, "audio": false}})),
            Some(true)
        );
        assert_eq!(media(json!({"modalities": {"vision": "yes"}})), Some(false));
        assert_eq!(media(json!({"modalities": "vision"})), None);
        assert!(read_props(&json!({"total_slots": 0})).is_err());
        assert!(read_props(&json!({"total_slots": 4_000_000_000_u64})).is_err());
        assert!(read_props(&json!("ok")).is_err());
        assert_eq!(
            read_busy(&json!([{"is_processing": true}, {"is_processing": false}])),
            Ok(1)
        );
        assert_eq!(read_busy(&json!([])), Ok(0));
        assert!(read_busy(&json!({"is_processing": true})).is_err());
        assert!(read_busy(&json!([{}])).is_err());
    }
}
