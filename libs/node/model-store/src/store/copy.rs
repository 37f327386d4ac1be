//! Getting a model from a file of this machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Content, StoreError, file_error, make_directory};
use crate::digest::Digester;
use crate::download::{DownloadError, Downloaded};
use crate::progress::Progress;
use crate::source::Source;

/// Copies a file of this machine, digesting it on the way.
pub(super) async fn copy(
    path: &Path,
    source: &Source,
    partial: PathBuf,
    progress: &Progress,
) -> Result<Content, StoreError> {
    let (path, what, progress) = (path.to_owned(), source.file_name(), progress.clone());
    let target = partial.clone();
    let copied = tokio::task::spawn_blocking(move || copy_file(&path, &target, &what, &progress));
    let got = copied.await.expect("copying a file does not panic")?;
    if let Some(expected) = source.sha256
        && expected != got.sha256
    {
        let _ = fs::remove_file(&partial);
        return Err(DownloadError::Digest {
            what: source.file_name(),
            expected,
            found: got.sha256,
        }
        .into());
    }
    Ok(Content {
        file: Some(partial),
        got,
    })
}

fn copy_file(from: &Path, to: &Path, what: &str, progress: &Progress) -> Result<Downloaded, StoreError> {
    let mut reader = fs::File::open(from).map_err(|source| file_error("open", from, source))?;
    let total = reader
        .metadata()
        .map_err(|source| file_error("read", from, source))?
        .len();
    if let Some(parent) = to.parent() {
        make_directory(parent)?;
    }
    let mut writer = fs::File::create(to).map_err(|source| file_error("write", to, source))?;
    let mut digester = Digester::default();
    let mut buffer = vec![0_u8; 1024 * 1024];
    let mut done = 0;
    loop {
        let count =
            io::Read::read(&mut reader, &mut buffer).map_err(|source| file_error("read", from, source))?;
        if count == 0 {
            break;
        }
        digester.update(&buffer[..count]);
        io::Write::write_all(&mut writer, &buffer[..count])
            .map_err(|source| file_error("write", to, source))?;
        done += count as u64;
        progress.bytes(&format!("copying {what}"), done, Some(total));
    }
    writer
        .sync_all()
        .map_err(|source| file_error("write", to, source))?;
    Ok(Downloaded {
        sha256: digester.finish(),
        size_bytes: done,
    })
}
