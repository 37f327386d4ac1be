//! Reaching the node: at the start, and again after it was lost.

use std::thread;
use std::time::{Duration, Instant};

use init_protocol::{
    Failure, Hello, Message, NO_CHANNEL, NodeAddress, Proof, RETURN_TIMEOUT_MS, VERSION, Welcome,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::link::{Link, LinkError};
use crate::transport::Transport;

/// How long the node may take to answer a hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two attempts: the first time, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// There is no node for this sandbox any more.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("the node refuses this sandbox: {0}")]
    Refused(Failure),
    #[error("no node for {} s, at last because", RETURN_TIMEOUT_MS / 1000)]
    TooLate(#[source] LinkError),
}

/// Who this sandbox is, for the next hello.
pub(crate) struct Identity {
    pub(crate) node: NodeAddress,
    pub(crate) sandbox: String,
    pub(crate) proof: Proof,
    pub(crate) label: Option<String>,
}

/// Tries until it works, the node refuses, or the time is over.
pub(crate) fn connect(identity: &Identity) -> Result<(Link, Welcome), ConnectError> {
    let end = Instant::now() + Duration::from_millis(RETURN_TIMEOUT_MS);
    let mut pause = PAUSE_MIN;
    loop {
        let error = match attempt(identity, end) {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(refusal)) => return Err(ConnectError::Refused(refusal)),
            Err(error) => error,
        };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConnectError::TooLate(error));
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn attempt(identity: &Identity, end: Instant) -> Result<Result<(Link, Welcome), Failure>, LinkError> {
    let end = end.min(Instant::now() + WELCOME_TIMEOUT);
    let mut link = Link::new(Transport::connect(&identity.node)?);
    link.send(
        NO_CHANNEL,
        Message::Hello(Hello {
            version_min: VERSION,
            version_max: VERSION,
            sandbox: identity.sandbox.clone(),
            proof: identity.proof.clone(),
            label: identity.label.clone(),
        }),
    );
    let mut buffer = [0_u8; 4 * 1024];
    loop {
        link.flush()?;
        match link.next_frame()?.map(|frame| frame.message) {
            Some(Message::Welcome(welcome)) => return Ok(Ok((link, welcome))),
            Some(Message::Refuse(failure)) => return Ok(Err(failure)),
            Some(_) => {
                return Err(LinkError::Protocol(init_protocol::ProtocolError::Unexpected(
                    "a message before the welcome",
                )));
            }
            None => {}
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkError::Io(std::io::ErrorKind::TimedOut.into()));
        }
        let timeout = Timespec::try_from(left).ok();
        let interest = link.interest() | PollFlags::IN;
        match poll(&mut [PollFd::new(&link, interest)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(LinkError::Io(error.into())),
        }
        link.fill(&mut buffer)?;
    }
}
