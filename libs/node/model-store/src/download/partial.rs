//! The part of a file that is here already, and what it is the beginning of.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::{Download, DownloadError};
use crate::digest::{Digest, Digester, digest_file};
use crate::progress::Progress;

/// What is known of the file that a partial file is the beginning of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    url: String,
    /// A strong validator that the server gave.
    pub(super) etag: Option<String>,
    pub(super) size_bytes: Option<u64>,
    sha256: Option<Digest>,
}

/// The part of the file that is here already.
pub(super) struct Partial {
    path: PathBuf,
    file: tokio::fs::File,
    pub(super) length: u64,
    pub(super) digester: Digester,
    pub(super) origin: Origin,
}

impl Partial {
    /// Opens what an earlier run left, if it is the beginning of the same file.
    pub(super) async fn open(download: &Download, progress: &Progress) -> Result<Self, DownloadError> {
        let path = download.partial.clone();
        if let Some(parent) = path.parent() {
            let made = tokio::fs::create_dir_all(parent).await;
            made.map_err(|source| file_error("make the directory", parent, source))?;
        }
        let wanted = Origin {
            url: download.url.to_string(),
            etag: None,
            size_bytes: download.size_bytes,
            sha256: download.sha256,
        };
        let origin = read_origin(&path)
            .await
            .filter(|origin| is_beginning_of(origin, &wanted));
        let (digester, length) = match &origin {
            None => (Digester::default(), 0),
            Some(_) => digest_partial(&path, &download.what, progress).await?,
        };
        let file = tokio::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .await;
        let file = file.map_err(|source| file_error("open", &path, source))?;
        let origin = origin.unwrap_or(wanted);
        let mut partial = Self {
            path,
            file,
            length,
            digester,
            origin,
        };
        if length == 0 {
            partial.restart().await?;
        }
        Ok(partial)
    }

    /// The header that asks for the rest. Without a digest or a validator, the rest may be another file's.
    pub(super) fn range(&self, has_digest: bool) -> Option<String> {
        let safe = has_digest || self.origin.etag.is_some();
        (self.length > 0 && safe).then(|| format!("bytes={}-", self.length))
    }

    pub(super) async fn restart(&mut self) -> Result<(), DownloadError> {
        self.file
            .set_len(0)
            .await
            .map_err(|source| file_error("empty", &self.path, source))?;
        self.length = 0;
        self.digester = Digester::default();
        Ok(())
    }

    pub(super) async fn append(&mut self, bytes: &[u8], what: &str) -> Result<(), DownloadError> {
        if let Err(source) = self.file.write_all(bytes).await {
            return Err(self.write_error(source, what));
        }
        self.digester.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub(super) async fn flush(&mut self) -> Result<(), DownloadError> {
        let flushed = self.file.flush().await;
        flushed.map_err(|source| self.write_error(source, ""))
    }

    pub(super) async fn sync(&mut self) -> Result<(), DownloadError> {
        self.flush().await?;
        self.file
            .sync_all()
            .await
            .map_err(|source| file_error("write", &self.path, source))?;
        let _ = tokio::fs::remove_file(origin_path(&self.path)).await;
        Ok(())
    }

    pub(super) async fn discard(&mut self) {
        let _ = tokio::fs::remove_file(&self.path).await;
        let _ = tokio::fs::remove_file(origin_path(&self.path)).await;
    }

    pub(super) async fn save_origin(&self) -> Result<(), DownloadError> {
        let path = origin_path(&self.path);
        let json = serde_json::to_vec(&self.origin).expect("an origin is made of texts and numbers");
        let written = tokio::fs::write(&path, json).await;
        written.map_err(|source| self.write_error(source, ""))
    }

    /// Refuses what will not fit before anything is written.
    pub(super) fn check_room(&self, what: &str) -> Result<(), DownloadError> {
        let Some(total) = self.origin.size_bytes else {
            return Ok(());
        };
        let needed_bytes = total.saturating_sub(self.length);
        match free_bytes(&self.path) {
            Some(free_bytes) if free_bytes < needed_bytes => Err(DownloadError::DiskFull {
                what: what.to_owned(),
                path: self.path.clone(),
                needed_bytes,
                free_bytes,
            }),
            _ => Ok(()),
        }
    }

    fn write_error(&self, source: io::Error, what: &str) -> DownloadError {
        if !matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            return file_error("write", &self.path, source);
        }
        DownloadError::DiskFull {
            what: if what.is_empty() {
                "the file".to_owned()
            } else {
                what.to_owned()
            },
            path: self.path.clone(),
            needed_bytes: self
                .origin
                .size_bytes
                .map_or(0, |total| total.saturating_sub(self.length)),
            free_bytes: free_bytes(&self.path).unwrap_or(0),
        }
    }
}

/// Whether what was begun for `origin` can be gone on with for `wanted`.
fn is_beginning_of(origin: &Origin, wanted: &Origin) -> bool {
    match (origin.sha256, wanted.sha256) {
        (Some(a), Some(b)) => a == b,
        (None, None) => origin.url == wanted.url && origin.etag.is_some(),
        _ => false,
    }
}

async fn read_origin(partial: &Path) -> Option<Origin> {
    serde_json::from_slice(&tokio::fs::read(origin_path(partial)).await.ok()?).ok()
}

fn origin_path(partial: &Path) -> PathBuf {
    let mut name = partial.as_os_str().to_owned();
    name.push(".origin");
    PathBuf::from(name)
}

async fn digest_partial(
    path: &Path,
    what: &str,
    progress: &Progress,
) -> Result<(Digester, u64), DownloadError> {
    let (path, progress, label) = (
        path.to_owned(),
        progress.clone(),
        format!("reading the beginning of {what}"),
    );
    let read = tokio::task::spawn_blocking(move || {
        match digest_file(&path, |done| progress.bytes(&label, done, None)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Digester::default(), 0)),
            result => result.map_err(|source| file_error("read", &path, source)),
        }
    });
    read.await.expect("reading a file does not panic")
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> DownloadError {
    DownloadError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

fn free_bytes(path: &Path) -> Option<u64> {
    let directory = path.parent()?;
    let state = rustix::fs::statvfs(directory).ok()?;
    Some(state.f_bavail.saturating_mul(state.f_frsize))
}
