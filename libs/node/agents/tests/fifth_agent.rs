//! A fifth agent is a fifth file: a CLI that nobody has heard of, which speaks the Agent Client Protocol.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use agents::dialogue::Outcome;
use agents::{AgentEvent, DialogueSettings, Level, Profile, Source, Turn, Values, Variable};

const PROFILE: &str = r#"
name = "fifth"
about = "a shell script that speaks the Agent Client Protocol"
provider = "nobody"

[package]
name = "fifth"
version = "1.0.0"
lock = "fifth/package-lock.json"
interpreter = "sh"
programs = { any = "fifth/agent.sh" }

[hot]
language = "acp"
args = ["--greeting", "{{ HOME }}"]
end = { by = "close_stdin", grace_ms = 1000 }

[one_shot]
language = "acp"
args = []
end = { by = "close_stdin", grace_ms = 1000 }

[login]
keep = [".fifth"]
reads = "at_start"
evidence = ".fifth/login"
flows = []

[egress]
hosts = []

[timeouts]
ready_s = 5
low_s = 5
medium_s = 5
high_s = 5
"#;

const LOCK: &str = r#"{"packages": {
    "": {"dependencies": {"fifth": "1.0.0"}},
    "node_modules/fifth": {"version": "1.0.0", "integrity": "sha512-AAAA"}
}}"#;

/// Answers each request by its id: 1, 2, 3, ...
const AGENT: &str = r#"
id=0
while read -r line; do
    id=$((id + 1))
    case "$line" in
    *'"session/new"'*) result='{"sessionId":"the-session"}' ;;
    *'"session/prompt"'*)
        printf '%s\n' '{"method":"session/update","params":{"sessionId":"the-session","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"hello from '"$2"'"}}}}'
        result='{"stopReason":"end_turn"}' ;;
    *) result='{}' ;;
    esac
    printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result"
done
"#;

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("writable");
    std::fs::write(path, text).expect("writable");
}

#[test]
fn a_fifth_agent_is_a_fifth_file() {
    let directory = tempfile::tempdir().expect("a directory for tests");
    let profiles = directory.path().join("profiles");
    write(&profiles.join("fifth.toml"), PROFILE);
    write(&profiles.join("fifth/package-lock.json"), LOCK);
    let install = directory.path().join("install");
    write(&install.join("node_modules/fifth/agent.sh"), AGENT);

    assert_eq!(Profile::all(Some(&profiles)).expect("all are right").len(), 5);
    let profile = Profile::find("fifth", Some(&profiles)).expect("it is there");
    let values = Values::new()
        .with(Variable::Install, install.display().to_string())
        .with(Variable::Home, "/home/agent");
    let command = profile
        .start_command(Level::Hot, &values)
        .expect("a command line");
    let mut child = Command::new(&command.argv[0])
        .args(&command.argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();

    let mut dialogue = profile.dialogue(Level::Hot, DialogueSettings::default());
    let mut reaction = dialogue.start();
    let mut events = Vec::new();
    let mut asked = false;
    loop {
        for line in &reaction.lines {
            writeln!(stdin, "{line}").expect("it reads");
        }
        events.append(&mut reaction.events);
        if matches!(events.last(), Some(AgentEvent::TurnEnded { .. })) {
            break;
        }
        if events.contains(&AgentEvent::Ready) && !asked {
            asked = true;
            reaction = dialogue.prompt(Turn::new("hi")).expect("it is idle");
            continue;
        }
        let line = lines.next().expect("it answers").expect("readable");
        reaction = dialogue.line(0, Source::Stdout, &line);
    }
    let text = AgentEvent::Text {
        message: 0,
        text: "hello from /home/agent".to_owned(),
    };
    assert!(events.contains(&text), "{events:?}");
    let end = AgentEvent::TurnEnded {
        outcome: Outcome::Completed,
    };
    assert_eq!(events.last(), Some(&end));
    drop(stdin);
    child.wait().expect("it ends");
}

/// A directory replaces what is built in, and a profile in it is read as strictly.
#[test]
fn a_directory_replaces_and_is_checked() {
    let directory = tempfile::tempdir().expect("a directory for tests");
    write(&directory.path().join("fifth.toml"), PROFILE);
    let error = Profile::find("fifth", Some(directory.path()))
        .unwrap_err()
        .to_string();
    let file = directory.path().join("fifth.toml");
    assert!(
        error.starts_with(&format!("{}:9: `package.lock` names", file.display())),
        "{error}"
    );
    write(
        &directory.path().join("claude.toml"),
        "name = \"claude\"\nshiny = true\n",
    );
    let error = Profile::find("claude", Some(directory.path()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("claude.toml:2: unknown field `shiny`"), "{error}");
    let error = Profile::find("sixth", Some(directory.path()))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "there is no agent profile named \"sixth\"; there are claude, codex, fifth, gemini, opencode"
    );
}
