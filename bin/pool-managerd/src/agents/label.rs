//! What a sandbox's init remembers for its node, so that a node that comes back knows what it finds.

use homes::Ticket;
use serde::{Deserialize, Serialize};

/// Whose a sandbox is and what is in it. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    /// Its pool.
    pub(super) pool: String,
    /// The agent, by which its home is known.
    pub(super) agent: String,
    /// What it was made from, as hexadecimal digits.
    pub(super) profile: String,
    /// What is kept of the home directory: the profile may have changed when it is found.
    pub(super) keep: Vec<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<String>,
    /// The right to put the owner's home back. None while it is being opened: then half of it may be there, which must
    /// never take the place of the whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ticket: Option<String>,
    /// The workspaces in which runs go on, with the versions that they had before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) workspaces: Vec<(String, u64)>,
}

impl Label {
    /// Reads what an init has said.
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// What an init is told.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("texts can be written")
    }

    /// The right to put the owner's home back.
    pub(super) fn ticket(&self) -> Option<Ticket> {
        self.ticket.as_deref()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_comes_back_as_it_was_and_nonsense_is_none() {
        let label = Label {
            pool: "p".to_owned(),
            agent: "claude".to_owned(),
            profile: "00".repeat(32),
            keep: vec![".claude".to_owned()],
            owner: Some("ann".to_owned()),
            ticket: Some("3.7".to_owned()),
            workspaces: vec![("w".to_owned(), 2)],
        };
        assert_eq!(Label::parse(&label.text()), Some(label.clone()));
        assert_eq!(label.ticket(), Some(Ticket { version: 3, fence: 7 }));
        let opening = Label {
            ticket: None,
            ..label
        };
        assert_eq!(opening.ticket(), None);
        for nonsense in ["", "{}", "null", "{\"pool\":1}"] {
            assert_eq!(Label::parse(nonsense), None, "{nonsense}");
        }
    }
}
