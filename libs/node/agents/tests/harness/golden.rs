//! What was said in a dialogue, on paper: one entry a line, a mark before each.
//!
//! | mark | what |
//! |---|---|
//! | `@` | whose dialogue it is, and its settings |
//! | `#` | what was asked of the dialogue: `start`, `prompt`, `interrupt`, `new_conversation`, `exit`; and pauses, in seconds |
//! | `>` | a line written to the CLI; `>.` its input is closed |
//! | `<` | a line of its standard output |
//! | `!` | a line of its standard error |
//! | `=` | an event |

use std::fmt::Write as _;

use agents::{AgentEvent, DialogueSettings, Level, Profile, Reaction, Refusal, Source, Turn};

/// The moment at which a replay begins, as Unix time in milliseconds.
const BEGIN_MS: u64 = 1_700_000_000_000;

/// One thing that was said or done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entry {
    Start,
    Prompt(Turn),
    Interrupt,
    NewConversation,
    Exit(Option<i32>),
    /// Nothing came for so many seconds.
    Pause(u64),
    Line(Source, String),
    Written(String),
    Closed,
    Event(AgentEvent),
}

/// A dialogue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Golden {
    pub(crate) agent: String,
    pub(crate) hot: bool,
    pub(crate) settings: DialogueSettings,
    pub(crate) entries: Vec<Entry>,
}

impl Golden {
    pub(crate) fn new(agent: &str, level: Level, settings: &DialogueSettings) -> Self {
        Self {
            agent: agent.to_owned(),
            hot: level == Level::Hot,
            settings: settings.clone(),
            entries: Vec::new(),
        }
    }

    /// The text of a file.
    pub(crate) fn write(&self) -> String {
        let optional = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let settings = &self.settings;
        let mut text = format!(
            "@ {} {} own_endpoint={} workspace={} model={} session={}\n",
            self.agent,
            if self.hot { "hot" } else { "one_shot" },
            settings.own_endpoint,
            settings.workspace,
            optional(&settings.model),
            optional(&settings.session)
        );
        for entry in &self.entries {
            let line = match entry {
                Entry::Start => "# start".to_owned(),
                Entry::Prompt(turn) => format!("# prompt {:?}", turn.prompt),
                Entry::Interrupt => "# interrupt".to_owned(),
                Entry::NewConversation => "# new_conversation".to_owned(),
                Entry::Exit(Some(code)) => format!("# exit {code}"),
                Entry::Pause(seconds) => format!("# pause {seconds}"),
                Entry::Exit(None) => "# exit -".to_owned(),
                Entry::Line(Source::Stdout, line) => format!("< {line}"),
                Entry::Line(Source::Stderr, line) => format!("! {line}"),
                // A prompt may have several lines.
                Entry::Written(line) => format!("> {}", line.replace('\n', "\\n")),
                Entry::Closed => ">.".to_owned(),
                // The line stands right above.
                Entry::Event(AgentEvent::Raw { note, .. }) => format!("= Raw {note:?}"),
                Entry::Event(event) => format!("= {event:?}"),
            };
            writeln!(text, "{line}").expect("a string takes everything");
        }
        text
    }

    /// Reads what came in from a file's text, and leaves out what was made of it.
    pub(crate) fn read(text: &str) -> Self {
        let mut lines = text.lines();
        let mut golden = Self::head(lines.next().expect("a head"));
        for line in lines {
            let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
            golden.entries.push(match mark {
                "#" => Self::asked(rest),
                "<" => Entry::Line(Source::Stdout, rest.to_owned()),
                "!" => Entry::Line(Source::Stderr, rest.to_owned()),
                ">" | ">." | "=" => continue,
                _ => panic!("{line}"),
            });
        }
        golden
    }

    fn head(line: &str) -> Self {
        let mut golden = Self::default();
        let optional = |value: &str| (value != "-").then(|| value.to_owned());
        let mut words = line.split(' ').skip(1);
        words.next().expect("an agent").clone_into(&mut golden.agent);
        golden.hot = words.next() == Some("hot");
        for word in words {
            match word.split_once('=').expect("name=value") {
                ("own_endpoint", value) => golden.settings.own_endpoint = value == "true",
                ("workspace", value) => value.clone_into(&mut golden.settings.workspace),
                ("model", value) => golden.settings.model = optional(value),
                ("session", value) => golden.settings.session = optional(value),
                _ => panic!("{line}"),
            }
        }
        golden
    }

    fn asked(words: &str) -> Entry {
        match words.split_once(' ').unwrap_or((words, "")) {
            ("start", _) => Entry::Start,
            // What Rust escapes in these prompts is what JSON escapes.
            ("prompt", prompt) => Entry::Prompt(Turn::new(
                serde_json::from_str::<String>(prompt).expect("a quoted text"),
            )),
            ("interrupt", _) => Entry::Interrupt,
            ("new_conversation", _) => Entry::NewConversation,
            ("pause", seconds) => Entry::Pause(seconds.parse().expect("a number")),
            ("exit", code) => Entry::Exit(code.parse().ok()),
            _ => panic!("{words}"),
        }
    }

    /// What came in, without what was made of it.
    pub(crate) fn input(&self) -> Self {
        let made = |entry: &&Entry| !matches!(entry, Entry::Written(_) | Entry::Closed | Entry::Event(_));
        Self {
            entries: self.entries.iter().filter(made).cloned().collect(),
            ..self.clone()
        }
    }

    /// The same dialogue once more, with what is made of it now.
    pub(crate) fn replay(&self) -> Self {
        let mut again = self.input();
        let inputs = std::mem::take(&mut again.entries);
        again.entries = replay(&again, inputs).0;
        again
    }
}

/// Goes through `inputs` with the dialogue that `head` tells of. What is refused leaves no entry, and is counted.
pub(crate) fn replay(head: &Golden, inputs: Vec<Entry>) -> (Vec<Entry>, usize) {
    let profile = Profile::builtin(&head.agent).expect("built in").expect("right");
    let level = if head.hot { Level::Hot } else { Level::OneShot };
    let mut dialogue = profile.dialogue(level, head.settings.clone());
    let mut entries = Vec::new();
    let mut refused = 0;
    let mut now_ms = BEGIN_MS;
    for input in inputs {
        let reaction: Result<Reaction, Refusal> = match &input {
            Entry::Start => Ok(dialogue.start()),
            Entry::Prompt(turn) => dialogue.prompt(turn.clone()),
            Entry::Interrupt => dialogue.interrupt(),
            Entry::NewConversation => dialogue.new_conversation(),
            Entry::Exit(code) => Ok(dialogue.exited(*code)),
            Entry::Line(source, line) => Ok(dialogue.line(now_ms, *source, line)),
            Entry::Pause(seconds) => {
                now_ms += seconds * 1000;
                Ok(Reaction::default())
            }
            Entry::Written(_) | Entry::Closed | Entry::Event(_) => unreachable!("only inputs are given"),
        };
        let Ok(reaction) = reaction else {
            refused += 1;
            continue;
        };
        entries.push(input);
        entries.extend(reaction.lines.into_iter().map(Entry::Written));
        entries.extend(reaction.close_stdin.then_some(Entry::Closed));
        entries.extend(reaction.events.into_iter().map(Entry::Event));
    }
    (entries, refused)
}
