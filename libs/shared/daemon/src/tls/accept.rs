//! The server's side of a handshake, bounded in time, whose refusals arrive.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{InvalidMessage, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
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

/// What is said, in its own words, to who speaks HTTP without TLS.
const PLAIN_HTTP_ANSWER: &str = "{\"code\":\"INVALID_PARAMS\",\"message\":\"this address speaks TLS: use https:// instead of \
    http://\",\"retriable\":false}";

/// As [`accept`], on a connection from the network: who speaks HTTP without TLS is told so in HTTP, because an alert is
/// garbage to it.
///
/// # Errors
/// [`AcceptError`].
pub async fn accept_tcp(
    config: Arc<ServerConfig>,
    mut stream: TcpStream,
    sides: Sides<'_>,
    deadline: Duration,
) -> Result<TlsStream<TcpStream>, AcceptError> {
    let mut beginning = [0; 3];
    // What is wrong with the connection shows in the handshake as well.
    let length = match timeout(deadline, stream.peek(&mut beginning)).await {
        Ok(Ok(length)) => length,
        Ok(Err(_)) | Err(_) => 0,
    };
    let beginning = &beginning[..length];
    // A handshake begins with a byte that is no letter; HTTP/2 without TLS would take no answer in words.
    if !beginning.first().is_some_and(u8::is_ascii_uppercase) || beginning == b"PRI" {
        return accept(config, stream, sides, deadline).await;
    }
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n\
         {PLAIN_HTTP_ANSWER}",
        PLAIN_HTTP_ANSWER.len()
    );
    let tell = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Unread bytes would make the kernel reset the connection before the answer is read.
        tokio::io::copy(&mut stream.take(LEFTOVER_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // It may have gone; it was told as far as it wanted to know.
    let _ = timeout(LEFTOVER_WAIT.min(deadline), tell).await;
    let text = explain::describe(
        &rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType),
        sides,
    );
    Err(AcceptError::Refused { text })
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
