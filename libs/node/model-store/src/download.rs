//! One file over HTTP: resumed where it was cut, and used only when it is what it should be.
//!
//! ```text
//! partial file ──▶ GET with Range ──▶ append ──▶ complete? ──▶ SHA-256 right? ──▶ done
//!      ▲                                │cut                        │wrong, and it was resumed
//!      └──────── pause, bounded ────────┘          from the start ◀─┘ (once)
//! ```
//!
//! Redirects are followed here and not by the client, so that a token goes to the host it is for and to no other, and
//! an address that began as https never becomes http.

mod error;
mod partial;

use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Method, Response, StatusCode, Url};

pub use self::error::DownloadError;
use self::partial::Partial;
use crate::digest::Digest;
use crate::progress::Progress;

/// More redirects than this lead nowhere.
const REDIRECTS_MAX: usize = 10;

/// A server cannot make us wait longer than this by `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How much of an error's body is told.
const ERROR_BODY_CHARS_MAX: usize = 200;

/// How often a download is tried again.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Attempts in a row that brought nothing new before it is given up.
    pub fruitless_max: u32,
    /// Attempts in all.
    pub attempts_max: u32,
    /// The first pause; each further one in a row is twice as long.
    pub pause_min: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            fruitless_max: 6,
            attempts_max: 200,
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(30),
        }
    }
}

/// One file to download.
#[derive(Clone, Debug)]
pub struct Download {
    /// Where it is.
    pub url: Url,
    /// What it is called, for people.
    pub what: String,
    /// Sent to the host of `url`, and to no other. Never logged.
    pub token: Option<String>,
    /// What its content must be. Without it the file is taken as it comes.
    pub sha256: Option<Digest>,
    /// How large it must be.
    pub size_bytes: Option<u64>,
    /// Where it is collected, and lies when done. What an earlier run left there is used.
    pub partial: PathBuf,
}

/// A file that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Its digest.
    pub sha256: Digest,
    /// Its size.
    pub size_bytes: u64,
}

/// The client for downloads: it follows no redirects by itself and gives up on a connection that says nothing.
pub fn client() -> Result<Client, DownloadError> {
    // Another part of the process may have chosen a provider before; any of them will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("remuda/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(30))
        .build()
        .map_err(DownloadError::Client)
}

impl Download {
    /// Downloads the file to [`Download::partial`]. Safe to cancel: what has come stays and is used next time.
    pub async fn run(
        &self,
        client: &Client,
        retry: &RetryPolicy,
        progress: &Progress,
    ) -> Result<Downloaded, DownloadError> {
        let mut partial = Partial::open(self, progress).await?;
        let resumed = partial.length > 0;
        match self.collect(&mut partial, client, retry, progress).await {
            Err(DownloadError::Digest { .. } | DownloadError::Size { .. }) if resumed => {
                // The beginning may have been another file's: the one that an earlier run asked for.
                tracing::info!(
                    what = self.what,
                    "the resumed file is wrong: downloading it from the start"
                );
                let mut partial = Partial::open(self, progress).await?;
                self.collect(&mut partial, client, retry, progress).await
            }
            result => result,
        }
    }

    async fn collect(
        &self,
        partial: &mut Partial,
        client: &Client,
        retry: &RetryPolicy,
        progress: &Progress,
    ) -> Result<Downloaded, DownloadError> {
        let (mut attempts, mut fruitless) = (0, 0);
        loop {
            let before = partial.length;
            attempts += 1;
            let failed = match self.attempt(partial, client, progress).await {
                Ok(()) => return self.check(partial).await,
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Again(error, after)) => (error, after),
            };
            let (error, retry_after) = failed;
            fruitless = if partial.length > before { 0 } else { fruitless + 1 };
            if fruitless >= retry.fruitless_max || attempts >= retry.attempts_max {
                let source = Box::new(error);
                return Err(DownloadError::Network {
                    what: self.what.clone(),
                    attempts,
                    source,
                });
            }
            let pause = retry
                .pause_min
                .saturating_mul(1 << fruitless.min(16))
                .min(retry.pause_max);
            let pause = retry_after.unwrap_or(pause.mul_f64(rand::random_range(0.75..1.25)));
            tracing::info!(what = self.what, %error, pause_ms = pause.as_millis(), "trying the download again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(
        &self,
        partial: &mut Partial,
        client: &Client,
        progress: &Progress,
    ) -> Result<(), Attempt> {
        let response = self.request(client, partial).await?;
        let status = response.status();
        let host = host_of(response.url());
        match status {
            StatusCode::OK => {
                partial.restart().await?;
                partial.origin.size_bytes = self.size_bytes.or(response.content_length());
            }
            StatusCode::PARTIAL_CONTENT => {
                let (start, total) = content_range(response.headers()).ok_or_else(|| {
                    let message = "a 206 without a Content-Range that can be read".to_owned();
                    DownloadError::Redirect {
                        host: host.clone(),
                        message,
                    }
                })?;
                if start != partial.length
                    || self
                        .size_bytes
                        .is_some_and(|size| Some(size) != total.or(Some(size)))
                {
                    partial.restart().await?;
                    return Err(Attempt::Again(
                        self.status_error(host, status, String::new()),
                        None,
                    ));
                }
                partial.origin.size_bytes = self.size_bytes.or(total);
            }
            StatusCode::RANGE_NOT_SATISFIABLE if partial.length > 0 => {
                // Either everything is here already, or the beginning is of another file.
                let complete = partial.origin.size_bytes == Some(partial.length);
                if !complete {
                    partial.restart().await?;
                    return Err(Attempt::Again(
                        self.status_error(host, status, String::new()),
                        None,
                    ));
                }
                return Ok(());
            }
            _ => return Err(self.refusal(response).await),
        }
        partial.origin.etag = strong_etag(response.headers());
        partial.save_origin().await?;
        self.receive(partial, response, progress).await
    }

    async fn receive(
        &self,
        partial: &mut Partial,
        mut response: Response,
        progress: &Progress,
    ) -> Result<(), Attempt> {
        let host = host_of(response.url());
        let total = partial.origin.size_bytes;
        partial.check_room(&self.what)?;
        loop {
            progress.bytes(&self.what_is_done(), partial.length, total);
            match response.chunk().await {
                Ok(Some(bytes)) => partial.append(&bytes, &self.what).await?,
                Ok(None) => break,
                Err(source) => {
                    partial.flush().await?;
                    return Err(Attempt::Again(DownloadError::Connection { host, source }, None));
                }
            }
        }
        partial.flush().await?;
        match total {
            Some(total) if partial.length < total => {
                let error = DownloadError::Size {
                    what: self.what.clone(),
                    expected: total,
                    found: partial.length,
                };
                Err(Attempt::Again(error, None))
            }
            _ => Ok(()),
        }
    }

    fn what_is_done(&self) -> String {
        format!("downloading {}", self.what)
    }

    /// Asks for what is missing, following redirects.
    async fn request(&self, client: &Client, partial: &Partial) -> Result<Response, Attempt> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, "identity".parse().expect("a plain word"));
        if let Some(range) = partial.range(self.sha256.is_some()) {
            headers.insert(RANGE, range.parse().expect("a number between plain words"));
            if let Some(etag) = partial.origin.etag.as_ref().filter(|_| self.sha256.is_none()) {
                headers.insert(
                    IF_RANGE,
                    etag.parse()
                        .map_err(|_| self.odd("an ETag that is no header value"))?,
                );
            }
        }
        send(
            client,
            Method::GET,
            &self.url,
            self.token.as_deref(),
            &headers,
            &mut |_| (),
        )
        .await
    }

    fn odd(&self, message: &str) -> DownloadError {
        DownloadError::Redirect {
            host: host_of(&self.url),
            message: message.to_owned(),
        }
    }

    fn status_error(&self, host: String, status: StatusCode, body: String) -> DownloadError {
        DownloadError::Status {
            host,
            status,
            what: self.what.clone(),
            body,
        }
    }

    async fn refusal(&self, response: Response) -> Attempt {
        refusal(response, &self.what, self.token.is_some()).await
    }

    async fn check(&self, partial: &mut Partial) -> Result<Downloaded, DownloadError> {
        let found = partial.length;
        if let Some(expected) = self.size_bytes
            && expected != found
        {
            partial.discard().await;
            return Err(DownloadError::Size {
                what: self.what.clone(),
                expected,
                found,
            });
        }
        let sha256 = partial.digester.clone().finish();
        if let Some(expected) = self.sha256
            && expected != sha256
        {
            partial.discard().await;
            return Err(DownloadError::Digest {
                what: self.what.clone(),
                expected,
                found: sha256,
            });
        }
        partial.sync().await?;
        Ok(Downloaded {
            sha256,
            size_bytes: found,
        })
    }
}

/// Why an attempt ended without the whole file.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Trying again will not help.
    Fatal(DownloadError),
    /// Trying again may help, after as long as the server asks for.
    Again(DownloadError, Option<Duration>),
}

impl From<DownloadError> for Attempt {
    fn from(error: DownloadError) -> Self {
        Self::Fatal(error)
    }
}

/// Sends a request and follows redirects. `on_response` sees each response on the way.
pub(crate) async fn send(
    client: &Client,
    method: Method,
    url: &Url,
    token: Option<&str>,
    headers: &HeaderMap,
    on_response: &mut (dyn FnMut(&Response) + Send),
) -> Result<Response, Attempt> {
    let mut at = url.clone();
    for _ in 0..=REDIRECTS_MAX {
        let mut request = client
            .request(method.clone(), at.clone())
            .headers(headers.clone());
        if let Some(token) = token.filter(|_| same_origin(url, &at)) {
            request = request.bearer_auth(token);
        }
        let host = host_of(&at);
        let response = request.send().await.map_err(|source| {
            Attempt::Again(
                DownloadError::Connection {
                    host,
                    source: source.without_url(),
                },
                None,
            )
        })?;
        on_response(&response);
        if !response.status().is_redirection() {
            return Ok(response);
        }
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok());
        at = redirect_target(&at, location)?;
    }
    let message = format!("more than {REDIRECTS_MAX} times");
    Err(DownloadError::Redirect {
        host: host_of(url),
        message,
    }
    .into())
}

/// Where a redirect leads, if it may be followed.
fn redirect_target(from: &Url, location: Option<&str>) -> Result<Url, DownloadError> {
    let refused = |message: String| DownloadError::Redirect {
        host: host_of(from),
        message,
    };
    let location = location.ok_or_else(|| refused("a redirect without a Location".to_owned()))?;
    let target = from.join(location).map_err(|error| refused(error.to_string()))?;
    match (from.scheme(), target.scheme()) {
        (_, "https") | ("http", "http") => Ok(target),
        (from, to) => Err(refused(format!("from {from} to {to}"))),
    }
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// Host and port, which is all of an address that errors and logs show: the rest may hold signatures.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What an answer that is not the file means.
pub(crate) async fn refusal(response: Response, what: &str, with_token: bool) -> Attempt {
    let (status, host, what) = (response.status(), host_of(response.url()), what.to_owned());
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|after| after.to_str().ok()?.parse().ok());
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let hint = if with_token {
                "the token in HF_TOKEN is wrong or has no access to it"
            } else {
                "a token with access to it is needed, in HF_TOKEN"
            };
            DownloadError::Forbidden {
                host,
                status,
                what,
                hint,
            }
            .into()
        }
        StatusCode::NOT_FOUND => DownloadError::NotFound { host, what }.into(),
        _ => {
            let body = beginning_of_body(response).await;
            let error = DownloadError::Status {
                host,
                status,
                what,
                body,
            };
            let again = status.is_server_error()
                || matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                );
            if again {
                Attempt::Again(
                    error,
                    retry_after.map(|s| Duration::from_secs(s).min(RETRY_AFTER_MAX)),
                )
            } else {
                Attempt::Fatal(error)
            }
        }
    }
}

async fn beginning_of_body(mut response: Response) -> String {
    let chunk = response.chunk().await.ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&chunk)
        .chars()
        .filter(|c| !c.is_control())
        .take(ERROR_BODY_CHARS_MAX)
        .collect()
}

fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = headers
        .get(CONTENT_RANGE)?
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, total.parse().ok()))
}

fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get(ETAG)?.to_str().ok()?;
    etag.starts_with('"').then(|| etag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(from: &str, location: Option<&str>) -> Option<String> {
        redirect_target(&from.parse().unwrap(), location)
            .ok()
            .map(String::from)
    }

    #[test]
    fn a_redirect_never_leads_from_https_to_http() {
        let from = "https://hub.example/a/b";
        assert_eq!(
            redirect(from, Some("/c")).as_deref(),
            Some("https://hub.example/c")
        );
        assert_eq!(
            redirect(from, Some("https://cdn.example/x")).as_deref(),
            Some("https://cdn.example/x")
        );
        assert_eq!(redirect(from, Some("http://hub.example/c")), None);
        assert_eq!(redirect(from, Some("file:///etc/passwd")), None);
        assert_eq!(redirect(from, None), None);
        assert!(redirect("http://hub.example", Some("https://hub.example")).is_some());
    }

    #[test]
    fn a_token_stays_with_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://hub.example/a", "https://hub.example:443/b"));
        assert!(!same("https://hub.example", "http://hub.example"));
        assert!(!same("https://hub.example", "https://hub.example:8443"));
        assert!(!same("https://hub.example", "https://hub.example.org"));
    }
}
