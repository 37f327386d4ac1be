//! What can go wrong with the store, for people.

use std::io;
use std::path::PathBuf;

use super::{LOCK_TIMEOUT, NAME_LEN_MAX};
use crate::download::DownloadError;
use crate::source::SourceError;

/// Why a model cannot be had, shown or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The hub's address is none.
    #[error("the hub's address {0:?} (HF_ENDPOINT) is no address")]
    Endpoint(String),
    /// It could not be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The model is one of several files.
    #[error(
        "{file} is one of {parts} files that make a model, and such models cannot be kept yet: take one in one file"
    )]
    Parts {
        /// Which file.
        file: String,
        /// How many there are.
        parts: u32,
    },
    /// It is no GGUF file.
    #[error("{file} is no GGUF file: it begins with \"{beginning}\"; it was not kept")]
    NotGguf {
        /// Which file.
        file: String,
        /// What it begins with.
        beginning: String,
    },
    /// The name cannot be one.
    #[error(
        "{0:?} cannot be a model's name: 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ -, a letter or digit first"
    )]
    Name(String),
    /// The name stands for something else.
    #[error("the name {name} stands for {source_now} already: give another name, or remove that one")]
    NameTaken {
        /// The name.
        name: String,
        /// Where what it stands for came from.
        source_now: String,
    },
    /// Nothing has this name.
    #[error("there is no model named {0:?} in the store")]
    NoSuchModel(String),
    /// The content is damaged or gone.
    #[error("the model {name} is damaged: {message}; remove and pull it again")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// Another process keeps the store's lock.
    #[error("another process has been changing the store for {} s", LOCK_TIMEOUT.as_secs())]
    Busy,
    /// A file of the store cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
