//! The command line: what can be typed, and a helpful answer to what cannot.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands::{
    bench, certs, chat, completions, doctor, keys, login, models, nodes, pools, run, tasks, up,
};
use crate::failure::Exit;

/// Keeps models ready on your own machines and sends work to them
#[derive(Debug, Parser)]
#[command(
    name = "remuda",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "First steps:\n  \
        remuda run \"3*67\"        ask the demo model once\n  \
        remuda run --agent claude --model local:demo \"3*67\"\n                                 the same by a coding agent in a sandbox\n  \
        remuda up                keep it running for every OpenAI or Anthropic client\n  \
        remuda doctor            see what is missing on this machine\n\n\
        Exit codes:\n  0 done, 1 failed, 64 typed or set wrong, 66 no such thing, 69 no control plane answers,\n  \
        75 try again later, 77 refused, 130 interrupted"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Arguments),
    Up(up::Arguments),
    Chat(chat::Arguments),
    Login(login::Arguments),
    Models(models::Arguments),
    Nodes(nodes::Arguments),
    Pools(pools::Arguments),
    Tasks(tasks::Arguments),
    Keys(keys::Arguments),
    Certs(certs::Arguments),
    Bench(bench::Arguments),
    Doctor(doctor::Arguments),
    Completions(completions::Arguments),
}

/// Reads the command line, or prints why it makes no sense and gives the exit code.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        let hint = hint(&error);
        let code = if error.use_stderr() { Exit::Usage as u8 } else { 0 };
        // The terminal is gone if this fails, and nobody is left to tell.
        let _ = error.print();
        if let Some(hint) = hint {
            anstream::eprintln!("\n{hint}");
        }
        ExitCode::from(code)
    })
}

/// A word more than clap has, where a new user probably meant something else.
fn hint(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand || error.get(ContextKind::SuggestedSubcommand).is_some() {
        return None;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let known = Cli::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect::<Vec<_>>();
    Some(format!(
        "To ask the model: remuda run {typed:?}\nCommands: {}",
        known.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command) {
            assert!(
                command.get_about().is_some(),
                "{} says nothing about itself",
                command.get_name()
            );
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("remuda "), "{} has no example", command.get_name());
            command.get_subcommands().for_each(check);
        }
        Cli::command().get_subcommands().for_each(check);
    }

    #[test]
    fn a_question_typed_without_run_is_understood() {
        let error = Cli::try_parse_from(["remuda", "3*67"]).unwrap_err();
        assert!(
            hint(&error)
                .unwrap()
                .starts_with("To ask the model: remuda run \"3*67\"")
        );
        let error = Cli::try_parse_from(["remuda", "nodse"]).unwrap_err();
        assert_eq!(hint(&error), None, "clap has a suggestion of its own");
    }

    /// The help of every command is a document; `REMUDA_UPDATE_DOCS=1 cargo test -p remuda` writes it anew.
    #[test]
    fn docs_cli_md_is_what_the_program_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        let text = document();
        if std::env::var_os("REMUDA_UPDATE_DOCS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        let first_difference = stored
            .lines()
            .zip(text.lines())
            .find(|(stored, said)| stored != said);
        assert!(
            stored == text,
            "docs/cli.md differs, first here: {first_difference:?}; see this test"
        );
    }

    fn document() -> String {
        let mut text = include_str!("cli_intro.md").to_owned();
        let mut command = Cli::command().term_width(100);
        command.build();
        describe(&mut command, &mut text);
        text
    }

    fn describe(command: &mut clap::Command, text: &mut String) {
        let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
        let help = command.render_long_help().to_string();
        let help: Vec<_> = help.lines().map(str::trim_end).collect();
        text.push_str(&format!(
            "\n## {name}\n\n```text\n{}\n```\n",
            help.join("\n").trim_end()
        ));
        for subcommand in command
            .get_subcommands_mut()
            .filter(|subcommand| subcommand.get_name() != "help")
        {
            describe(subcommand, text);
        }
    }
}
