//! What the node asks for, and what happens by itself: ends of processes and jobs, programs that connect.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use init_protocol::{
    CHANNELS_MAX, CONNECTIONS_MAX, Exec, Exit, Failure, FailureCode, Frame, Message, NO_CHANNEL, Open,
    ProtocolError, entrance_at,
};
use rustix::process::{Pid, Signal, kill_process_group};

use super::Serving;
use crate::channel::{Channel, End, Kind};
use crate::job::{Job, pipe};
use crate::link::LinkError;
use crate::watch::Watch;
use crate::{archive, exec, health};

impl Serving<'_> {
    pub(super) fn obey(&mut self, frame: Frame) -> Result<(), LinkError> {
        let id = frame.channel;
        match frame.message {
            Message::SetLabel(label) => self.init.identity.label = Some(label),
            Message::Open(open) => self.open(id, open)?,
            Message::Data(bytes) => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel
                        .receive(id, &bytes, &mut self.link)
                        .map_err(ProtocolError::from)?;
                }
            }
            Message::Eof => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.finish(id, &mut self.link);
                }
            }
            Message::Stop => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.stop();
                }
                self.finish_job(id);
            }
            Message::Credit(bytes) => {
                if let Some(channel) = self.channels.get_mut(&id) {
                    channel.earn(bytes).map_err(ProtocolError::from)?;
                }
            }
            Message::Signal(signal) => self.signal(id, signal),
            // A connection that the node takes needs no more words.
            Message::Accept => {}
            Message::Reject(_) | Message::Close => {
                self.channels.remove(&id);
            }
            Message::Ping(nonce) => {
                let health = health::health(nonce, self.channels.len());
                self.link.send(NO_CHANNEL, Message::Pong(health));
            }
            Message::KillAll => {
                self.kill_all();
                self.link.send(NO_CHANNEL, Message::Killed);
            }
            Message::End => self.end = true,
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Refuse(_)
            | Message::Exited(_)
            | Message::Done(_)
            | Message::Changed
            | Message::Pong(_)
            | Message::Killed => {
                return Err(ProtocolError::Unexpected("a message that a node does not send").into());
            }
        }
        self.forget_if_over(id);
        Ok(())
    }

    fn open(&mut self, id: u32, open: Open) -> Result<(), LinkError> {
        if id == NO_CHANNEL || !id.is_multiple_of(2) || self.channels.contains_key(&id) {
            return Err(ProtocolError::Unexpected("a channel that is not the node's to open").into());
        }
        let opened = if self.channels.len() + 2 > CHANNELS_MAX {
            Err(Failure::new(FailureCode::TooLarge, "too many channels are open"))
        } else {
            match open {
                Open::Exec(exec) => self.start(id, &exec),
                Open::Unpack(request) => self
                    .job(|waker| {
                        let (reader, writer) = pipe()?;
                        let job = Job::start(reader, waker, move |input| archive::unpack(&request, input))?;
                        Ok((job, Some(writer.into()), None))
                    })
                    .map(|channel| self.insert(id, channel)),
                Open::Pack(request) => self
                    .job(|waker| {
                        let (reader, writer) = pipe()?;
                        let job = Job::start(writer, waker, move |out| archive::pack(&request, out))?;
                        Ok((job, None, Some(reader.into())))
                    })
                    .map(|channel| self.insert(id, channel)),
                Open::Watch { path } => watch(&path).map(|channel| self.insert(id, channel)),
                Open::Connection { .. } => {
                    return Err(ProtocolError::Unexpected("a connection opened by the node").into());
                }
            }
        };
        let answer = opened.map_or_else(Message::Reject, |()| Message::Accept);
        self.link.send(id, answer);
        Ok(())
    }

    fn insert(&mut self, id: u32, channel: Channel) {
        self.channels.insert(id, channel);
    }

    fn start(&mut self, id: u32, exec: &Exec) -> Result<(), Failure> {
        let stderr_channel = exec.stderr_channel;
        if !stderr_channel.is_multiple_of(2)
            || stderr_channel == id
            || stderr_channel == NO_CHANNEL
            || self.channels.contains_key(&stderr_channel)
        {
            return Err(Failure::new(
                FailureCode::Invalid,
                "no channel for standard error",
            ));
        }
        let started = exec::start(exec, &self.init.base_environment)?;
        let kind = Kind::Exec {
            pid: started.pid,
            ended: false,
        };
        let main = Channel::new(
            kind,
            Some(End::Pipe(started.stdin)),
            Some(End::Pipe(started.stdout)),
        );
        let stderr = Channel::new(Kind::Stream, None, Some(End::Pipe(started.stderr)));
        self.channels.insert(id, main);
        self.channels.insert(stderr_channel, stderr);
        Ok(())
    }

    fn job(
        &self,
        start: impl FnOnce(std::os::unix::net::UnixStream) -> std::io::Result<JobParts>,
    ) -> Result<Channel, Failure> {
        let channel = || -> std::io::Result<Channel> {
            let (job, sink, source) = start(self.init.processes.waker()?)?;
            for end in sink.iter().chain(&source) {
                exec::not_blocking(end)?;
            }
            Ok(Channel::new(
                Kind::Archive { job },
                sink.map(End::Pipe),
                source.map(End::Pipe),
            ))
        };
        channel().map_err(|error| Failure::new(FailureCode::Failed, format!("cannot start: {error}")))
    }

    fn signal(&self, id: u32, signal: i32) {
        if let Some(Kind::Exec { pid, ended: false }) = self.channels.get(&id).map(|channel| &channel.kind)
            && let Some(signal) = Signal::from_named_raw(signal)
        {
            // An error means that nobody is left to be signalled.
            let _ = kill_process_group(*pid, signal);
        }
    }

    /// Whatever has woken the main loop: ends of processes, ends of jobs.
    pub(super) fn reap(&mut self) {
        self.init.processes.clear();
        while let Some((pid, exit)) = self.init.processes.reap() {
            self.exited(pid, exit);
        }
        let jobs: Vec<u32> = self
            .channels
            .iter()
            .filter(|(_, channel)| matches!(channel.kind, Kind::Archive { .. }))
            .map(|(&id, _)| id)
            .collect();
        for id in jobs {
            self.finish_job(id);
        }
    }

    fn exited(&mut self, pid: Pid, exit: Exit) {
        let found = self
            .channels
            .iter_mut()
            .find_map(|(&id, channel)| match &mut channel.kind {
                Kind::Exec { pid: own, ended } if *own == pid && !*ended => {
                    *ended = true;
                    Some(id)
                }
                _ => None,
            });
        // Others are orphans: reaped, and nobody's to hear of.
        let Some(id) = found else { return };
        self.link.send(id, Message::Exited(exit));
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.drop_sink(id, &mut self.link);
        }
        self.forget_if_over(id);
    }

    /// Says how a job went, once it has ended and all its bytes are said.
    pub(super) fn finish_job(&mut self, id: u32) {
        let Some(channel) = self.channels.get_mut(&id) else {
            return;
        };
        let Kind::Archive { job } = &channel.kind else {
            return;
        };
        if !channel.source_is_over() {
            return;
        }
        if let Some(result) = job.result() {
            channel.drop_sink(id, &mut self.link);
            self.link.send(id, Message::Done(result));
            self.channels.remove(&id);
        }
    }

    pub(super) fn forget_if_over(&mut self, id: u32) {
        if self.channels.get(&id).is_some_and(Channel::is_over) {
            self.channels.remove(&id);
        }
    }

    fn kill_all(&mut self) {
        let mut ended = Vec::new();
        let all = self.init.processes.kill_all(|pid, exit| ended.push((pid, exit)));
        if !all {
            eprintln!("remuda-init: some processes cannot be ended");
        }
        for (pid, exit) in ended {
            self.exited(pid, exit);
        }
    }

    pub(super) fn may_accept(&self) -> bool {
        let connections = self.channels.keys().filter(|id| !id.is_multiple_of(2)).count();
        connections < CONNECTIONS_MAX && self.channels.len() + 2 < CHANNELS_MAX && self.link.has_room()
    }

    /// A program has connected.
    pub(super) fn accept(&mut self) {
        // An error is that program's; the listener stays.
        let Ok((socket, _)) = self.init.proxy.accept() else {
            return;
        };
        // One that came from outside, where a sandbox has a network of its own, is none of a program's here.
        let Ok(SocketAddr::V4(address)) = socket.local_addr() else {
            return;
        };
        let Some(entrance) = entrance_at(*address.ip()) else {
            return;
        };
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        let _ = socket.set_nodelay(true);
        let id = self.next_id;
        // Two thousand million connections later the ids would begin again; by then the old ones are long over.
        self.next_id = self.next_id.wrapping_add(2);
        let socket = Rc::new(socket);
        let channel = Channel::new(
            Kind::Stream,
            Some(End::Socket(Rc::clone(&socket))),
            Some(End::Socket(socket)),
        );
        self.channels.insert(id, channel);
        self.link.send(id, Message::Open(Open::Connection { entrance }));
    }
}

type JobParts = (Job, Option<std::os::fd::OwnedFd>, Option<std::os::fd::OwnedFd>);

fn watch(path: &str) -> Result<Channel, Failure> {
    let path = Path::new(path);
    std::fs::create_dir_all(path)
        .map_err(|error| Failure::new(FailureCode::Failed, format!("cannot make the directory: {error}")))?;
    let mut watch = Watch::new(path).map_err(|error| {
        Failure::new(
            FailureCode::Failed,
            format!("cannot watch the directory: {error}"),
        )
    })?;
    watch.read(Instant::now());
    Ok(Channel::new(Kind::Watch(watch), None, None))
}
