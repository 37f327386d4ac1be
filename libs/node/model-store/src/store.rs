//! The store: blobs by content, manifests by name.
//!
//! ```text
//! <cache>/models/blobs/sha256-<hex>        the content, under its digest
//!               /manifests/<name>.json     a name, what it stands for, where it came from
//!               /partial/<key>             downloads that are not complete
//!               /locks/<key>               one pull of a source at a time
//!               /lock                      held while names and blobs are changed together
//! ```
//! A blob appears under its name only when it is complete and its digest is right.

mod copy;
mod error;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use process::LockFile;
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};

pub use self::error::StoreError;
use crate::digest::{Digest, digest_file};
use crate::download::{Download, DownloadError, Downloaded, RetryPolicy, client};
use crate::hub::Hub;
use crate::progress::Progress;
use crate::source::{HubFile, Place, Source};

/// The longest name of a model.
pub(crate) const NAME_LEN_MAX: usize = 128;

/// How often a pull that another process does is looked at.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);

/// How long names and blobs may be held by another process: it renames a file and writes a small one.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024;

/// Where models are kept and where they come from.
#[derive(Clone)]
pub struct StoreOptions {
    /// The cache directory; the store lies in `models` below it.
    pub cache_dir: PathBuf,
    /// The model hub's address.
    pub hub_endpoint: String,
    /// Sent to the hub only. Never logged.
    pub hub_token: Option<String>,
    /// How often downloads are tried again.
    pub retry: RetryPolicy,
}

impl StoreOptions {
    /// The public hub, no token, the usual patience.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            hub_endpoint: crate::HUB_ENDPOINT.to_owned(),
            hub_token: None,
            retry: RetryPolicy::default(),
        }
    }
}

/// The models of one cache directory.
#[derive(Clone)]
pub struct Store {
    options: StoreOptions,
    root: PathBuf,
}

/// A model in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// The name that it goes by.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// Its digest.
    pub sha256: Digest,
    /// Its size.
    pub size_bytes: u64,
    /// When it was pulled, RFC 3339.
    pub created: String,
    /// Where its content is.
    pub path: PathBuf,
}

/// What stands in a manifest file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    name: String,
    source: String,
    sha256: Digest,
    size_bytes: u64,
    created: String,
}

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// How many bytes are free again: 0 while another name stands for the same content.
    pub freed_bytes: u64,
}

impl Store {
    /// The store of `options`. Nothing is touched yet.
    pub fn new(options: StoreOptions) -> Self {
        let root = options.cache_dir.join("models");
        Self { options, root }
    }

    /// Gets the model from `source` as it is there now, under `name` or the source's own.
    ///
    /// What is here already is not downloaded again; the hub is asked whether it has changed. Safe to cancel: what has
    /// come stays and is used next time.
    pub async fn pull(
        &self,
        source: &Source,
        name: Option<&str>,
        progress: &Progress,
    ) -> Result<Model, StoreError> {
        let name = name.map_or_else(|| source.default_name(), str::to_owned);
        check_name(&name)?;
        if let Some(parts) = source.parts() {
            return Err(StoreError::Parts {
                file: source.file_name(),
                parts,
            });
        }
        self.check_free(&name, source)?;
        let key = Digest::of(source.to_string().as_bytes()).to_string()[..24].to_owned();
        let _lock = self.lock_pull(&key, source, progress).await?;
        let partial = self.root.join("partial").join(&key);
        let content = match &source.place {
            Place::Hub(file) => self.pull_hub(file, source, partial, progress).await?,
            Place::Url(url) => self.pull_url(url, source, partial, progress).await?,
            Place::File(path) => copy::copy(path, source, partial, progress).await?,
        };
        self.keep(&name, source, &content)
    }

    /// The model from `source`, pulled only when it is not here: then nothing is asked over the network.
    pub async fn ensure(&self, source: &Source, progress: &Progress) -> Result<Model, StoreError> {
        let text = source.to_string();
        let here = self
            .list()?
            .into_iter()
            .find(|model| model.source == text && is_whole(model));
        match here {
            Some(model) => Ok(model),
            None => self.pull(source, None, progress).await,
        }
    }

    /// Every model, by name. A manifest that cannot be read is left out and logged.
    pub fn list(&self) -> Result<Vec<Model>, StoreError> {
        let directory = self.root.join("manifests");
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(file_error("read", &directory, source)),
        };
        let mut models = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(|source| file_error("read", &directory, source))?
                .path();
            if !is_manifest(&path) {
                continue;
            }
            match read_manifest(&path) {
                Ok(manifest) => models.push(self.model(manifest)),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a manifest cannot be read"),
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// The model of this name.
    pub fn get(&self, name: &str) -> Result<Option<Model>, StoreError> {
        check_name(name)?;
        let path = self.manifest_path(name);
        match read_manifest(&path) {
            Ok(manifest) => Ok(Some(self.model(manifest))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(file_error("read", &path, source)),
        }
    }

    /// Reads the whole content and compares it with its digest.
    pub async fn verify(&self, name: &str, progress: &Progress) -> Result<Model, StoreError> {
        let model = self
            .get(name)?
            .ok_or_else(|| StoreError::NoSuchModel(name.to_owned()))?;
        let (path, progress, what, total) = (
            model.path.clone(),
            progress.clone(),
            format!("verifying {name}"),
            model.size_bytes,
        );
        let digested = tokio::task::spawn_blocking(move || {
            digest_file(&path, |done| progress.bytes(&what, done, Some(total)))
                .map(|(digester, _)| digester.finish())
        });
        let damaged = |message: String| StoreError::Damaged {
            name: name.to_owned(),
            message,
        };
        match digested.await.expect("reading a file does not panic") {
            Ok(found) if found == model.sha256 => Ok(model),
            Ok(found) => Err(damaged(format!("its SHA-256 is {found}, not {}", model.sha256))),
            Err(error) => Err(damaged(format!(
                "{} cannot be read: {error}",
                model.path.display()
            ))),
        }
    }

    /// Removes a name, and its content when no other name stands for it.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let _lock = self.lock()?;
        if self.get(name)?.is_none() {
            return Err(StoreError::NoSuchModel(name.to_owned()));
        }
        let path = self.manifest_path(name);
        fs::remove_file(&path).map_err(|source| file_error("remove", &path, source))?;
        Ok(Removed {
            freed_bytes: self.sweep()?,
        })
    }

    /// Removes content that no name stands for, and temporary files: what an end at a bad moment left, and what a
    /// newer pull has replaced. Only under the store's lock. Answers how many bytes are free again.
    fn sweep(&self) -> Result<u64, StoreError> {
        let manifests = files_of(&self.root.join("manifests")).filter(|path| is_manifest(path));
        let kept: io::Result<Vec<PathBuf>> = manifests
            .map(|path| Ok(self.model(read_manifest(&path)?).path))
            .collect();
        let Ok(kept) = kept else {
            // A manifest that cannot be read may stand for any content.
            return Ok(0);
        };
        let mut freed_bytes = 0;
        for path in files_of(&self.root.join("blobs")).filter(|path| !kept.contains(path)) {
            freed_bytes += fs::metadata(&path).map_or(0, |metadata| metadata.len());
            fs::remove_file(&path).map_err(|source| file_error("remove", &path, source))?;
        }
        for path in files_of(&self.root.join("manifests")) {
            if path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            {
                fs::remove_file(&path).map_err(|source| file_error("remove", &path, source))?;
            }
        }
        Ok(freed_bytes)
    }

    async fn pull_hub(
        &self,
        file: &HubFile,
        source: &Source,
        partial: PathBuf,
        progress: &Progress,
    ) -> Result<Content, StoreError> {
        let wrong = || StoreError::Endpoint(self.options.hub_endpoint.clone());
        let endpoint = Url::parse(&self.options.hub_endpoint).map_err(|_| wrong())?;
        if endpoint.cannot_be_a_base() {
            return Err(wrong());
        }
        let client = client()?;
        let token = self
            .options
            .hub_token
            .as_deref()
            .filter(|token| !token.is_empty());
        let hub = Hub {
            endpoint: &endpoint,
            token,
            client: &client,
            retry: &self.options.retry,
        };
        let facts = hub.facts(file).await?;
        let download = Download {
            url: hub.resolve_url(file),
            what: source.file_name(),
            token: token.map(str::to_owned),
            sha256: facts.sha256,
            size_bytes: facts.size_bytes,
            partial,
        };
        self.download(&client, download, source, progress).await
    }

    async fn pull_url(
        &self,
        url: &Url,
        source: &Source,
        partial: PathBuf,
        progress: &Progress,
    ) -> Result<Content, StoreError> {
        let client = client()?;
        let what = source.file_name();
        let download = Download {
            url: url.clone(),
            what,
            token: None,
            sha256: None,
            size_bytes: None,
            partial,
        };
        self.download(&client, download, source, progress).await
    }

    /// Downloads what is not here yet. `download` says what its server knows of it, `source` what the asker knows.
    async fn download(
        &self,
        client: &Client,
        mut download: Download,
        source: &Source,
        progress: &Progress,
    ) -> Result<Content, StoreError> {
        if let (Some(expected), Some(found)) = (source.sha256, download.sha256)
            && expected != found
        {
            return Err(DownloadError::Digest {
                what: download.what,
                expected,
                found,
            }
            .into());
        }
        download.sha256 = source.sha256.or(download.sha256);
        if let Some(sha256) = download.sha256
            && let Ok(metadata) = fs::metadata(self.blob_path(&sha256))
            && download.size_bytes.is_none_or(|size| size == metadata.len())
        {
            // Blobs are named after they were checked.
            return Ok(Content {
                file: None,
                got: Downloaded {
                    sha256,
                    size_bytes: metadata.len(),
                },
            });
        }
        let got = download.run(client, &self.options.retry, progress).await?;
        Ok(Content {
            file: Some(download.partial),
            got,
        })
    }

    /// Puts content in its place and writes the manifest.
    fn keep(&self, name: &str, source: &Source, content: &Content) -> Result<Model, StoreError> {
        let _lock = self.lock()?;
        self.check_free(name, source)?;
        let blob = self.blob_path(&content.got.sha256);
        if let Some(file) = &content.file {
            check_magic(file, source)?;
            make_directory(&self.root.join("blobs"))?;
            fs::rename(file, &blob).map_err(|source| file_error("rename a file to", &blob, source))?;
        }
        if !blob.is_file() {
            let message = "another process removed it while it was pulled".to_owned();
            return Err(StoreError::Damaged {
                name: name.to_owned(),
                message,
            });
        }
        let manifest = Manifest {
            name: name.to_owned(),
            source: source.to_string(),
            sha256: content.got.sha256,
            size_bytes: content.got.size_bytes,
            created: jiff::Timestamp::now().to_string(),
        };
        self.write_manifest(&manifest)?;
        self.sweep()?;
        Ok(self.model(manifest))
    }

    fn write_manifest(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let directory = self.root.join("manifests");
        make_directory(&directory)?;
        let path = self.manifest_path(&manifest.name);
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            serde_json::to_writer_pretty(&mut file, manifest)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|source| file_error("write", &path, source))
    }

    /// Refuses a name that stands for something from elsewhere.
    fn check_free(&self, name: &str, source: &Source) -> Result<(), StoreError> {
        match self.get(name)? {
            Some(model) if model.source != source.to_string() => Err(StoreError::NameTaken {
                name: name.to_owned(),
                source_now: model.source,
            }),
            _ => Ok(()),
        }
    }

    async fn lock_pull(
        &self,
        key: &str,
        source: &Source,
        progress: &Progress,
    ) -> Result<LockFile, StoreError> {
        let path = self.root.join("locks").join(key);
        loop {
            let lock = LockFile::try_acquire(&path).map_err(|source| file_error("lock", &path, source))?;
            if let Some(lock) = lock {
                return Ok(lock);
            }
            progress.pieces(
                &format!("waiting for another process that gets {}", source.file_name()),
                0,
                None,
            );
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
    }

    fn lock(&self) -> Result<LockFile, StoreError> {
        let path = self.root.join("lock");
        let lock =
            LockFile::acquire(&path, LOCK_TIMEOUT).map_err(|source| file_error("lock", &path, source))?;
        lock.ok_or(StoreError::Busy)
    }

    fn model(&self, manifest: Manifest) -> Model {
        Model {
            path: self.blob_path(&manifest.sha256),
            name: manifest.name,
            source: manifest.source,
            sha256: manifest.sha256,
            size_bytes: manifest.size_bytes,
            created: manifest.created,
        }
    }

    fn blob_path(&self, sha256: &Digest) -> PathBuf {
        self.root.join("blobs").join(format!("sha256-{sha256}"))
    }

    fn manifest_path(&self, name: &str) -> PathBuf {
        self.root.join("manifests").join(format!("{name}.json"))
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Content that is complete and right.
struct Content {
    /// Where it lies. None: it is a blob already.
    file: Option<PathBuf>,
    got: Downloaded,
}

fn files_of(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

/// Refuses what is called a GGUF file and is none, such as the page of a server that wants a login.
fn check_magic(file: &Path, source: &Source) -> Result<(), StoreError> {
    if !source.file_name().ends_with(".gguf") {
        return Ok(());
    }
    let mut beginning = Vec::new();
    let opened = fs::File::open(file)
        .and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, 40), &mut beginning));
    opened.map_err(|source| file_error("read", file, source))?;
    if beginning.starts_with(b"GGUF") {
        return Ok(());
    }
    // It would be taken for the beginning of the right file the next time.
    let _ = fs::remove_file(file);
    let beginning = String::from_utf8_lossy(&beginning).escape_debug().to_string();
    Err(StoreError::NotGguf {
        file: source.file_name(),
        beginning,
    })
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

fn is_whole(model: &Model) -> bool {
    fs::metadata(&model.path).is_ok_and(|metadata| metadata.len() == model.size_bytes)
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let fits = name.len() <= NAME_LEN_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if fits {
        Ok(())
    } else {
        Err(StoreError::Name(name.to_owned()))
    }
}

fn read_manifest(path: &Path) -> io::Result<Manifest> {
    let mut text = String::new();
    io::Read::read_to_string(
        &mut io::Read::take(fs::File::open(path)?, MANIFEST_BYTES_MAX),
        &mut text,
    )?;
    Ok(serde_json::from_str(&text)?)
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(|source| file_error("make the directory", path, source))
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::File {
        action,
        path: path.to_owned(),
        source,
    }
}
