//! One process of a real CLI, with its dialogue.

use std::io::{BufReader, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use agents::dialogue::{LineSplitter, Outcome};
use agents::profile::EffortLevel;
use agents::{
    AgentEvent, CommandLine, Dialogue, DialogueSettings, Level, Profile, Reaction, Source, Turn, Values,
    Variable,
};

use super::golden::{Entry, Golden};

/// An ordinary user: Claude Code refuses to run as root.
const NOBODY: &str = "65534";

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(90);

/// A pause that is written down. Agents wait longer before they fetch a stream again.
const PAUSE: Duration = Duration::from_millis(700);

/// A directory for one CLI: its programs where an ordinary user may read them, and a home for each process.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    pub(crate) profile: Profile,
    pub(crate) url: String,
    install: PathBuf,
    homes: std::cell::Cell<u32>,
}

/// How long the parts of a turn took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) event: Option<Duration>,
    pub(crate) text: Option<Duration>,
    pub(crate) end: Duration,
}

/// What became of a turn.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// The messages, put together.
    pub(crate) messages: Vec<String>,
    pub(crate) events: Vec<AgentEvent>,
    pub(crate) times: Times,
}

impl Place {
    /// Installs the CLI, or says why it cannot be had.
    pub(crate) fn new(name: &str, url: &str) -> Result<Self, String> {
        let profile = Profile::builtin(name).expect("built in").expect("right");
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
        let cache = cache.or_else(home).unwrap_or_else(std::env::temp_dir);
        let installed = agents::install::install(&profile, &cache.join("remuda/agents"), &mut |_| {})
            .map_err(|error| error.to_string())?;
        let directory = tempfile::tempdir().expect("a directory for tests");
        open(directory.path());
        // The cache of root is no place that an ordinary user may read. Links where that is possible.
        let install = directory.path().join("install");
        let copied = ["-al", "-a"].into_iter().any(|flags| {
            let copied = Command::new("cp")
                .arg(flags)
                .arg(&installed)
                .arg(&install)
                .status();
            copied.is_ok_and(|status| status.success())
        });
        assert!(copied, "{} cannot be copied", installed.display());
        Ok(Self {
            directory,
            profile,
            url: url.to_owned(),
            install,
            homes: std::cell::Cell::new(0),
        })
    }

    /// An empty home with a workspace.
    pub(crate) fn home(&self) -> PathBuf {
        self.homes.set(self.homes.get() + 1);
        let home = self.directory.path().join(format!("home{}", self.homes.get()));
        // Codex wants its directory to be there.
        for directory in [home.clone(), home.join("work"), home.join(".codex")] {
            std::fs::create_dir_all(&directory).expect("a home for tests");
            open(&directory);
        }
        home
    }

    /// What stands for what in the transcripts.
    pub(crate) fn names(&self, home: &Path) -> Vec<(String, &'static str)> {
        vec![
            (home.join("work").display().to_string(), "/workspace"),
            (home.display().to_string(), "/home/agent"),
            (self.install.display().to_string(), "/opt/agent"),
            (self.url.trim_start_matches("http://").to_owned(), "127.0.0.1:1"),
        ]
    }

    /// Starts a process.
    pub(crate) fn start(&self, level: Level, home: &Path, session: Option<&str>, model: Option<&str>) -> Cli {
        let workspace = home.join("work").display().to_string();
        let values = Values::new()
            .with(Variable::Install, self.install.display().to_string())
            .with(Variable::Home, home.display().to_string())
            .with(Variable::Workspace, &*workspace)
            .with(Variable::BaseUrl, &self.url)
            .with(Variable::Key, "the-key")
            .with_some(Variable::Model, model)
            .with_some(Variable::Session, session)
            .with_some(Variable::Effort, self.profile.effort_word(EffortLevel::Low));
        let line = self
            .profile
            .start_command(level, &values)
            .expect("a command line");
        let settings = DialogueSettings {
            workspace,
            model: model.map(str::to_owned),
            session: session.map(str::to_owned),
            own_endpoint: true,
            ..DialogueSettings::default()
        };
        let started = Instant::now();
        let mut child = spawn(&line, home);
        let (sender, lines) = mpsc::sync_channel(1024);
        read(
            child.stdout.take().expect("piped"),
            Source::Stdout,
            sender.clone(),
        );
        read(child.stderr.take().expect("piped"), Source::Stderr, sender);
        let mut cli = Cli {
            golden: Golden::new(&self.profile.name, level, &settings),
            dialogue: self.profile.dialogue(level, settings),
            stdin: child.stdin.take(),
            child,
            lines,
            started,
            begun: started,
            events: Vec::new(),
            heard: started,
        };
        cli.golden.entries.push(Entry::Start);
        let reaction = cli.dialogue.start();
        cli.take(reaction);
        cli
    }
}

fn spawn(line: &CommandLine, home: &Path) -> Child {
    for (path, content) in &line.files {
        let path = home.join(path);
        let parent = path.parent().expect("it is in the home");
        std::fs::create_dir_all(parent).expect("a directory in the home");
        open(parent);
        std::fs::write(&path, content).expect("a file in the home");
        open(&path);
    }
    let root = rustix::process::getuid().is_root();
    let mut command = Command::new(if root { "setpriv" } else { "env" });
    if root {
        command.args([
            "--reuid",
            NOBODY,
            "--regid",
            NOBODY,
            "--clear-groups",
            "--",
            "env",
        ]);
    }
    command.arg("-i").arg(format!("HOME={}", home.display()));
    command.arg(format!("PATH={}", std::env::var("PATH").unwrap_or_default()));
    command.args(line.env.iter().map(|(name, value)| format!("{name}={value}")));
    command
        .args(&line.argv)
        .current_dir(home.join("work"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

/// A running process.
pub(crate) struct Cli {
    dialogue: Dialogue,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(Source, String)>,
    golden: Golden,
    started: Instant,
    /// When the turn was asked for.
    begun: Instant,
    events: Vec<(Instant, AgentEvent)>,
    /// When the last line came.
    heard: Instant,
}

impl Cli {
    /// Waits until it takes prompts, and says how long that took.
    pub(crate) fn ready(&mut self) -> Duration {
        self.until(|event| matches!(event, AgentEvent::Ready));
        self.started.elapsed()
    }

    /// Asks for a turn.
    pub(crate) fn prompt(&mut self, prompt: &str) {
        let turn = Turn::new(prompt);
        self.golden.entries.push(Entry::Prompt(turn.clone()));
        self.events.clear();
        self.begun = Instant::now();
        let reaction = self.dialogue.prompt(turn).expect("it is idle");
        self.take(reaction);
    }

    /// Asks for a turn and waits for its end.
    pub(crate) fn turn(&mut self, prompt: &str) -> Ended {
        self.prompt(prompt);
        self.ended()
    }

    /// Ends the turn once it has said something.
    pub(crate) fn interrupt_after_text(&mut self) -> Ended {
        self.until(|event| matches!(event, AgentEvent::Text { .. }));
        self.golden.entries.push(Entry::Interrupt);
        let reaction = self.dialogue.interrupt().expect("it can");
        self.take(reaction);
        self.ended()
    }

    /// Empties the conversation.
    pub(crate) fn new_conversation(&mut self) {
        self.golden.entries.push(Entry::NewConversation);
        self.events.clear();
        let reaction = self.dialogue.new_conversation().expect("it is idle and can");
        self.take(reaction);
        self.until(|event| matches!(event, AgentEvent::Cleared));
    }

    /// The id of the conversation.
    pub(crate) fn session(&self) -> String {
        let told = self.golden.entries.iter().rev().find_map(|entry| match entry {
            Entry::Event(AgentEvent::Session { id }) => Some(id.clone()),
            _ => None,
        });
        told.expect("it has told its session")
    }

    /// Waits for the end of the turn.
    pub(crate) fn ended(&mut self) -> Ended {
        let AgentEvent::TurnEnded { outcome } =
            self.until(|event| matches!(event, AgentEvent::TurnEnded { .. }))
        else {
            unreachable!("it was waited for");
        };
        let since = |find: &dyn Fn(&AgentEvent) -> bool| {
            let found = self.events.iter().find(|(_, event)| find(event))?;
            Some(found.0.duration_since(self.begun))
        };
        let times = Times {
            event: since(&|event| !matches!(event, AgentEvent::Ready | AgentEvent::Raw { .. })),
            text: since(&|event| matches!(event, AgentEvent::Text { .. })),
            end: since(&|event| matches!(event, AgentEvent::TurnEnded { .. })).unwrap_or_default(),
        };
        let events: Vec<AgentEvent> = self.events.iter().map(|(_, event)| event.clone()).collect();
        Ended {
            outcome,
            messages: messages(&events),
            events,
            times,
        }
    }

    /// Ends the process by closing its input, and says how long it took.
    pub(crate) fn close(mut self) -> (Golden, Duration) {
        let begun = Instant::now();
        self.stdin = None;
        let mut open = true;
        while open {
            match self.lines.recv_timeout(PATIENCE) {
                Ok((source, line)) => self.line(source, &line),
                Err(mpsc::RecvTimeoutError::Disconnected) => open = false,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end"),
            }
        }
        self.exited();
        (std::mem::take(&mut self.golden), begun.elapsed())
    }

    /// Reads on until an event comes that was waited for.
    fn until(&mut self, find: impl Fn(&AgentEvent) -> bool) -> AgentEvent {
        let begun = Instant::now();
        let mut next = 0;
        let mut open = true;
        loop {
            if let Some((_, event)) = self.events[next..].iter().find(|(_, event)| find(event)) {
                return event.clone();
            }
            assert!(open, "it has ended: {:#?}", self.events);
            next = self.events.len();
            let left = PATIENCE.saturating_sub(begun.elapsed());
            match self.lines.recv_timeout(left) {
                Ok((source, line)) => self.line(source, &line),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.exited();
                    open = false;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("nothing came of it: {:#?}", self.events),
            }
        }
    }

    fn exited(&mut self) {
        let status = self.child.wait().expect("it is ours");
        let told = matches!(self.golden.entries.last(), Some(Entry::Exit(_)));
        if !told {
            self.golden.entries.push(Entry::Exit(status.code()));
        }
        let reaction = self.dialogue.exited(status.code());
        self.take(reaction);
    }

    fn line(&mut self, source: Source, line: &str) {
        let pause = self.heard.elapsed();
        self.heard = Instant::now();
        if pause >= PAUSE {
            // Rounded up, so that a second recording is the same.
            self.golden.entries.push(Entry::Pause(pause.as_secs() + 1));
        }
        self.golden.entries.push(Entry::Line(source, line.to_owned()));
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
        let now_ms = u64::try_from(now.as_millis()).expect("for a long time");
        let reaction = self.dialogue.line(now_ms, source, line);
        self.take(reaction);
    }

    fn take(&mut self, reaction: Reaction) {
        let now = Instant::now();
        for line in reaction.lines {
            if let Some(stdin) = &mut self.stdin {
                // A CLI that has ended is noticed by its output.
                let _ = stdin.write_all(format!("{line}\n").as_bytes());
            }
        }
        if reaction.close_stdin {
            self.stdin = None;
        }
        for event in reaction.events {
            self.golden.entries.push(Entry::Event(event.clone()));
            self.events.push((now, event));
        }
    }
}

/// A test that fails leaves no process.
impl Drop for Cli {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The messages of a turn, put together as a reader would.
pub(crate) fn messages(events: &[AgentEvent]) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    for event in events {
        let (AgentEvent::Text { message, text } | AgentEvent::TextReplaced { message, text }) = event else {
            continue;
        };
        let index = usize::try_from(*message).expect("a small number");
        messages.resize(messages.len().max(index + 1), String::new());
        if matches!(event, AgentEvent::TextReplaced { .. }) {
            messages[index].clear();
        }
        messages[index].push_str(text);
    }
    messages.retain(|message| !message.is_empty());
    messages
}

fn read(from: impl Read + Send + 'static, source: Source, to: SyncSender<(Source, String)>) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut splitter = LineSplitter::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            if read == 0 {
                break;
            }
            // Nobody listens any more when a test has failed.
            splitter.push(&buffer[..read], |line| drop(to.send((source, line.to_owned()))));
        }
        splitter.finish(|line| drop(to.send((source, line.to_owned()))));
    });
}

fn open(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
}
