//! The server's side of a handshake, bounded in time, whose refusals arrive.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Sides, explain};

/// What a client sends behind a handshake that fails; more is not waited for.
const LEFTOVER_BYTES_MAX: u64 = 64 * 1024;
const LEFTOVER_WAIT: Duration = Duration::from_secs(1);

/// No connection came of it. The text says which side refused, and why.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// One side did not believe the other, or the other does not speak TLS.
    #[error("{text}")]
    Refused {
        /// From [`explain`].
        text: String,
    },
    /// The other side went away or said nothing.
    #[error("the {them} did not finish the TLS handshake")]
    Unfinished {
        /// What the other side is called.
        them: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Shakes hands within `deadline`.
///
/// A client of TLS 1.3 sends its first request before the server has looked at its certificate. Closing a socket with
/// those bytes unread makes the kernel reset the connection, and the reset overtakes the alert that says why. So after a
/// refusal the bytes are read and dropped for a moment.
///
/// # Errors
/// [`AcceptError`].
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    stream: S,
    sides: Sides<'_>,
    deadline: Duration,
) -> Result<TlsStream<S>, AcceptError> {
    let unfinished = |source| AcceptError::Unfinished {
        them: sides.them.to_owned(),
        source,
    };
    let handshake = TlsAcceptor::from(config).accept(stream).into_fallible();
    let (error, mut stream) = match timeout(deadline, handshake).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(failed)) => failed,
        Err(_) => return Err(unfinished(io::ErrorKind::TimedOut.into())),
    };
    let Some(text) = explain(&error, sides) else {
        return Err(unfinished(error));
    };
    let leftover = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LEFTOVER_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // Nothing depends on it: it only lets the refusal arrive.
    let _ = timeout(LEFTOVER_WAIT.min(deadline), leftover).await;
    Err(AcceptError::Refused { text })
}
