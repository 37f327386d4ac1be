//! What a person reads when something went wrong, and what a program reads from the exit code.

use std::fmt;
use std::process::ExitCode;

use task_api::ErrorCode;

/// Why a command ended: its exit code, the same numbers as the daemons' and `sysexits.h`. `docs/cli.md` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for did not work.
    Failed = 1,
    /// The command line or the settings make no sense.
    Usage = 64,
    /// There is no such thing.
    NotFound = 66,
    /// Nothing answers at the control plane's address.
    Unreachable = 69,
    /// No room or no time at the moment: the same command may work later.
    TryLater = 75,
    /// The key is missing, not known, or may not do this.
    Refused = 77,
    /// Ended by Ctrl-C.
    Interrupted = 130,
}

impl Exit {
    /// The exit code that goes with an error of the API.
    pub(crate) fn of_code(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Unauthenticated | ErrorCode::Forbidden => Self::Refused,
            ErrorCode::NotFound => Self::NotFound,
            _ if code.retriable() && code != ErrorCode::Internal => Self::TryLater,
            _ => Self::Failed,
        }
    }

    /// The exit code that goes with an HTTP status, for answers without a code.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Refused,
            404 => Self::NotFound,
            429 | 502..=504 => Self::TryLater,
            _ => Self::Failed,
        }
    }
}

/// An error that knows its exit code and what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// Says what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Prints the error with its causes and its hint, and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let failure = error.downcast_ref::<Failure>();
    // Errors of the daemons' libraries have codes of their own: wrong settings, a port that is taken.
    let code = failure.map_or_else(
        || daemon::exit::code_of(error.as_ref()),
        |failure| failure.exit as u8,
    );
    if code != Exit::Interrupted as u8 {
        anstream::eprintln!(
            "{}",
            text(error, failure.and_then(|failure| failure.hint.as_deref()))
        );
    }
    ExitCode::from(code)
}

fn text(error: &anyhow::Error, hint: Option<&str>) -> String {
    use crate::output::{bold, red};
    let mut text = format!("{} {}", red("error:"), daemon::exit::chain(error.as_ref()));
    if let Some(hint) = hint {
        let indented = hint.replace('\n', "\n      ");
        text.push_str(&format!("\n{} {indented}", bold("hint:")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_failure_keeps_its_exit_code_and_its_hint() {
        let failure = Failure::new(Exit::NotFound, "no pool \"x\"").hint("remuda pools");
        let error = anyhow::Error::new(failure).context("draining");
        let found = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(found.exit, Exit::NotFound);
        let text = anstream::adapter::strip_str(&text(&error, found.hint.as_deref())).to_string();
        assert_eq!(text, "error: draining: no pool \"x\"\nhint: remuda pools");
    }

    #[test]
    fn what_may_work_later_has_its_own_exit_code() {
        assert_eq!(Exit::of_code(ErrorCode::AdmissionReject), Exit::TryLater);
        assert_eq!(Exit::of_code(ErrorCode::Internal), Exit::Failed);
        assert_eq!(Exit::of_code(ErrorCode::InvalidParams), Exit::Failed);
        assert_eq!(Exit::of_status(503), Exit::TryLater);
    }
}
