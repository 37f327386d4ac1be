//! How sending can fail.

use std::time::Duration;

use crate::wire::WireError;

/// Why a text is no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// The text is no URL with a host.
    #[error("{0:?} is not a URL such as http://127.0.0.1:8081")]
    NotAUrl(String),
    /// The scheme is neither http nor https.
    #[error("the scheme of {0:?} must be http or https")]
    Scheme(String),
    /// A user name or a password stands in the URL.
    #[error("the URL must not carry a user name or a password")]
    Credentials,
}

/// What a connection or a parser said.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection came about.
    #[error("cannot connect to {to}")]
    Connect {
        /// Where to.
        to: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No connection came about in time.
    #[error("no connection to {to} within {} ms", after.as_millis())]
    ConnectTimeout {
        /// Where to.
        to: String,
        /// The bound.
        after: Duration,
    },
    /// The peer closed or broke the connection before an answer came.
    #[error("{to} closed the connection before it answered")]
    Closed {
        /// Where to.
        to: String,
        /// Whether it is certain that the peer did not begin with the request.
        not_processed: bool,
        /// What the connection said.
        #[source]
        source: Cause,
    },
    /// What came back was no HTTP.
    #[error("{to} sent something that is not HTTP")]
    Garbage {
        /// Where to.
        to: String,
        /// What the parser said.
        #[source]
        source: Cause,
    },
}

impl SendError {
    /// Whether it is certain that the peer did not begin with the request.
    pub fn not_processed(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => true,
            Self::Closed { not_processed, .. } => *not_processed,
            Self::Garbage { .. } => false,
        }
    }

    pub(crate) fn from_hyper(to: &str, source: hyper::Error, not_processed: bool) -> Self {
        let to = to.to_owned();
        if source.is_parse() {
            Self::Garbage {
                to,
                source: source.into(),
            }
        } else {
            Self::Closed {
                to,
                not_processed: not_processed || source.is_canceled(),
                source: source.into(),
            }
        }
    }

    pub(crate) fn from_wire(to: &str, error: WireError) -> Self {
        let to = to.to_owned();
        match error {
            WireError::Broken { source, .. } => Self::Closed {
                to,
                not_processed: false,
                source: source.into(),
            },
            WireError::Garbage(_) => Self::Garbage {
                to,
                source: error.into(),
            },
        }
    }
}
