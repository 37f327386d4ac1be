//! Exit codes, and the one place that turns an error into one.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::config::ConfigError;
use crate::listen::{ListenError, OpenBindRefused};
use crate::tls::{self, Sides, TlsError};

/// Done.
pub const OK: u8 = 0;
/// It did not work.
pub const FAILURE: u8 = 1;
/// Wrong command line or settings.
pub const USAGE: u8 = 64;
/// What is needed is not there: the other side, the port.
pub const UNAVAILABLE: u8 = 69;
/// A fault in Remuda itself.
pub const INTERNAL: u8 = 70;
/// Interrupted before it could finish, by a second signal or at the end of the drain's deadline.
pub const INTERRUPTED: u8 = 130;

/// What the sides of a connection are called where nobody knows who they are.
const BOTH_SIDES: Sides<'static> = Sides {
    us: "side",
    them: "other side",
};

/// Runs a daemon's body, prints its error once with all causes, and gives the exit code.
pub fn run(body: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    match body() {
        Ok(()) => ExitCode::from(OK),
        Err(error) => {
            report(&*error);
            ExitCode::from(code_of(&*error))
        }
    }
}

/// The exit code for an error: that of the first cause that has one, else 1. An enum that wraps such a cause as
/// `transparent` hides it: its `source()` is already the cause's cause.
pub fn code_of(error: &(dyn Error + 'static)) -> u8 {
    causes(error)
        .find_map(|cause| {
            if let Some(config) = cause.downcast_ref::<ConfigError>() {
                Some(config.exit_code())
            } else if cause.is::<OpenBindRefused>() || cause.is::<TlsError>() {
                Some(USAGE)
            } else if cause.is::<ListenError>() {
                Some(UNAVAILABLE)
            } else {
                cause.downcast_ref::<Ended>().map(|ended| ended.code)
            }
        })
        .unwrap_or(FAILURE)
}

/// An error that carries its own exit code.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Ended {
    /// One of this module's codes.
    pub code: u8,
    /// For people.
    pub text: String,
}

/// The error and its causes in one line: `cannot start: cannot listen: ...`. A refusal of TLS is told in words.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let refusal = tls::explain::at(cause).filter(tls::explain::is_refusal);
        let refusal = refusal.map(|error| tls::explain::describe(&error, BOTH_SIDES));
        let is_last = refusal.is_some();
        let layer = refusal.unwrap_or_else(|| cause.to_string());
        // Some crates repeat their cause in their own text.
        if text.ends_with(&layer) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&layer);
        if is_last {
            break;
        }
    }
    text
}

fn report(error: &(dyn Error + 'static)) {
    match error.downcast_ref::<ConfigError>() {
        // Whoever asked for help may have closed the pipe after the first lines.
        Some(config) if config.is_help() => drop(writeln!(std::io::stdout(), "{config}")),
        // Nothing was asked for, so the help is the answer.
        Some(ConfigError::Usage(usage))
            if usage.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            drop(writeln!(std::io::stderr(), "{}", usage.render()));
        }
        _ => drop(writeln!(std::io::stderr(), "error: {}", chain(error))),
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause: &&'a (dyn Error + 'static)| (*cause).source())
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_code_is_that_of_the_first_cause_that_has_one() {
        let ended = || Ended {
            code: UNAVAILABLE,
            text: "nobody there".to_owned(),
        };
        let plain = anyhow::anyhow!("it did not work");
        let direct = anyhow::Error::new(ended());
        let below = Err::<(), _>(ended())
            .context("asking the control plane")
            .context("starting")
            .unwrap_err();
        for (error, code, text) in [
            (plain, FAILURE, "it did not work"),
            (direct, UNAVAILABLE, "nobody there"),
            (
                below,
                UNAVAILABLE,
                "starting: asking the control plane: nobody there",
            ),
        ] {
            assert_eq!((code_of(&*error), chain(&*error).as_str()), (code, text));
        }
    }

    #[test]
    fn a_refusal_of_tls_is_told_in_words() {
        let refusal = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        // As HTTP/2 passes it on.
        let text_alone = anyhow::anyhow!(refusal.to_string()).context("connection error");
        assert!(
            chain(&*text_alone).starts_with("connection error: the other side refused"),
            "{text_alone:#}"
        );
        let below = std::io::Error::other(std::io::Error::other(refusal));
        let error = anyhow::Error::new(below).context("cannot connect to https://node:9200");
        assert_eq!(
            chain(&*error),
            "cannot connect to https://node:9200: the other side refused this side's certificate: \
             it was issued by a CA that the other side does not know"
        );
    }
}
