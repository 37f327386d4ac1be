//! Frames to bytes and back.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::CreditError;
use crate::message::{Done, Failure, Frame, Message};

/// How many bytes stand before a payload.
pub const FRAME_HEAD_BYTES: usize = 9;

/// How long a payload may be.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// The connection cannot go on.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// A payload is announced that is longer than allowed, or was about to be sent.
    #[error("a payload of {bytes} bytes, where {PAYLOAD_BYTES_MAX} are allowed")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// A kind that this version does not have.
    #[error("a frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// The payload is not what its kind says.
    #[error("a frame of kind {kind:#04x} that cannot be read")]
    Malformed {
        /// Which kind.
        kind: u8,
    },
    /// A message at a time or from a side that it does not belong to.
    #[error("{0} at the wrong time")]
    Unexpected(&'static str),
    /// The rules of credit.
    #[error(transparent)]
    Credit(#[from] CreditError),
}

macro_rules! kinds {
    ($($name:ident = $value:literal),* $(,)?) => { $(const $name: u8 = $value;)* };
}
kinds! {
    HELLO = 0x01, WELCOME = 0x02, REFUSE = 0x03, SET_LABEL = 0x04,
    OPEN = 0x10, ACCEPT = 0x11, REJECT = 0x12, DATA = 0x13, EOF = 0x14, STOP = 0x15, CREDIT = 0x16,
    SIGNAL = 0x17, EXITED = 0x18, DONE = 0x19, CHANGED = 0x1a, CLOSE = 0x1b,
    PING = 0x20, PONG = 0x21, KILL_ALL = 0x22, KILLED = 0x23, END = 0x24,
}

/// Writes `frame` to the end of `out`. On an error `out` is as it was.
///
/// # Errors
/// [`ProtocolError::TooLong`].
pub fn encode(frame: &Frame, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
    let channel = frame.channel;
    match &frame.message {
        Message::Hello(hello) => json(HELLO, channel, hello, out),
        Message::Welcome(welcome) => json(WELCOME, channel, welcome, out),
        Message::Refuse(failure) => json(REFUSE, channel, failure, out),
        Message::SetLabel(label) => raw(SET_LABEL, channel, label.as_bytes(), out),
        Message::Open(open) => json(OPEN, channel, open, out),
        Message::Accept => raw(ACCEPT, channel, &[], out),
        Message::Reject(failure) => json(REJECT, channel, failure, out),
        Message::Data(bytes) => raw(DATA, channel, bytes, out),
        Message::Eof => raw(EOF, channel, &[], out),
        Message::Stop => raw(STOP, channel, &[], out),
        Message::Credit(bytes) => raw(CREDIT, channel, &bytes.to_be_bytes(), out),
        Message::Signal(signal) => raw(SIGNAL, channel, &signal.to_be_bytes(), out),
        Message::Exited(exit) => json(EXITED, channel, exit, out),
        Message::Done(done) => json(DONE, channel, done, out),
        Message::Changed => raw(CHANGED, channel, &[], out),
        Message::Close => raw(CLOSE, channel, &[], out),
        Message::Ping(nonce) => raw(PING, channel, &nonce.to_be_bytes(), out),
        Message::Pong(health) => json(PONG, channel, health, out),
        Message::KillAll => raw(KILL_ALL, channel, &[], out),
        Message::Killed => raw(KILLED, channel, &[], out),
        Message::End => raw(END, channel, &[], out),
    }
}

/// Writes a frame of data to the end of `out`, without a copy in between.
///
/// # Errors
/// [`ProtocolError::TooLong`].
pub fn encode_data(channel: u32, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ProtocolError> {
    raw(DATA, channel, bytes, out)
}

fn json(kind: u8, channel: u32, value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
    let payload = serde_json::to_vec(value).expect("these types have string keys only and can be written");
    raw(kind, channel, &payload, out)
}

fn raw(kind: u8, channel: u32, payload: &[u8], out: &mut Vec<u8>) -> Result<(), ProtocolError> {
    let too_long = ProtocolError::TooLong { bytes: payload.len() };
    let Ok(length) = u32::try_from(payload.len()) else {
        return Err(too_long);
    };
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(too_long);
    }
    out.reserve(FRAME_HEAD_BYTES + payload.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Reads frames from bytes that come in any pieces. Holds what is not yet a whole frame, and nothing else.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// How much of the buffer has been read.
    read: usize,
}

impl Decoder {
    /// Adds bytes that came. The caller takes all frames out with [`Self::next_frame`] before it adds more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.read == self.buffer.len() {
            self.buffer.clear();
        } else {
            self.buffer.drain(..self.read);
        }
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// Any but [`ProtocolError::Credit`]; the connection cannot go on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let rest = &self.buffer[self.read..];
        let Some((head, body)) = rest.split_first_chunk::<FRAME_HEAD_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind, channel @ ..] = *head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(ProtocolError::TooLong { bytes: length });
        }
        let Some(payload) = body.get(..length) else {
            return Ok(None);
        };
        let frame = Frame {
            channel: u32::from_be_bytes(channel),
            message: message(kind, payload)?,
        };
        self.read += FRAME_HEAD_BYTES + length;
        if self.read == self.buffer.len() {
            self.buffer.clear();
            self.read = 0;
            // An idle connection keeps no large buffer.
            self.buffer.shrink_to(4 * 1024);
        }
        Ok(Some(frame))
    }

    /// How many bytes wait for the rest of their frame.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.read
    }
}

fn message(kind: u8, payload: &[u8]) -> Result<Message, ProtocolError> {
    let bad = || ProtocolError::Malformed { kind };
    let empty = |message: Message| {
        if payload.is_empty() {
            Ok(message)
        } else {
            Err(bad())
        }
    };
    Ok(match kind {
        HELLO => Message::Hello(read(kind, payload)?),
        WELCOME => Message::Welcome(read(kind, payload)?),
        REFUSE => Message::Refuse(read(kind, payload)?),
        SET_LABEL => Message::SetLabel(String::from_utf8(payload.to_vec()).map_err(|_| bad())?),
        OPEN => Message::Open(read(kind, payload)?),
        ACCEPT => empty(Message::Accept)?,
        REJECT => Message::Reject(read(kind, payload)?),
        DATA => Message::Data(payload.to_vec()),
        EOF => empty(Message::Eof)?,
        STOP => empty(Message::Stop)?,
        CREDIT => Message::Credit(u32::from_be_bytes(payload.try_into().map_err(|_| bad())?)),
        SIGNAL => Message::Signal(i32::from_be_bytes(payload.try_into().map_err(|_| bad())?)),
        EXITED => Message::Exited(read(kind, payload)?),
        DONE => Message::Done(read::<Result<Done, Failure>>(kind, payload)?),
        CHANGED => empty(Message::Changed)?,
        CLOSE => empty(Message::Close)?,
        PING => Message::Ping(u64::from_be_bytes(payload.try_into().map_err(|_| bad())?)),
        PONG => Message::Pong(read(kind, payload)?),
        KILL_ALL => empty(Message::KillAll)?,
        KILLED => empty(Message::Killed)?,
        END => empty(Message::End)?,
        unknown => return Err(ProtocolError::UnknownKind(unknown)),
    })
}

fn read<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(payload).map_err(|_| ProtocolError::Malformed { kind })
}

#[cfg(test)]
mod tests;
