//! One connection to the node: frames in, frames out, both buffered and bounded.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use init_protocol::{Decoder, Frame, Message, ProtocolError, encode, encode_data};
use rustix::event::PollFlags;
use thiserror::Error;

use crate::transport::Transport;

/// From how many unsent bytes on nothing more is read from processes.
const UNSENT_BYTES_HIGH: usize = 256 * 1024;

/// From how many unsent bytes on nothing more is read from the node, whose questions are answered in this buffer.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;

/// The connection has ended.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    #[error("the node has closed the connection")]
    Closed,
    #[error("the connection to the node is broken")]
    Io(#[from] io::Error),
    #[error("the node does not keep to the protocol")]
    Protocol(#[from] ProtocolError),
}

pub(crate) struct Link {
    transport: Transport,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
}

impl Link {
    pub(crate) fn new(transport: Transport) -> Self {
        Self {
            transport,
            decoder: Decoder::default(),
            out: Vec::new(),
            sent: 0,
        }
    }

    /// What to wait for on the socket.
    pub(crate) fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        if self.unsent() < UNSENT_BYTES_MAX {
            flags |= PollFlags::IN;
        }
        if self.unsent() > 0 || self.transport.wants_write() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Whether there is room for what processes say.
    pub(crate) fn has_room(&self) -> bool {
        self.unsent() < UNSENT_BYTES_HIGH
    }

    /// Puts a message into the buffer. Those that init makes itself are always short enough.
    pub(crate) fn send(&mut self, channel: u32, message: Message) {
        let sent = encode(&Frame { channel, message }, &mut self.out);
        debug_assert!(sent.is_ok(), "init's own messages are short");
    }

    /// Puts data into the buffer: at most a payload.
    pub(crate) fn send_data(&mut self, channel: u32, bytes: &[u8]) {
        let sent = encode_data(channel, bytes, &mut self.out);
        debug_assert!(sent.is_ok(), "data is read in payloads");
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), LinkError> {
        while self.unsent() > 0 {
            match self.transport.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.unsent() == 0 {
            self.out.clear();
            self.out.shrink_to(8 * 1024);
            self.sent = 0;
        } else if self.sent > UNSENT_BYTES_HIGH {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(self.transport.flush()?)
    }

    /// Reads once from the socket. Answers whether there may be more.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, LinkError> {
        match self.transport.read(buffer) {
            Ok(0) => Err(LinkError::Closed),
            Ok(count) => {
                self.decoder.push(&buffer[..count]);
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The next frame that has come whole.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, LinkError> {
        Ok(self.decoder.next_frame()?)
    }

    fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}
