//! Asking an engine on loopback whether it answers.
//!
//! Plain HTTP/1.1 over a connection of its own: a probe must see what a new client would see, and no proxy setting of
//! the environment may come between.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::recipe;

/// The largest answer to a probe that is read.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why an engine counts as not answering.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("nothing listens on 127.0.0.1:{0}")]
    Connect(u16, #[source] std::io::Error),
    #[error("no answer to GET {path} within {} ms", timeout.as_millis())]
    Timeout { path: String, timeout: Duration },
    #[error("GET {path} failed: {message}")]
    Http { path: String, message: String },
    #[error("GET {path} answered {status}")]
    Status { path: String, status: StatusCode },
    #[error("GET {path} answered something that is not what it should be: {message}")]
    Content { path: String, message: String },
}

/// What an engine that answers says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// How many tasks it takes at once, when it says so.
    pub(crate) slots: Option<u32>,
}

/// Asks everything that a client will need: health, the models, and the properties where there are any.
pub(crate) async fn probe(port: u16, paths: &recipe::Probe, timeout: Duration) -> Result<Answer, ProbeError> {
    get(port, &paths.health, timeout).await?;
    let models = get_json(port, &paths.models, timeout).await?;
    if models["data"].as_array().is_none_or(Vec::is_empty) {
        return Err(ProbeError::Content {
            path: paths.models.clone(),
            message: "no model in `data`".to_owned(),
        });
    }
    let Some(path) = &paths.props else {
        return Ok(Answer { slots: None });
    };
    let props = get_json(port, path, timeout).await?;
    let slots = props["total_slots"]
        .as_u64()
        .and_then(|slots| u32::try_from(slots).ok());
    match slots {
        Some(slots) if slots > 0 => Ok(Answer { slots: Some(slots) }),
        _ => Err(ProbeError::Content {
            path: path.clone(),
            message: "no `total_slots`".to_owned(),
        }),
    }
}

/// Asks whether it still answers at all.
pub(crate) async fn probe_health(
    port: u16,
    paths: &recipe::Probe,
    timeout: Duration,
) -> Result<(), ProbeError> {
    get(port, &paths.health, timeout).await.map(|_| ())
}

async fn get_json(port: u16, path: &str, timeout: Duration) -> Result<Value, ProbeError> {
    let body = get(port, path, timeout).await?;
    serde_json::from_slice(&body).map_err(|error| ProbeError::Content {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

async fn get(port: u16, path: &str, timeout: Duration) -> Result<Bytes, ProbeError> {
    tokio::time::timeout(timeout, get_unbounded(port, path))
        .await
        .map_err(|_| ProbeError::Timeout {
            path: path.to_owned(),
            timeout,
        })?
}

async fn get_unbounded(port: u16, path: &str) -> Result<Bytes, ProbeError> {
    let failed = |message: String| ProbeError::Http {
        path: path.to_owned(),
        message,
    };
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .map_err(|error| ProbeError::Connect(port, error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let request = Request::get(path)
        .header(HOST, format!("127.0.0.1:{port}"))
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(error.to_string()))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(ProbeError::Status {
                path: path.to_owned(),
                status,
            });
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        body.map(http_body_util::Collected::to_bytes)
            .map_err(|error| failed(error.to_string()))
    };
    // The connection makes progress only while it is polled; it ends with the exchange.
    tokio::select! {
        biased;
        answer = exchange => answer,
        Err(error) = connection => Err(failed(error.to_string())),
    }
}
