//! One connection to an init: its channels behind one short lock, and the two tasks that carry its bytes.
//!
//! Owns: numbers of channels, credit, buffers, wakers. Does not own: what a channel is for ([`crate::Sandbox`]).
//!
//! Invariants:
//! - The lock is held for one call, never across an await.
//! - A channel is in the map as long as somebody here holds an end of it (`handles`); frames for others are thrown away.
//! - Unsent bytes are bounded: data waits at [`UNSENT_BYTES_HIGH`], and control frames are answers to single calls.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use init_protocol::{
    CHANNELS_MAX, CONNECTIONS_MAX, Decoder, Done, Exit, Failure, FailureCode, Frame, Health, Message,
    NO_CHANNEL, Open, PAYLOAD_BYTES_MAX, ProtocolError, Receiving, Sending, encode, encode_data,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::channel::ConnectionStream;

/// From how many unsent bytes on writers wait.
const UNSENT_BYTES_HIGH: usize = 256 * 1024;

/// Read at once; on the stack, so that an idle connection holds nothing.
const READ_BYTES: usize = 32 * 1024;

/// What a channel ends with, and who wants to know.
#[derive(Debug)]
pub(crate) enum Conclusion {
    None,
    Exit(oneshot::Sender<Exit>),
    Done(oneshot::Sender<Result<Done, Failure>>),
    Changed(Arc<Notify>),
}

#[derive(Debug)]
pub(crate) struct Channel {
    handles: u8,
    opened: Option<oneshot::Sender<Result<(), Failure>>>,
    conclusion: Conclusion,
    sending: Sending,
    /// The last byte was sent, or init reads no more.
    sent_all: bool,
    /// Init reads no more.
    stopped: bool,
    writer: Option<Waker>,
    buffer: VecDeque<u8>,
    receiving: Receiving,
    ended: bool,
    /// The archive that was read here is not whole.
    broken: Option<Failure>,
    /// Nothing is read before this is known: an archive whose end came may still have failed.
    ends_with_done: bool,
    reader_gone: bool,
    reader: Option<Waker>,
}

impl Channel {
    fn new(
        handles: u8,
        opened: Option<oneshot::Sender<Result<(), Failure>>>,
        conclusion: Conclusion,
    ) -> Self {
        Self {
            handles,
            opened,
            conclusion,
            sending: Sending::default(),
            sent_all: false,
            stopped: false,
            writer: None,
            buffer: VecDeque::new(),
            receiving: Receiving::default(),
            ended: false,
            broken: None,
            ends_with_done: false,
            reader_gone: false,
            reader: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
struct State {
    closed: bool,
    next_id: u32,
    next_nonce: u64,
    unsent: Vec<u8>,
    /// Writers that wait until something was sent.
    blocked: Vec<Waker>,
    channels: HashMap<u32, Channel>,
    pings: HashMap<u64, oneshot::Sender<Health>>,
    kills: VecDeque<oneshot::Sender<()>>,
}

/// What all ends of a connection share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something is to be sent, or the connection is closed.
    send: Notify,
    closed: watch::Sender<bool>,
}

/// The connection is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                closed: false,
                next_id: 2,
                next_nonce: 1,
                unsent: Vec::new(),
                blocked: Vec::new(),
                channels: HashMap::new(),
                pings: HashMap::new(),
                kills: VecDeque::new(),
            }),
            send: Notify::new(),
            closed: watch::Sender::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No section under this lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the connection is gone.
    pub(crate) async fn closed(&self) {
        // The sender is in `self`, so this ends only with the value.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for channel in state.channels.values_mut() {
            channel.opened = None;
            channel.conclusion = Conclusion::None;
            channel.wake();
        }
        state.pings.clear();
        state.kills.clear();
        let blocked = std::mem::take(&mut state.blocked);
        drop(state);
        blocked.into_iter().for_each(Waker::wake);
        self.closed.send_replace(true);
        self.send.notify_one();
    }

    /// Sends a message that belongs to no channel.
    pub(crate) fn tell(&self, message: Message) -> Result<(), TellError> {
        self.put(&mut *self.open_state()?, NO_CHANNEL, message)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, Gone> {
        let state = self.lock();
        if state.closed { Err(Gone) } else { Ok(state) }
    }

    fn put(&self, state: &mut State, channel: u32, message: Message) -> Result<(), TellError> {
        encode(&Frame { channel, message }, &mut state.unsent)?;
        self.send.notify_one();
        Ok(())
    }

    /// Sends a signal and the like.
    pub(crate) fn tell_channel(&self, channel: u32, message: Message) -> Result<(), TellError> {
        self.put(&mut *self.open_state()?, channel, message)
    }

    /// Asks how init is.
    pub(crate) fn ping(&self) -> Result<oneshot::Receiver<Health>, TellError> {
        let mut state = self.open_state()?;
        let (sender, receiver) = oneshot::channel();
        let nonce = state.next_nonce;
        state.next_nonce += 1;
        // Callers give up after a while; their places are taken again.
        state.pings.retain(|_, waiting| !waiting.is_closed());
        state.pings.insert(nonce, sender);
        self.put(&mut state, NO_CHANNEL, Message::Ping(nonce))?;
        Ok(receiver)
    }

    /// Ends all processes.
    pub(crate) fn kill_all(&self) -> Result<oneshot::Receiver<()>, TellError> {
        let mut state = self.open_state()?;
        let (sender, receiver) = oneshot::channel();
        state.kills.push_back(sender);
        self.put(&mut state, NO_CHANNEL, Message::KillAll)?;
        Ok(receiver)
    }

    /// Opens a channel with `handles` ends here. `with_second` is for an exec: the id of its standard error, which has
    /// one more end.
    pub(crate) fn open(
        &self,
        handles: u8,
        conclusion: Conclusion,
        message: impl FnOnce(u32, u32) -> Open,
        with_second: bool,
    ) -> Result<Opening, TellError> {
        let mut state = self.open_state()?;
        if state.channels.len() + 2 > CHANNELS_MAX {
            return Err(TellError::TooManyChannels);
        }
        let (id, second) = (state.next_id, state.next_id + 2);
        let frame = Frame {
            channel: id,
            message: Message::Open(message(id, second)),
        };
        encode(&frame, &mut state.unsent)?;
        // One sandbox does not open two thousand million channels.
        state.next_id += 4;
        let (opened_sender, opened) = oneshot::channel();
        let mut channel = Channel::new(handles, Some(opened_sender), conclusion);
        channel.ends_with_done = matches!(channel.conclusion, Conclusion::Done(_));
        state.channels.insert(id, channel);
        if with_second {
            state
                .channels
                .insert(second, Channel::new(1, None, Conclusion::None));
        }
        self.send.notify_one();
        Ok(Opening { id, second, opened })
    }

    /// One end fewer.
    pub(crate) fn drop_handle(&self, channel: u32) {
        release(&mut self.lock(), channel);
    }

    pub(crate) fn poll_read(
        &self,
        id: u32,
        context: &Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        let closed = state.closed;
        let Some(channel) = state.channels.get_mut(&id) else {
            return Poll::Ready(Ok(()));
        };
        let (front, _) = channel.buffer.as_slices();
        let count = front.len().min(out.remaining());
        if count == 0 && out.remaining() > 0 {
            if let Some(failure) = &channel.broken {
                return Poll::Ready(Err(io::Error::other(failure.message.clone())));
            }
            if channel.ended && !channel.ends_with_done {
                return Poll::Ready(Ok(()));
            }
            if closed {
                return Poll::Ready(Err(gone()));
            }
            channel.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        out.put_slice(&front[..count]);
        channel.buffer.drain(..count);
        if channel.buffer.is_empty() {
            channel.buffer.shrink_to(0);
        }
        if let Some(credit) = channel.receiving.take(count)
            && !channel.ended
            && !closed
        {
            // Four bytes are never too long.
            let _ = self.put(&mut state, id, Message::Credit(credit));
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_write(&self, id: u32, context: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let state = &mut *state;
        if state.closed {
            return Poll::Ready(Err(gone()));
        }
        let Some(channel) = state.channels.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if channel.stopped || channel.sent_all {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = bytes
            .len()
            .min(channel.sending.left_bytes())
            .min(PAYLOAD_BYTES_MAX);
        if count == 0 && !bytes.is_empty() {
            channel.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        if state.unsent.len() >= UNSENT_BYTES_HIGH {
            state.blocked.push(context.waker().clone());
            return Poll::Pending;
        }
        if count > 0 {
            channel.sending.spend(count);
            encode_data(id, &bytes[..count], &mut state.unsent).map_err(io::Error::other)?;
            self.send.notify_one();
        }
        Poll::Ready(Ok(count))
    }

    /// No more will be written.
    pub(crate) fn finish(&self, id: u32) {
        let mut state = self.lock();
        let Some(channel) = state.channels.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut channel.sent_all, true) && !channel.stopped && !state.closed {
            let _ = self.put(&mut state, id, Message::Eof);
        }
    }

    pub(crate) fn drop_writer(&self, id: u32) {
        self.finish(id);
        self.drop_handle(id);
    }

    pub(crate) fn drop_reader(&self, id: u32) {
        let mut state = self.lock();
        let closed = state.closed;
        if let Some(channel) = state.channels.get_mut(&id) {
            channel.reader_gone = true;
            channel.buffer = VecDeque::new();
            if !channel.ended && !closed {
                let _ = self.put(&mut state, id, Message::Stop);
            }
        }
        release(&mut state, id);
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the sandbox is gone")
}

fn release(state: &mut State, id: u32) {
    let Some(channel) = state.channels.get_mut(&id) else {
        return;
    };
    channel.handles = channel.handles.saturating_sub(1);
    if channel.handles == 0 {
        state.channels.remove(&id);
    }
}

/// A channel that was asked for.
pub(crate) struct Opening {
    pub(crate) id: u32,
    pub(crate) second: u32,
    /// What init answers.
    pub(crate) opened: oneshot::Receiver<Result<(), Failure>>,
}

/// Why something could not be said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TellError {
    #[error("the sandbox is gone")]
    Gone,
    #[error("too much is going on in the sandbox")]
    TooManyChannels,
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl From<Gone> for TellError {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

mod carry;

pub(crate) use carry::{read_frame, spawn};
