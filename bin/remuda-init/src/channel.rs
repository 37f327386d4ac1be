//! One channel: an end that the node's bytes go into, an end that bytes for the node come from, and their credit.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use init_protocol::{CreditError, Message, PAYLOAD_BYTES_MAX, Receiving, Sending};
use rustix::process::Pid;

use crate::job::Job;
use crate::link::Link;
use crate::watch::Watch;

/// What a channel is for, with what else belongs to it.
pub(crate) enum Kind {
    /// A process. `ended` once it was reaped.
    Exec { pid: Pid, ended: bool },
    /// The standard error of a process, or the bytes of a connection: done when its directions are.
    Stream,
    /// An archive in one direction.
    Archive { job: Job },
    /// A directory.
    Watch(Watch),
}

/// One end of a pipe, or half of a connection.
pub(crate) enum End {
    Pipe(OwnedFd),
    Socket(Rc<TcpStream>),
}

impl End {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => Ok(rustix::io::read(pipe, buffer)?),
            Self::Socket(socket) => socket.as_ref().read(buffer),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => Ok(rustix::io::write(pipe, bytes)?),
            Self::Socket(socket) => socket.as_ref().write(bytes),
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe(pipe) => pipe.as_fd(),
            Self::Socket(socket) => socket.as_fd(),
        }
    }
}

pub(crate) struct Channel {
    pub(crate) kind: Kind,
    /// Where the node's bytes go; None when that direction is over.
    sink: Option<End>,
    buffer: VecDeque<u8>,
    receiving: Receiving,
    /// The node has sent its last byte.
    ended: bool,
    /// Where bytes for the node come from; None when that direction is over.
    source: Option<End>,
    sending: Sending,
}

impl Channel {
    pub(crate) fn new(kind: Kind, sink: Option<End>, source: Option<End>) -> Self {
        Self {
            kind,
            sink,
            buffer: VecDeque::new(),
            receiving: Receiving::default(),
            ended: false,
            source,
            sending: Sending::default(),
        }
    }

    /// Whether nothing can happen in this channel any more.
    pub(crate) fn is_over(&self) -> bool {
        self.sink.is_none()
            && self.source.is_none()
            && match self.kind {
                Kind::Exec { ended, .. } => ended,
                Kind::Stream => true,
                // These end with a message of their own.
                Kind::Archive { .. } | Kind::Watch(_) => false,
            }
    }

    /// Where the next bytes can be written, when there are any.
    pub(crate) fn waiting_sink(&self) -> Option<&End> {
        self.sink.as_ref().filter(|_| !self.buffer.is_empty())
    }

    /// Where bytes can be read from, when they may be sent.
    pub(crate) fn ready_source(&self) -> Option<&End> {
        self.source.as_ref().filter(|_| self.sending.left_bytes() > 0)
    }

    /// Whether all that it had to say was said.
    pub(crate) fn source_is_over(&self) -> bool {
        self.source.is_none()
    }

    /// Bytes from the node.
    pub(crate) fn receive(&mut self, id: u32, bytes: &[u8], link: &mut Link) -> Result<(), CreditError> {
        if self.sink.is_none() || self.ended {
            // The node has been told, or will be, that nobody wants them.
            return Ok(());
        }
        self.receiving.receive(bytes.len())?;
        self.buffer.extend(bytes);
        self.drain(id, link);
        Ok(())
    }

    /// The node has sent its last byte.
    pub(crate) fn finish(&mut self, id: u32, link: &mut Link) {
        self.ended = true;
        self.drain(id, link);
    }

    /// The node reads no more.
    pub(crate) fn stop(&mut self) {
        self.source = None;
    }

    /// The node may be sent more.
    pub(crate) fn earn(&mut self, bytes: u32) -> Result<(), CreditError> {
        self.sending.earn(bytes)
    }

    /// Writes what the sink takes.
    pub(crate) fn drain(&mut self, id: u32, link: &mut Link) {
        while let Some(sink) = &self.sink {
            let (front, _) = self.buffer.as_slices();
            if front.is_empty() {
                if self.ended {
                    self.close_sink();
                }
                break;
            }
            match sink.write(front) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    if let Some(credit) = self.receiving.take(count) {
                        link.send(id, Message::Credit(credit));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.drop_sink(id, link);
                    break;
                }
            }
        }
        if self.buffer.is_empty() {
            self.buffer.shrink_to(0);
        }
    }

    /// Nobody takes the node's bytes any more.
    pub(crate) fn drop_sink(&mut self, id: u32, link: &mut Link) {
        if self.sink.is_some() {
            if !self.ended {
                link.send(id, Message::Stop);
            }
            self.close_sink();
        }
    }

    fn close_sink(&mut self) {
        if let Some(End::Socket(socket)) = self.sink.take() {
            let _ = socket.shutdown(Shutdown::Write);
        }
        self.buffer = VecDeque::new();
    }

    /// Reads once from the source and sends it on.
    pub(crate) fn pump(&mut self, id: u32, scratch: &mut [u8], link: &mut Link) {
        let Some(source) = &self.source else { return };
        let allowed = self
            .sending
            .left_bytes()
            .min(PAYLOAD_BYTES_MAX)
            .min(scratch.len());
        match source.read(&mut scratch[..allowed]) {
            Ok(count) if count > 0 => {
                self.sending.spend(count);
                link.send_data(id, &scratch[..count]);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Ok(_) | Err(_) => {
                self.source = None;
                link.send(id, Message::Eof);
            }
        }
    }
}
