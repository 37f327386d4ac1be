//! `remuda chat`: a conversation, line by line.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};

use crate::answer::{self, Message, Question};
use crate::client::{Client, ControlPlane};
use crate::output::{bold, dim};

/// Talk with a model, line by line
///
/// The whole conversation goes to the model with every line. Ctrl-C ends an answer, /exit or Ctrl-D ends the talk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  remuda chat\n  remuda chat --model demo\n\n\
    Within: /clear forgets the conversation, /model NAME changes the model, /models lists them, /exit ends")]
pub(crate) struct Arguments {
    /// The model [default: the only one there is]
    #[arg(long)]
    model: Option<String>,

    /// The most tokens in one answer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,

    #[command(flatten)]
    control_plane: ControlPlane,
}

/// What a typed line means.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Exit,
    Clear,
    Models,
    Model(&'a str),
    Help,
    Unknown(&'a str),
    Say(&'a str),
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.control_plane.client()?;
    let mut model = match arguments.model {
        Some(model) => model,
        None => answer::only_model(&client).await?,
    };
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        anstream::eprintln!(
            "{}",
            dim(format!(
                "{model} at {}; /help says what else can be typed",
                client.address()
            ))
        );
    }
    let mut conversation = Vec::new();
    while let Some(line) = read_line(is_terminal)? {
        match understand(&line) {
            Line::Nothing => {}
            Line::Exit => break,
            Line::Clear => {
                conversation.clear();
                anstream::eprintln!("{}", dim("the conversation is forgotten"));
            }
            Line::Models => anstream::eprintln!("{}", answer::models(&client).await?.join("\n")),
            Line::Model("") => anstream::eprintln!("{model}"),
            Line::Model(name) => change_model(&client, &mut model, name).await?,
            Line::Help => anstream::eprintln!("/clear  /model NAME  /models  /exit"),
            Line::Unknown(command) => {
                anstream::eprintln!("there is no {command}; try /clear, /model NAME, /models or /exit");
            }
            Line::Say(text) => say(&client, &model, arguments.max_tokens, &mut conversation, text).await?,
        }
    }
    Ok(())
}

fn read_line(is_terminal: bool) -> Result<Option<String>> {
    if is_terminal {
        anstream::eprint!("{} ", bold(">"));
    }
    let mut line = String::new();
    let read = std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context("reading what was typed")?;
    if read == 0 && is_terminal {
        anstream::eprintln!();
    }
    Ok((read > 0).then_some(line))
}

fn understand(line: &str) -> Line<'_> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match word {
        "" => Line::Nothing,
        "/exit" | "/quit" | "/bye" => Line::Exit,
        "/clear" => Line::Clear,
        "/models" => Line::Models,
        "/model" => Line::Model(rest.trim()),
        "/help" | "/?" => Line::Help,
        // A path or a fraction is something to say; a single word after a slash is a command.
        _ if word.starts_with('/') && rest.is_empty() && word[1..].chars().all(char::is_alphabetic) => {
            Line::Unknown(word)
        }
        _ => Line::Say(line),
    }
}

async fn change_model(client: &Client, model: &mut String, name: &str) -> Result<()> {
    let known = answer::models(client).await?;
    if known.iter().any(|known| known == name) {
        name.clone_into(model);
    } else {
        anstream::eprintln!("there is no model {name:?}; there are: {}", known.join(", "));
    }
    Ok(())
}

/// Says one line and prints the answer. What went wrong is said and the talk goes on; a line without an answer is
/// forgotten, so that the conversation stays one of question and answer.
async fn say(
    client: &Client,
    model: &str,
    max_tokens: Option<u32>,
    conversation: &mut Vec<Message>,
    text: &str,
) -> Result<()> {
    conversation.push(Message::user(text));
    let question = Question {
        model,
        messages: conversation,
        max_tokens,
    };
    let mut text = String::new();
    let asked = answer::ask(client, &question, |piece| {
        text.push_str(piece);
        anstream::print!("{piece}");
        // A terminal that is gone ends the talk at the next read.
        let _ = std::io::stdout().flush();
    });
    let outcome = tokio::select! {
        outcome = asked => outcome.map(|_| ()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    anstream::println!();
    match outcome {
        Ok(()) if !text.is_empty() => conversation.push(Message::assistant(text)),
        Ok(()) => {
            conversation.pop();
        }
        Err(error) => {
            conversation.pop();
            let _ = crate::failure::report(&error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_or_something_to_say() {
        assert_eq!(understand("  \n"), Line::Nothing);
        assert_eq!(understand("/exit\n"), Line::Exit);
        assert_eq!(understand("/model  big \n"), Line::Model("big"));
        assert_eq!(understand("/model\n"), Line::Model(""));
        assert_eq!(understand("/modle\n"), Line::Unknown("/modle"));
        assert_eq!(
            understand("/etc/passwd is a file\n"),
            Line::Say("/etc/passwd is a file")
        );
        assert_eq!(understand("3*67\n"), Line::Say("3*67"));
    }
}
