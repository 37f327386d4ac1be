//! One running CLI in a sandbox: its process, and the dialogue with it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agents::dialogue::{Language, LineSplitter};
use agents::{Dialogue, Reaction, Source};
use egress::EntranceMeter;
use sandbox::{ByteReader, ByteWriter, ExecRequest, Process, ProcessWaiter, Sandbox, SandboxError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A CLI that takes nothing for so long is no good any more.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const PIECE_BYTES: usize = 16 * 1024;
const KILL: i32 = 9;
const TERMINATE: i32 = 15;

/// What a CLI was started with and cannot be told later. Runs that want the same may share it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// The CLI's word for the effort, where it is told at the start only.
    pub(super) effort: Option<String>,
    /// The model of an endpoint other than the provider's.
    pub(super) endpoint: Option<String>,
    /// Its directory.
    pub(super) directory: String,
}

/// A running CLI.
pub(super) struct Cli {
    stdin: Option<ByteWriter>,
    stdout: Output,
    stderr: Output,
    waiter: ProcessWaiter,
    exit: Option<Option<i32>>,
    pub(super) dialogue: Dialogue,
    pub(super) wish: Wish,
    /// Its own entrance of the way out, and what has passed there.
    pub(super) entrance: EntranceMeter,
    /// The conversation that it is in, in its own words.
    pub(super) conversation: Option<String>,
    /// Whether it has had no prompt yet.
    pub(super) is_fresh: bool,
    can_resume: bool,
    lines: Vec<(Source, String)>,
}

struct Output {
    source: Source,
    reader: Option<ByteReader>,
    splitter: LineSplitter,
    piece: Vec<u8>,
}

/// What a CLI has done.
pub(super) enum News {
    /// It has printed lines.
    Lines(Vec<(Source, String)>),
    /// It has ended and everything it printed was told. None: by a signal.
    Exited(Option<i32>),
}

impl Cli {
    /// Starts it. Its dialogue's first lines are on their way when this returns.
    pub(super) async fn start(
        sandbox: &Sandbox,
        request: ExecRequest,
        (dialogue, language): (Dialogue, Language),
        wish: Wish,
        entrance: EntranceMeter,
    ) -> Result<(Self, Reaction), SandboxError> {
        let Process {
            stdin,
            stdout,
            stderr,
            waiter,
        } = sandbox.exec(request).await?;
        let output = |source, reader| Output {
            source,
            reader: Some(reader),
            splitter: LineSplitter::default(),
            piece: vec![0; PIECE_BYTES],
        };
        let mut cli = Self {
            stdin: Some(stdin),
            stdout: output(Source::Stdout, stdout),
            stderr: output(Source::Stderr, stderr),
            waiter,
            exit: None,
            dialogue,
            wish,
            entrance,
            conversation: None,
            is_fresh: true,
            can_resume: matches!(language, Language::CodexAppServer | Language::Acp),
            lines: Vec::new(),
        };
        let reaction = cli.dialogue.start();
        Ok((cli, reaction))
    }

    /// Waits for what it does next. Cancel safe.
    pub(super) async fn news(&mut self) -> News {
        if !self.lines.is_empty() {
            return News::Lines(std::mem::take(&mut self.lines));
        }
        if let Some(code) = self.exit {
            return News::Exited(code);
        }
        loop {
            tokio::select! {
                read = self.stdout.read(), if self.stdout.reader.is_some() => self.stdout.take(read, &mut self.lines),
                read = self.stderr.read(), if self.stderr.reader.is_some() => self.stderr.take(read, &mut self.lines),
                exit = self.waiter.wait(), if self.stdout.reader.is_none() && self.stderr.reader.is_none() => {
                    let code = exit.ok().and_then(|exit| exit.code);
                    self.exit = Some(code);
                    return News::Exited(code);
                }
            }
            if !self.lines.is_empty() {
                return News::Lines(std::mem::take(&mut self.lines));
            }
        }
    }

    /// Writes what a reaction says. False: the CLI takes nothing any more.
    pub(super) async fn write(&mut self, reaction: &Reaction) -> bool {
        if !reaction.lines.is_empty() {
            let mut text = String::with_capacity(reaction.lines.iter().map(|line| line.len() + 1).sum());
            for line in &reaction.lines {
                text.push_str(line);
                text.push('\n');
            }
            let Some(stdin) = &mut self.stdin else {
                return false;
            };
            let written = tokio::time::timeout(WRITE_TIMEOUT, stdin.write_all(text.as_bytes())).await;
            if !matches!(written, Ok(Ok(()))) {
                return false;
            }
        }
        if reaction.close_stdin {
            self.stdin = None;
        }
        true
    }

    /// Whether it can be told an older conversation while it runs.
    pub(super) fn can_resume(&self) -> bool {
        self.can_resume
    }

    /// Sends a signal to it and what it has started.
    pub(super) fn signal(&self, signal: i32) {
        // One that has ended gets none, which is as good.
        let _ = self.waiter.signal(signal);
    }

    /// Whether it can take another prompt.
    pub(super) fn can_go_on(&mut self) -> bool {
        let ended = futures_util::FutureExt::now_or_never(self.waiter.wait()).is_some();
        !ended && self.stdin.is_some() && self.dialogue.is_idle()
    }

    /// Ends it and all that it has started, at once.
    pub(super) fn kill(&self) {
        self.signal(KILL);
    }

    /// Lets it end by itself, and kills it when it takes longer than `grace`.
    pub(super) async fn end(mut self, grace: Duration) {
        match self.dialogue.close() {
            Some(reaction) => {
                self.write(&reaction).await;
            }
            None => self.signal(TERMINATE),
        }
        let ended = async { while !matches!(self.news().await, News::Exited(_)) {} };
        if tokio::time::timeout(grace, ended).await.is_err() {
            self.kill();
        }
    }
}

/// A process that does not outlive its being of interest.
pub(super) struct KillOnDrop(pub(super) ProcessWaiter);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // One that has ended gets none, which is as good.
        let _ = self.0.signal(KILL);
    }
}

impl Output {
    /// Reads the next piece. None: there is no more. Cancel safe.
    async fn read(&mut self) -> Option<usize> {
        let count = self.reader.as_mut()?.read(&mut self.piece).await.ok()?;
        (count > 0).then_some(count)
    }

    /// Takes the piece that was read, or the end.
    fn take(&mut self, read: Option<usize>, lines: &mut Vec<(Source, String)>) {
        let source = self.source;
        match read {
            Some(count) => self
                .splitter
                .push(&self.piece[..count], |line| lines.push((source, line.to_owned()))),
            None => {
                self.reader = None;
                self.splitter.finish(|line| lines.push((source, line.to_owned())));
            }
        }
    }
}

/// Unix time, by which dialogues turn reset times into waits.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
