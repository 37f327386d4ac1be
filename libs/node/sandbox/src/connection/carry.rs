//! The two tasks of a connection.

use std::time::Duration;

use super::*;

/// How often a node speaks on a connection whose breaking nobody would tell it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The next frame, or the end of the connection.
pub(crate) async fn read_frame(
    socket: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> Result<Option<Frame>, CarryError> {
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(Some(frame));
        }
        if fill(socket, decoder).await? == 0 {
            return Ok(None);
        }
    }
}

async fn fill(socket: &mut (impl AsyncRead + Unpin), decoder: &mut Decoder) -> io::Result<usize> {
    std::future::poll_fn(|context| {
        let mut array = [MaybeUninit::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut array);
        std::task::ready!(Pin::new(&mut *socket).poll_read(context, &mut buffer))?;
        decoder.push(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}

/// Starts carrying. Both tasks end when either does, or when [`Shared::close`] is called. `silence_max` is set where
/// the socket does not tell that the other side is gone.
pub(crate) fn spawn<S>(
    shared: &Arc<Shared>,
    socket: S,
    decoder: Decoder,
    connections: mpsc::Sender<ConnectionStream>,
    silence_max: Option<Duration>,
    name: String,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reader, writer) = tokio::io::split(socket);
    let hearing = Arc::clone(shared);
    tokio::spawn(async move {
        let heard = tokio::select! {
            heard = hear(&hearing, reader, decoder, &connections, silence_max) => heard,
            () = hearing.closed() => Ok(()),
        };
        match heard {
            Ok(()) => tracing::debug!(sandbox = name, "the sandbox's connection has ended"),
            Err(error) => tracing::warn!(
                sandbox = name,
                error = &error as &dyn std::error::Error,
                "the sandbox's connection is broken"
            ),
        }
        hearing.close();
    });
    let speaking = Arc::clone(shared);
    tokio::spawn(async move {
        // An error here is seen by the reader, too.
        let _ = speak(&speaking, writer, silence_max.is_some()).await;
        speaking.close();
    });
}

async fn speak(shared: &Shared, mut socket: impl AsyncWrite + Unpin, keep_alive: bool) -> io::Result<()> {
    loop {
        let (unsent, blocked, closed) = {
            let mut state = shared.lock();
            (
                std::mem::take(&mut state.unsent),
                std::mem::take(&mut state.blocked),
                state.closed,
            )
        };
        blocked.into_iter().for_each(Waker::wake);
        if !unsent.is_empty() {
            socket.write_all(&unsent).await?;
            socket.flush().await?;
            continue;
        }
        if closed {
            return socket.shutdown().await;
        }
        if keep_alive {
            if tokio::time::timeout(KEEP_ALIVE, shared.send.notified())
                .await
                .is_err()
            {
                let _ = shared.tell(Message::Ping(0));
            }
        } else {
            shared.send.notified().await;
        }
    }
}

async fn hear(
    shared: &Arc<Shared>,
    mut socket: impl AsyncRead + Unpin,
    mut decoder: Decoder,
    connections: &mpsc::Sender<ConnectionStream>,
    silence_max: Option<Duration>,
) -> Result<(), CarryError> {
    loop {
        while let Some(frame) = decoder.next_frame()? {
            obey(shared, frame, connections)?;
        }
        let count = match silence_max {
            None => fill(&mut socket, &mut decoder).await?,
            Some(silence) => tokio::time::timeout(silence, fill(&mut socket, &mut decoder))
                .await
                .map_err(|_| CarryError::Silence)??,
        };
        if count == 0 {
            return Ok(());
        }
    }
}

fn obey(
    shared: &Arc<Shared>,
    frame: Frame,
    connections: &mpsc::Sender<ConnectionStream>,
) -> Result<(), CarryError> {
    let id = frame.channel;
    if let Message::Open(open) = frame.message {
        return connected(shared, id, &open, connections);
    }
    let mut state = shared.lock();
    match frame.message {
        Message::Pong(health) => {
            if let Some(waiting) = state.pings.remove(&health.nonce) {
                let _ = waiting.send(health);
            }
            return Ok(());
        }
        Message::Killed => {
            if let Some(waiting) = state.kills.pop_front() {
                let _ = waiting.send(());
            }
            return Ok(());
        }
        _ => {}
    }
    let Some(channel) = state.channels.get_mut(&id) else {
        return Ok(());
    };
    match frame.message {
        Message::Data(bytes) => {
            if !channel.reader_gone {
                channel
                    .receiving
                    .receive(bytes.len())
                    .map_err(ProtocolError::from)?;
                channel.buffer.extend(&bytes);
                wake(&mut channel.reader);
            }
        }
        Message::Eof => {
            channel.ended = true;
            wake(&mut channel.reader);
        }
        Message::Stop => {
            channel.stopped = true;
            wake(&mut channel.writer);
        }
        Message::Credit(bytes) => {
            channel.sending.earn(bytes).map_err(ProtocolError::from)?;
            wake(&mut channel.writer);
        }
        Message::Accept => answer(channel, Ok(())),
        Message::Reject(failure) => answer(channel, Err(failure)),
        Message::Exited(exit) => {
            if let Conclusion::Exit(waiting) = std::mem::replace(&mut channel.conclusion, Conclusion::None) {
                let _ = waiting.send(exit);
            }
        }
        Message::Done(result) => {
            channel.ends_with_done = false;
            channel.ended = true;
            channel.broken = result.as_ref().err().cloned();
            if let Conclusion::Done(waiting) = std::mem::replace(&mut channel.conclusion, Conclusion::None) {
                let _ = waiting.send(result);
            }
            channel.wake();
        }
        Message::Changed => {
            if let Conclusion::Changed(notify) = &channel.conclusion {
                notify.notify_one();
            }
        }
        _ => return Err(ProtocolError::Unexpected("a message that an init does not send").into()),
    }
    Ok(())
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn answer(channel: &mut Channel, answer: Result<(), Failure>) {
    if let Some(waiting) = channel.opened.take() {
        let _ = waiting.send(answer);
    }
}

/// A program in the sandbox has connected to the proxy.
fn connected(
    shared: &Arc<Shared>,
    id: u32,
    open: &Open,
    connections: &mpsc::Sender<ConnectionStream>,
) -> Result<(), CarryError> {
    let (Open::Connection { entrance }, false) = (open, id.is_multiple_of(2)) else {
        return Err(ProtocolError::Unexpected("a channel that is not an init's to open").into());
    };
    let mut state = shared.lock();
    let others = state.channels.keys().filter(|id| !id.is_multiple_of(2)).count();
    if state.closed || others >= CONNECTIONS_MAX || state.channels.contains_key(&id) {
        let failure = Failure::new(FailureCode::TooLarge, "too many connections");
        let _ = shared.put(&mut state, id, Message::Reject(failure));
        return Ok(());
    }
    state.channels.insert(id, Channel::new(2, None, Conclusion::None));
    drop(state);
    let stream = ConnectionStream::new(Arc::clone(shared), id, *entrance);
    // When nobody takes connections, dropping the stream ends this one.
    let _ = connections.try_send(stream);
    Ok(())
}

/// Why a connection has ended before it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CarryError {
    #[error("cannot read")]
    Io(#[from] io::Error),
    #[error("the init does not keep to the protocol")]
    Protocol(#[from] ProtocolError),
    #[error("the init says nothing any more")]
    Silence,
}
