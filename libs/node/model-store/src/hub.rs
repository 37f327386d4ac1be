//! The model hub: what a file of a repository is, and where its bytes are.
//!
//! `HEAD {hub}/{org}/{repo}/resolve/{revision}/{file}` answers with a redirect to the bytes; `X-Linked-Etag` and
//! `X-Linked-Size` on the way say what they are. Where they are missing, the tree endpoint
//! `{hub}/api/models/{org}/{repo}/tree/{revision}/{directory}` knows.

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;

use crate::digest::Digest;
use crate::download::{Attempt, DownloadError, RetryPolicy, refusal, send};
use crate::source::HubFile;

/// The largest answer of the tree endpoint that is read.
const TREE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What the hub says about a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileFacts {
    /// Known for large files, which the hub keeps by content.
    pub(crate) sha256: Option<Digest>,
    pub(crate) size_bytes: Option<u64>,
}

/// A model hub.
#[derive(Clone)]
pub(crate) struct Hub<'a> {
    pub(crate) endpoint: &'a Url,
    pub(crate) token: Option<&'a str>,
    pub(crate) client: &'a Client,
    pub(crate) retry: &'a RetryPolicy,
}

#[derive(Deserialize)]
struct TreeEntry {
    path: String,
    size: Option<u64>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    oid: String,
    size: Option<u64>,
}

impl Hub<'_> {
    /// Where the file's bytes are asked for.
    pub(crate) fn resolve_url(&self, file: &HubFile) -> Url {
        let parts = file
            .repository
            .split('/')
            .chain(["resolve", &file.revision])
            .chain(file.file.split('/'));
        self.url(parts)
    }

    /// Asks what the file is. Tried again as downloads are.
    pub(crate) async fn facts(&self, file: &HubFile) -> Result<FileFacts, DownloadError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (error, after) = match self.ask(file).await {
                Ok(facts) => return Ok(facts),
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Again(error, after)) => (error, after),
            };
            if attempts >= self.retry.fruitless_max {
                return Err(DownloadError::Network {
                    what: file.file.clone(),
                    attempts,
                    source: Box::new(error),
                });
            }
            let pause = self
                .retry
                .pause_min
                .saturating_mul(1 << attempts.min(16))
                .min(self.retry.pause_max);
            tokio::time::sleep(after.unwrap_or(pause)).await;
        }
    }

    async fn ask(&self, file: &HubFile) -> Result<FileFacts, Attempt> {
        let mut facts = FileFacts::default();
        let url = self.resolve_url(file);
        let mut note = |response: &Response| {
            let headers = response.headers();
            facts.sha256 = facts
                .sha256
                .or_else(|| header(headers, "x-linked-etag")?.trim_matches('"').parse().ok());
            facts.size_bytes = facts
                .size_bytes
                .or_else(|| header(headers, "x-linked-size")?.parse().ok());
        };
        let response = send(
            self.client,
            Method::HEAD,
            &url,
            self.token,
            &HeaderMap::new(),
            &mut note,
        )
        .await?;
        // What the bytes' own server thinks of HEAD does not matter once the hub has said what they are.
        if !response.status().is_success() && facts.sha256.is_none() {
            return Err(refusal(response, &file.file, self.token.is_some()).await);
        }
        if facts.sha256.is_some() {
            return Ok(facts);
        }
        self.ask_tree(file).await
    }

    async fn ask_tree(&self, file: &HubFile) -> Result<FileFacts, Attempt> {
        let directory = file.file.rsplit_once('/').map_or("", |(directory, _)| directory);
        let parts = ["api", "models"]
            .into_iter()
            .chain(file.repository.split('/'))
            .chain(["tree", &file.revision])
            .chain(directory.split('/').filter(|part| !part.is_empty()));
        let url = self.url(parts);
        let response = send(
            self.client,
            Method::GET,
            &url,
            self.token,
            &HeaderMap::new(),
            &mut |_| (),
        )
        .await?;
        if response.status() == StatusCode::NOT_FOUND {
            // A hub without this endpoint: the file is then taken as it comes.
            return Ok(FileFacts::default());
        }
        if !response.status().is_success() {
            return Err(refusal(response, &file.file, self.token.is_some()).await);
        }
        let body = bounded_body(response).await?;
        let entries: Vec<TreeEntry> = serde_json::from_slice(&body).unwrap_or_default();
        let entry = entries.into_iter().find(|entry| entry.path == file.file);
        Ok(entry.map_or_else(FileFacts::default, |entry| FileFacts {
            sha256: entry.lfs.as_ref().and_then(|large| large.oid.parse().ok()),
            size_bytes: entry.lfs.and_then(|large| large.size).or(entry.size),
        }))
    }

    fn url<'b>(&self, parts: impl Iterator<Item = &'b str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            // A revision such as refs/pr/1 is one part here: its slashes are escaped, as the hub wants them.
            path.pop_if_empty().extend(parts);
        }
        url
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

async fn bounded_body(mut response: Response) -> Result<Vec<u8>, Attempt> {
    let host = crate::download::host_of(response.url());
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= TREE_BYTES_MAX => body.extend_from_slice(&chunk),
            // The file may stand beyond the bound; then its digest is not known, as for a small file.
            Ok(Some(_) | None) => return Ok(body),
            Err(source) => return Err(Attempt::Again(DownloadError::Connection { host, source }, None)),
        }
    }
}
