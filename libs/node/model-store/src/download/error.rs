//! What can go wrong with a download, for people.

use std::io;
use std::path::PathBuf;

use reqwest::StatusCode;

use crate::digest::Digest;

/// Why a file could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server wants to know who asks, or does not let them.
    #[error("{host} answered {status} for {what}: {hint}")]
    Forbidden {
        /// Which server.
        host: String,
        /// 401 or 403.
        status: StatusCode,
        /// Which file.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// There is no such file.
    #[error("{host} has no {what} (404): check the spelling, the revision, and whether a token is needed")]
    NotFound {
        /// Which server.
        host: String,
        /// Which file.
        what: String,
    },
    /// The server answered something else than the file.
    #[error("{host} answered {status} for {what}: {body}")]
    Status {
        /// Which server.
        host: String,
        /// What.
        status: StatusCode,
        /// Which file.
        what: String,
        /// The beginning of what it said.
        body: String,
    },
    /// The connection failed, too often.
    #[error("{what} could not be downloaded: {attempts} attempts failed, the last one brought nothing new")]
    Network {
        /// Which file.
        what: String,
        /// How many attempts.
        attempts: u32,
        /// Why the last one failed.
        source: Box<DownloadError>,
    },
    /// One attempt failed.
    #[error("the connection to {host} failed")]
    Connection {
        /// Which server.
        host: String,
        /// Why.
        source: reqwest::Error,
    },
    /// What came is not what was asked for.
    #[error("{what} is not what it should be: its SHA-256 is {found}, not {expected}; it was not kept")]
    Digest {
        /// Which file.
        what: String,
        /// The right one.
        expected: Digest,
        /// The one found.
        found: Digest,
    },
    /// The size is wrong.
    #[error("{what} is not what it should be: it has {found} bytes, not {expected}; it was not kept")]
    Size {
        /// Which file.
        what: String,
        /// The right one.
        expected: u64,
        /// The one found.
        found: u64,
    },
    /// A redirect that is not followed.
    #[error("{host} points elsewhere in a way that is not followed: {message}")]
    Redirect {
        /// Which server.
        host: String,
        /// Why not.
        message: String,
    },
    /// There is no room.
    #[error("the disk is full: {what} needs {needed_bytes} more bytes at {}, and {free_bytes} are free", path.display())]
    DiskFull {
        /// Which file.
        what: String,
        /// Where to.
        path: PathBuf,
        /// How much more it needs; 0 when that is not known.
        needed_bytes: u64,
        /// How much is free.
        free_bytes: u64,
    },
    /// There is no HTTP client to be had.
    #[error("cannot set up HTTPS")]
    Client(#[source] reqwest::Error),
    /// A file of ours cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done with it.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
