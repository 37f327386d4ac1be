//! Getting a built engine from a release archive with a pinned digest.

use std::path::{Path, PathBuf};

use model_store::{Digest, Download, Progress, RetryPolicy, Url};

use super::engine::EngineError;
use super::unpack::{Within, unpack};
use crate::recipe::Archive;

/// Downloads and unpacks the archive into `target`, and answers where the program is.
pub(super) async fn get_archive(
    archive: &Archive,
    cache_dir: &Path,
    target: &Path,
    progress: &Progress,
) -> Result<PathBuf, EngineError> {
    let url = Url::parse(&archive.url).map_err(|_| EngineError::ArchiveUrl(archive.url.clone()))?;
    let sha256: Digest = archive
        .sha256
        .parse()
        .map_err(|_| EngineError::Pin(archive.sha256.clone()))?;
    let what = url.path().rsplit('/').next().unwrap_or("the archive").to_owned();
    let partial = cache_dir.join("sources").join(format!("{sha256}.tar.gz"));
    let download = Download {
        url,
        what,
        token: None,
        sha256: Some(sha256),
        size_bytes: None,
        partial: partial.clone(),
    };
    let client = model_store::client()?;
    download.run(&client, &RetryPolicy::default(), progress).await?;
    let (from, to, progress) = (partial.clone(), target.to_owned(), progress.clone());
    tokio::task::spawn_blocking(move || unpack(&from, &Within::All, &to, &progress))
        .await
        .expect("unpacking does not panic")?;
    // It has been unpacked and is not needed again.
    let _ = std::fs::remove_file(&partial);
    Ok(target.join(&archive.program))
}
