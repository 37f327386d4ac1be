//! The main loop.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use init_protocol::{Message, NO_CHANNEL, PROXY_ADDRESS, Proof, START_VARIABLE, Start, entrance_address};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::channel::{Channel, Kind};
use crate::connect::{ConnectError, Identity, connect};
use crate::harden::{HardenError, harden};
use crate::link::{Link, LinkError};
use crate::processes::Processes;

mod requests;

/// Read at once from a process or the node.
const SCRATCH_BYTES: usize = 64 * 1024;

/// How often the socket is read before others get their turn.
const READS_MAX: usize = 8;

/// Why init does not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error("this is process 1 of a sandbox, and nothing else; {START_VARIABLE} says which")]
    NotProcessOne,
    #[error("{START_VARIABLE} is not set, or not readable")]
    Start(#[source] Option<serde_json::Error>),
    #[error("cannot set up signals")]
    Signals(#[source] io::Error),
    #[error("the sandbox cannot be closed")]
    Harden(#[from] HardenError),
    #[error("cannot listen for programs' connections")]
    Listen(#[source] io::Error),
}

/// Process 1, ready to connect.
pub(crate) struct Init {
    processes: Processes,
    identity: Identity,
    base_environment: Vec<(OsString, OsString)>,
    proxy: TcpListener,
}

impl Init {
    pub(crate) fn start() -> Result<Self, StartError> {
        let processes = Processes::of_process_one()
            .map_err(StartError::Signals)?
            .ok_or(StartError::NotProcessOne)?;
        let start = env::var(START_VARIABLE).map_err(|_| StartError::Start(None))?;
        let start: Start = serde_json::from_str(&start).map_err(|error| StartError::Start(Some(error)))?;
        harden(&start.limits)?;
        // Taken before any other program runs, so no other program can answer there.
        let proxy = listen(&start.proxy_address).map_err(StartError::Listen)?;
        proxy.set_nonblocking(true).map_err(StartError::Listen)?;
        Ok(Self {
            processes,
            identity: Identity {
                node: start.node,
                sandbox: start.sandbox,
                proof: Proof::Token(start.token),
                label: None,
            },
            base_environment: env::vars_os()
                .filter(|(name, _)| name != START_VARIABLE)
                .collect(),
            proxy,
        })
    }

    pub(crate) fn run(mut self) -> ExitCode {
        loop {
            let (link, welcome) = match connect(&self.identity) {
                Ok(connected) => connected,
                Err(error) => {
                    match &error {
                        ConnectError::TooLate(cause) => eprintln!("remuda-init: {error}: {cause}"),
                        ConnectError::Refused(_) => eprintln!("remuda-init: {error}"),
                    }
                    return ExitCode::FAILURE;
                }
            };
            self.identity.proof = Proof::ReturnKey(welcome.return_key);
            let silence_max =
                (welcome.silence_max_ms > 0).then(|| Duration::from_millis(welcome.silence_max_ms));
            let mut serving = Serving::new(&mut self, link, silence_max);
            match serving.run() {
                Ok(()) => {
                    serving.init.processes.kill_all(|_, _| {});
                    return ExitCode::SUCCESS;
                }
                Err(error) => {
                    // Nobody has asked them to write down what they hold. Their pipes stay open meanwhile: whoever
                    // says a last word into a closed one is killed for it.
                    serving.init.processes.end_all();
                    eprintln!("remuda-init: {error}; waiting for a node");
                }
            }
        }
    }
}

/// The usual address means every entrance: a listener for all addresses, which takes loopback's only.
fn listen(address: &str) -> io::Result<TcpListener> {
    if address == PROXY_ADDRESS {
        return TcpListener::bind((Ipv4Addr::UNSPECIFIED, entrance_address(0).port()));
    }
    TcpListener::bind(address)
}

/// One connection's time.
struct Serving<'a> {
    init: &'a mut Init,
    link: Link,
    channels: BTreeMap<u32, Channel>,
    /// The id of the next connection that a program opens; odd.
    next_id: u32,
    silence_max: Option<Duration>,
    last_heard: Instant,
    scratch: Vec<u8>,
    end: bool,
}

/// What a polled descriptor belongs to.
#[derive(Clone, Copy)]
enum Token {
    Node,
    Processes,
    Proxy,
    Sink(u32),
    Source(u32),
    Watch(u32),
}

impl<'a> Serving<'a> {
    fn new(init: &'a mut Init, link: Link, silence_max: Option<Duration>) -> Self {
        Self {
            init,
            link,
            channels: BTreeMap::new(),
            next_id: NO_CHANNEL + 1,
            silence_max,
            last_heard: Instant::now(),
            scratch: Vec::new(),
            end: false,
        }
    }

    /// Until the node says that this is the end.
    fn run(&mut self) -> Result<(), LinkError> {
        // The welcome may have come with more behind it.
        self.frames()?;
        while !self.end {
            self.link.flush()?;
            let ready = self.wait()?;
            // One buffer for all reading; an idle init holds none.
            self.scratch.resize(SCRATCH_BYTES, 0);
            for token in ready {
                self.turn(token)?;
            }
            self.scratch = Vec::new();
            self.notice()?;
        }
        let _ = self.link.flush();
        Ok(())
    }

    /// Waits until something can be done, and says what.
    fn wait(&self) -> Result<Vec<Token>, LinkError> {
        let mut tokens = Vec::with_capacity(3 + 2 * self.channels.len());
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(tokens.capacity());
        tokens.push(Token::Node);
        polled.push(PollFd::new(&self.link, self.link.interest()));
        tokens.push(Token::Processes);
        polled.push(PollFd::new(&self.init.processes, PollFlags::IN));
        if self.may_accept() {
            tokens.push(Token::Proxy);
            polled.push(PollFd::new(&self.init.proxy, PollFlags::IN));
        }
        let has_room = self.link.has_room();
        for (&id, channel) in &self.channels {
            if let Some(sink) = channel.waiting_sink() {
                tokens.push(Token::Sink(id));
                polled.push(PollFd::new(sink, PollFlags::OUT));
            }
            if let Some(source) = channel.ready_source().filter(|_| has_room) {
                tokens.push(Token::Source(id));
                polled.push(PollFd::new(source, PollFlags::IN));
            }
            if let Kind::Watch(watch) = &channel.kind {
                tokens.push(Token::Watch(id));
                polled.push(PollFd::new(watch, PollFlags::IN));
            }
        }
        let timeout = self
            .deadline()
            .map(|due| due.saturating_duration_since(Instant::now()))
            .and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(LinkError::Io(error.into())),
        }
        Ok(tokens
            .into_iter()
            .zip(&polled)
            .filter(|(_, polled)| !polled.revents().is_empty())
            .map(|(token, _)| token)
            .collect())
    }

    fn deadline(&self) -> Option<Instant> {
        let notices = self.channels.values().filter_map(|channel| match &channel.kind {
            Kind::Watch(watch) => watch.due(),
            _ => None,
        });
        notices
            .chain(self.silence_max.map(|silence| self.last_heard + silence))
            .min()
    }

    fn turn(&mut self, token: Token) -> Result<(), LinkError> {
        match token {
            Token::Node => self.hear(),
            Token::Processes => {
                self.reap();
                Ok(())
            }
            Token::Proxy => {
                self.accept();
                Ok(())
            }
            Token::Sink(id) => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.drain(id, &mut self.link);
                }
                self.forget_if_over(id);
                Ok(())
            }
            Token::Source(id) => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.pump(id, &mut self.scratch, &mut self.link);
                }
                self.finish_job(id);
                self.forget_if_over(id);
                Ok(())
            }
            Token::Watch(id) => {
                if let Some(Kind::Watch(watch)) = self.channels.get_mut(&id).map(|channel| &mut channel.kind)
                {
                    watch.read(Instant::now());
                }
                Ok(())
            }
        }
    }

    /// Reads what the node says.
    fn hear(&mut self) -> Result<(), LinkError> {
        for _ in 0..READS_MAX {
            if !self.link.fill(&mut self.scratch)? {
                break;
            }
            self.last_heard = Instant::now();
            self.frames()?;
            if self.end || !self.link.interest().contains(PollFlags::IN) {
                break;
            }
        }
        Ok(())
    }

    fn frames(&mut self) -> Result<(), LinkError> {
        while let Some(frame) = self.link.next_frame()? {
            self.obey(frame)?;
            if self.end {
                break;
            }
        }
        Ok(())
    }

    /// What is due by the clock.
    fn notice(&mut self) -> Result<(), LinkError> {
        let now = Instant::now();
        if self
            .silence_max
            .is_some_and(|silence| now >= self.last_heard + silence)
        {
            return Err(LinkError::Closed);
        }
        for (&id, channel) in &mut self.channels {
            if let Kind::Watch(watch) = &mut channel.kind
                && watch.take_due(now)
            {
                self.link.send(id, Message::Changed);
            }
        }
        Ok(())
    }
}
