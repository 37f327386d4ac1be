use super::*;
use crate::template::{Values, Variable};

fn values() -> Values {
    Values::new()
        .with(Variable::Install, "/opt/agent")
        .with(Variable::Home, "/home/agent")
        .with(Variable::Workspace, "/workspace")
}

fn builtin(name: &str) -> Profile {
    Profile::builtin(name).expect("it is built in").unwrap()
}

#[test]
fn every_profile_that_is_built_in_is_right_and_starts() {
    let profiles = Profile::all(None).unwrap();
    assert_eq!(profiles.len(), built_in::NAMES.len());
    for profile in profiles {
        for level in [Level::Hot, Level::OneShot] {
            let plain = profile.start_command(level, &values()).unwrap();
            let pointed = values()
                .with(Variable::BaseUrl, "http://127.0.0.1:1")
                .with(Variable::Key, "the-key")
                .with(Variable::Model, "m1");
            let pointed = profile.start_command(level, &pointed).unwrap();
            assert!(plain.env.len() < pointed.env.len(), "{}", profile.name);
            assert!(
                pointed.argv.iter().all(|argument| !argument.contains("the-key")),
                "a key stands in no argument"
            );
            assert!(!format!("{pointed:?}").contains("the-key"));
        }
        assert_eq!(profile.timeouts.turn(EffortLevel::Low), Duration::from_secs(15));
        assert_eq!(profile.timeouts.turn(EffortLevel::High), Duration::from_secs(120));
    }
}

#[test]
fn a_command_line_has_what_was_asked_for() {
    let claude = builtin("claude");
    let asked = values()
        .with(Variable::Model, "some-model")
        .with(Variable::Effort, claude.effort_word(EffortLevel::High).unwrap())
        .with(Variable::Session, "the-session");
    let command = claude.start_command(Level::Hot, &asked).unwrap();
    let line = command.argv.join(" ");
    assert!(
        line.starts_with("/opt/agent/node_modules/@anthropic-ai/"),
        "{line}"
    );
    assert!(
        line.ends_with("--model some-model --effort high --resume the-session"),
        "{line}"
    );

    let codex = builtin("codex");
    let asked = values()
        .with(Variable::Model, "a\" , x=\"1")
        .with(Variable::BaseUrl, "http://127.0.0.1:1")
        .with(Variable::Key, "k");
    let command = codex.start_command(Level::OneShot, &asked).unwrap();
    assert!(
        command.argv.contains(&"model=\"a\\\" , x=\\\"1\"".to_owned()),
        "{:?}",
        command.argv
    );
    assert_eq!(command.env["REMUDA_KEY"], "k");

    let gemini = builtin("gemini");
    let error = gemini.start_command(Level::Hot, &values().with(Variable::Effort, "high"));
    assert_eq!(error.unwrap_err().to_string(), "gemini cannot be told an effort");
    let key = Values::new().with(Variable::Key, "it's a 'key'");
    let files = gemini.login_command(&gemini.login.flows[0], &key).unwrap().files;
    assert_eq!(files[1].1, "GEMINI_API_KEY='it'\\''s a '\\''key'\\'''\n");
}

/// What is said about the profile of Claude Code after a change, and that it is said of the first line that holds `at`.
fn refused(from: &str, to: &str, at: &str, expect: &str) {
    let text = include_str!("../../../../../agents/claude.toml");
    assert!(text.contains(from), "{from}");
    let text = text.replacen(from, to, 1);
    let error = Profile::parse("agents/claude.toml", &text, |file| {
        built_in::file(file)
            .map(str::to_owned)
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    });
    let line = 1 + text.lines().position(|line| line.contains(at)).unwrap();
    let expect = format!("agents/claude.toml:{line}: {expect}");
    assert_eq!(error.unwrap_err().to_string(), expect, "{from} -> {to}");
}

#[test]
fn what_is_wrong_is_named_with_file_line_and_reason() {
    refused(
        "[timeouts]",
        "[timeouts]\nfast_s = 1",
        "fast_s",
        "unknown field `fast_s`, expected one of `ready_s`, `low_s`, `medium_s`, `high_s`",
    );
    refused(
        "lock = \"claude/package-lock.json\"",
        "lock = \"claude/lock.json\"",
        "lock =",
        "`package.lock` names \"claude/lock.json\", which cannot be read: entity not found",
    );
    refused(
        "version = \"2.1.329\"",
        "version = \"2.1.330\"",
        "lock =",
        "\"claude/package-lock.json\" does not pin @anthropic-ai/claude-code 2.1.330",
    );
    refused(
        "name = \"claude\"",
        "name = \"cloude\"",
        "name =",
        "`name` is \"cloude\", but the file's name says otherwise",
    );
    refused(
        "{{ MODEL }}",
        "{{ MODLE }}",
        "MODLE",
        "there is no variable \"MODLE\"; there are INSTALL, HOME, WORKSPACE, MODEL, EFFORT, \
         SESSION, BASE_URL, KEY",
    );
    refused(
        "[\"--model\", \"{{ MODEL }}\"]",
        "[\"--model\", \"{{ SESSION }}\"]",
        "[\"--model\"",
        "`model.args` cannot use {{ SESSION }}: it is not known there",
    );
    refused(
        "language = \"claude_stream_json\"",
        "language = \"codex_exec_json\"",
        "[hot]",
        "`hot.args` lacks \"exec\", without which `language` cannot be \"codex_exec_json\"",
    );
    refused(
        "language = \"claude_stream_json\"",
        "language = \"lines\"",
        "[hot]",
        "`hot.language` cannot be \"lines\": it takes one prompt only",
    );
    refused(
        "language = \"claude_stream_json\"",
        "language = \"acp\"",
        "resume_args",
        "`hot.resume_args` is impossible: \"acp\" continues in its dialogue",
    );
    refused(
        "evidence = \".claude/",
        "evidence = \"../.claude/",
        "\"../",
        "the path \"../.claude/.credentials.json\" must be relative and stay below its start",
    );
    refused(
        "hosts = [\"api.anthropic.com\"]",
        "hosts = [\"https://api.anthropic.com\"]",
        "https:",
        "\"https://api.anthropic.com\" is no host name in small letters",
    );
    refused(
        "low_s = 15",
        "low_s = 61",
        "low_s",
        "`timeouts` must not fall from low over medium to high",
    );
}
