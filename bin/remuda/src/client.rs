//! A client of a control plane: the address and the key, requests, and errors that say what to do.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use task_api::ErrorBody;

use crate::failure::{Exit, Failure};
use crate::sse::{Reader, ServerEvent};

/// Where a control plane is unless somebody says otherwise.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:8080";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer that is no stream may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer that is read into memory.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Which control plane to speak to
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Control plane")]
pub(crate) struct ControlPlane {
    /// Its address; a command that cannot do without one takes http://127.0.0.1:8080
    #[arg(
        long,
        env = "REMUDA_URL",
        value_name = "URL",
        global = true,
        hide_env_values = true
    )]
    pub(crate) url: Option<String>,

    /// The key to show it
    #[arg(
        long,
        env = "REMUDA_API_KEY",
        value_name = "KEY",
        global = true,
        hide_env_values = true
    )]
    pub(crate) api_key: Option<String>,

    /// A file with the certificate authority to trust, for a control plane with a private one
    #[arg(
        long,
        env = "REMUDA_CA",
        value_name = "FILE",
        global = true,
        hide_env_values = true
    )]
    pub(crate) ca: Option<PathBuf>,
}

impl ControlPlane {
    pub(crate) fn client(&self) -> Result<Client> {
        Client::new(
            self.url.as_deref().unwrap_or(DEFAULT_URL),
            self.api_key.as_deref(),
            self.ca.as_ref(),
        )
    }
}

/// A connection to one control plane. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    api_key: Option<String>,
}

impl Client {
    pub(crate) fn new(address: &str, api_key: Option<&str>, ca: Option<&PathBuf>) -> Result<Self> {
        let base = parse_address(address)?;
        let mut builder = builder();
        if is_loopback(&base) {
            // A proxy from the environment cannot reach this machine's own loopback.
            builder = builder.no_proxy();
        }
        if let Some(path) = ca {
            let pem = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .with_context(|| format!("{} holds no certificate in PEM form", path.display()))?;
            builder = builder.tls_certs_only(certificates);
        } else if base.scheme() == "http" {
            // Reading the system's certificates takes longer than most commands.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().context("preparing the HTTP client")?;
        Ok(Self {
            http,
            base,
            api_key: api_key.map(str::to_owned),
        })
    }

    /// For the control plane in this very process, which need not prove who it is.
    pub(crate) fn to_ourselves(address: &str) -> Result<Self> {
        let builder = builder().no_proxy().tls_danger_accept_invalid_certs(true);
        Ok(Self {
            http: builder.build().context("preparing the HTTP client")?,
            base: parse_address(address)?,
            api_key: None,
        })
    }

    /// The control plane's address as given.
    pub(crate) fn address(&self) -> &str {
        address_of(&self.base)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self
            .send(self.request(Method::GET, path).timeout(ANSWER_TIMEOUT))
            .await?;
        self.read(response).await
    }

    /// Posts a body and reads the answer; an empty answer reads as `null`.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let response = self
            .send(
                self.request(Method::POST, path)
                    .timeout(ANSWER_TIMEOUT)
                    .json(body),
            )
            .await?;
        self.read(response).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<()> {
        self.send(self.request(Method::DELETE, path).timeout(ANSWER_TIMEOUT))
            .await
            .map(|_| ())
    }

    /// Opens a stream of events with a GET.
    pub(crate) async fn get_events(&self, path: &str, last_event_id: Option<&str>) -> Result<Events> {
        let mut request = self
            .request(Method::GET, path)
            .header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        Ok(Events::new(self.send(request).await?, self.address()))
    }

    /// Opens a stream of events with a POST.
    pub(crate) async fn post_events(&self, path: &str, body: &impl Serialize) -> Result<Events> {
        let request = self
            .request(Method::POST, path)
            .header("accept", "text/event-stream")
            .json(body);
        Ok(Events::new(self.send(request).await?, self.address()))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let address = format!("{}{path}", self.address());
        let request = self.http.request(method, address);
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request; an answer that is no success is an error here.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request
            .send()
            .await
            .map_err(|error| unreachable(&error, self.address()))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await.into())
    }

    async fn refusal(&self, response: Response) -> Failure {
        let status = response.status();
        let body = read_bounded(response).await.unwrap_or_default();
        refusal_of(status, &body, self.address(), self.api_key.is_some())
    }

    pub(crate) async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        let body = read_bounded(response).await.context("reading the answer")?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body)
            .with_context(|| format!("{} answered something else than expected", self.address()))
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
}

/// A stream of events.
#[derive(Debug)]
pub(crate) struct Events {
    response: Response,
    address: String,
    reader: Reader,
    ready: std::collections::VecDeque<ServerEvent>,
}

impl Events {
    fn new(response: Response, address: &str) -> Self {
        let (reader, ready) = (Reader::default(), std::collections::VecDeque::new());
        Self {
            response,
            address: address.to_owned(),
            reader,
            ready,
        }
    }

    /// The next event; none when the stream has ended. Cancel safe: no event is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<ServerEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let chunk = self.response.chunk().await;
            let chunk = chunk.with_context(|| format!("{} broke off in mid-answer", self.address))?;
            let Some(chunk) = chunk else { return Ok(None) };
            let mut events = Vec::new();
            self.reader.push(&chunk, &mut events)?;
            self.ready.extend(events);
        }
    }
}

/// Takes what people type: `localhost:8080` means `http://localhost:8080`, and a trailing `/v1` is one too many.
fn parse_address(address: &str) -> Result<Url> {
    let text = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let wrong = |why: &str| {
        Failure::new(
            Exit::Usage,
            format!("{address:?} is no address of a control plane: {why}"),
        )
        .hint(format!("an address looks like {DEFAULT_URL}"))
    };
    let url = Url::parse(text.trim_end_matches('/').trim_end_matches("/v1"))
        .map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("it must begin with http:// or https://").into());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("it names no host").into());
    }
    Ok(url)
}

fn address_of(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn unreachable(error: &reqwest::Error, address: &str) -> Failure {
    if error.is_timeout() {
        return Failure::new(Exit::Unreachable, format!("{address} did not answer in time"))
            .hint("is it the right address, and is the machine up?");
    }
    let sides = daemon::tls::Sides {
        us: "command",
        them: "control plane",
    };
    if let Some(refusal) = daemon::tls::explain(error, sides) {
        return Failure::new(Exit::Unreachable, format!("no TLS with {address}: {refusal}")).hint(
            "say which CA signs its certificate with --ca or REMUDA_CA (ca.pem of `remuda certs init`)",
        );
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if !error.is_connect() {
        return Failure::new(
            Exit::Unreachable,
            format!("{address} broke off without an answer: {cause}"),
        );
    }
    let failure = Failure::new(
        Exit::Unreachable,
        format!("no control plane answers at {address}: {cause}"),
    );
    failure.hint("start one with `remuda up`, or say where one is with --url or REMUDA_URL")
}

/// What an answer that is no success means.
fn refusal_of(status: StatusCode, body: &[u8], address: &str, has_key: bool) -> Failure {
    let (exit, message, retry_after_ms) = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(error) => {
            let text = match &error.param {
                Some(param) => format!("{} ({}, at {param})", error.message, error.code.as_str()),
                None => format!("{} ({})", error.message, error.code.as_str()),
            };
            (Exit::of_code(error.code), text, error.retry_after_ms)
        }
        Err(_) => (
            Exit::of_status(status.as_u16()),
            dialect_message(status, body, address),
            None,
        ),
    };
    let failure = Failure::new(exit, message);
    match exit {
        Exit::Refused if has_key => failure.hint("the key is not known there, or may not do this"),
        Exit::Refused => {
            failure.hint("show a key with --api-key or REMUDA_API_KEY; `remuda keys create` makes one")
        }
        Exit::TryLater => match retry_after_ms {
            Some(ms) => failure.hint(format!(
                "try again in {}",
                crate::output::duration(Duration::from_millis(ms))
            )),
            None => failure,
        },
        _ => failure,
    }
}

/// The message in an error of one of the `/v1` dialects, which all keep it at `error.message`.
fn dialect_message(status: StatusCode, body: &[u8], address: &str) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    match json["error"]["message"]
        .as_str()
        .or_else(|| json["message"].as_str())
    {
        Some(message) => message.to_owned(),
        None => format!("{address} answered {status}, and not as a control plane does"),
    }
}

async fn read_bounded(mut response: Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(
            body.len() + chunk.len() <= ANSWER_BYTES_MAX,
            "an answer of more than {ANSWER_BYTES_MAX} bytes"
        );
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The elements of a list that may stand alone or under a name.
pub(crate) fn list_of<T: DeserializeOwned>(mut value: Value, name: &str) -> Result<Vec<T>> {
    let list = if value.is_array() {
        value
    } else {
        value[name].take()
    };
    serde_json::from_value(list)
        .with_context(|| format!("the control plane answered something else than {name}"))
}

/// A path segment made from what a person typed.
pub(crate) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                (byte as char).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_as_people_type_it() {
        let case = |typed: &str, expect: &str| {
            assert_eq!(address_of(&parse_address(typed).unwrap()), expect, "{typed}");
        };
        case("localhost:8080", "http://localhost:8080");
        case("http://10.0.0.1:8080/", "http://10.0.0.1:8080");
        case("http://h:1/v1", "http://h:1");
        case("http://h:1/v1/", "http://h:1");
        for wrong in ["ftp://h", "http://", "http://h:99999"] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_refusal_says_what_and_what_to_do() {
        let body = br#"{"code":"ADMISSION_REJECT","message":"full","retriable":true,"retry_after_ms":1500}"#;
        let failure = refusal_of(StatusCode::TOO_MANY_REQUESTS, body, "http://h", true);
        assert_eq!(
            format!("{failure:?}"),
            r#"Failure { exit: TryLater, message: "full (ADMISSION_REJECT)", hint: Some("try again in 1.5 s") }"#
        );
        let failure = refusal_of(StatusCode::NOT_FOUND, b"<html>", "http://h", true);
        assert_eq!(
            failure.to_string(),
            "http://h answered 404 Not Found, and not as a control plane does"
        );
        let failure = refusal_of(
            StatusCode::UNAUTHORIZED,
            br#"{"error":{"message":"no key"}}"#,
            "http://h",
            false,
        );
        assert!(format!("{failure:?}").contains("remuda keys create"));
    }

    #[test]
    fn a_path_segment_cannot_leave_its_place() {
        assert_eq!(segment("a/../b?c"), "a%2F..%2Fb%3Fc");
    }
}
