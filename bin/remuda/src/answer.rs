//! Asks a control plane over `POST /v1/chat/completions` and gives the answer piece by piece.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{Client, Events, list_of};
use crate::failure::{Exit, Failure};

/// How long the end of the stream may take after the last event.
const LAST_BYTES_WAIT: Duration = Duration::from_secs(1);

/// One message of a conversation.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    pub(crate) content: String,
}

impl Message {
    pub(crate) fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user",
            content: content.into(),
        }
    }

    pub(crate) fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: "assistant",
            content: content.into(),
        }
    }
}

/// A question.
#[derive(Clone, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) model: &'a str,
    pub(crate) messages: &'a [Message],
    pub(crate) max_tokens: Option<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Answer {
    pub(crate) model: String,
    pub(crate) text: String,
    pub(crate) finish_reason: Option<String>,
    pub(crate) tokens_in: Option<u64>,
    pub(crate) tokens_out: Option<u64>,
    pub(crate) first_token_ms: Option<u64>,
    pub(crate) total_ms: u64,
}

/// Asks, and gives each piece of the text to `on_piece` as it comes. Dropping the future closes the connection, which
/// frees the engine's slot.
pub(crate) async fn ask(
    client: &Client,
    question: &Question<'_>,
    mut on_piece: impl FnMut(&str),
) -> Result<Answer> {
    let began = Instant::now();
    let mut body = json!({
        "model": question.model,
        "messages": question.messages,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if let Some(max_tokens) = question.max_tokens {
        body["max_tokens"] = max_tokens.into();
    }
    let mut events = client.post_events("/v1/chat/completions", &body).await?;
    let mut answer = Answer {
        model: question.model.to_owned(),
        ..Answer::default()
    };
    read(&mut events, &mut answer, began, &mut on_piece).await?;
    answer.total_ms = ms(began.elapsed());
    Ok(answer)
}

/// Reads to the end. An end that is not the dialect's own is an error, because the answer may be half of one.
async fn read(
    events: &mut Events,
    answer: &mut Answer,
    began: Instant,
    on_piece: &mut impl FnMut(&str),
) -> Result<()> {
    while let Some(event) = events.next().await? {
        if event.data == "[DONE]" {
            // The stream's own end follows at once; a connection that was read to it can be used again.
            let rest = async { while let Ok(Some(_)) = events.next().await {} };
            let _ = tokio::time::timeout(LAST_BYTES_WAIT, rest).await;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(&event.data).unwrap_or(Value::Null);
        if let Some(error) = error_in(&chunk) {
            return Err(error.into());
        }
        if let Some(piece) = chunk["choices"][0]["delta"]["content"]
            .as_str()
            .filter(|piece| !piece.is_empty())
        {
            answer.first_token_ms.get_or_insert_with(|| ms(began.elapsed()));
            answer.text.push_str(piece);
            on_piece(piece);
        }
        if let Some(reason) = chunk["choices"][0]["finish_reason"].as_str() {
            answer.finish_reason = Some(reason.to_owned());
        }
        answer.tokens_in = chunk["usage"]["prompt_tokens"].as_u64().or(answer.tokens_in);
        answer.tokens_out = chunk["usage"]["completion_tokens"].as_u64().or(answer.tokens_out);
    }
    Err(Failure::new(Exit::Failed, "the answer broke off before its end").into())
}

fn error_in(chunk: &Value) -> Option<Failure> {
    let error = chunk.get("error").filter(|error| !error.is_null())?;
    let message = error["message"].as_str().unwrap_or("the engine failed");
    match error["code"].as_str() {
        Some(code) => Some(Failure::new(Exit::Failed, format!("{message} ({code})"))),
        None => Some(Failure::new(Exit::Failed, message)),
    }
}

/// The names of the models that the control plane serves now.
pub(crate) async fn models(client: &Client) -> Result<Vec<String>> {
    let listed: Vec<Value> = list_of(client.get("/v1/models").await?, "data")?;
    Ok(listed
        .iter()
        .filter_map(|model| model["id"].as_str())
        .map(str::to_owned)
        .collect())
}

/// The one model there is; with several, the person has to say which.
pub(crate) async fn only_model(client: &Client) -> Result<String> {
    let mut models = models(client).await?;
    match models.len() {
        0 => Err(Failure::new(
            Exit::TryLater,
            format!("{} serves no model at the moment", client.address()),
        )
        .hint("`remuda pools` says why")
        .into()),
        1 => Ok(models.remove(0)),
        _ => Err(
            Failure::new(Exit::Usage, format!("{} serves several models", client.address()))
                .hint(format!("choose one with --model: {}", models.join(", ")))
                .into(),
        ),
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
