//! A login of an agent: what a control plane asks of a node for an owner, and what the node tells meanwhile.
//!
//! | request | body | answer |
//! |---|---|---|
//! | POST `{AGENTS_PREFIX}/{pool}/logins` | [`AgentLogin`] | [`LoginEvent`]s, one JSON text a line, the last [`LoginEvent::Ended`] |
//! | POST `{AGENTS_PREFIX}/{pool}/logins/{id}/input` | [`LoginInput`] | 204 |
//! | GET `{AGENTS_PREFIX}/{pool}/login?owner=` | | [`LoginStatus`] |
//! | DELETE `{AGENTS_PREFIX}/{pool}/login?owner=` | | 204 |
//!
//! Dropping the answer of the first ends the login. No answer holds a login or a key.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How an owner logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoginKind {
    /// The agent shows an address and a code, and waits until the person has entered it there.
    DeviceCode,
    /// The agent shows an address, and wants to be told what the person finds there.
    PasteCode,
    /// The agent is given a key of its provider.
    ApiKey,
}

/// A login that begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentLogin {
    /// Names the login, for its input.
    pub login_id: String,
    /// Whose it will be.
    pub owner: String,
    /// In which way. None: the profile's usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<LoginKind>,
}

/// What a person has entered.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginInput {
    /// Who enters it: the owner of the login and nobody else.
    pub owner: String,
    /// The code or the key.
    pub text: String,
}

impl fmt::Debug for LoginInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text is a secret.
        f.debug_struct("LoginInput")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

/// What happens in a login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LoginEvent {
    /// The agent's own dialogue has begun.
    Started {
        /// In which way.
        kind: LoginKind,
    },
    /// The person is to open an address.
    Open {
        /// Which.
        url: String,
    },
    /// The person is to enter this code there.
    Code {
        /// The code.
        code: String,
    },
    /// The login wants input.
    Input {
        /// What, in words for a person.
        prompt: String,
        /// Whether it is to be read without showing it.
        secret: bool,
    },
    /// A line as the agent wrote it.
    Output {
        /// The line, bounded. Never what was entered.
        line: String,
    },
    /// The last event.
    Ended {
        /// None: the owner is logged in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<LoginFailure>,
    },
}

/// Why somebody is not logged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginFailure {
    /// One of the error codes that clients know.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
}

/// Whether an owner is logged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LoginStatus {
    /// The agent.
    pub agent: String,
    /// Whose login it is about.
    pub owner: String,
    /// Whether the agent says that it has a login.
    pub is_logged_in: bool,
    /// How often the login was taken back so far. None: nothing is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The ways in that the agent knows, the usual one first.
    pub kinds: Vec<LoginKind>,
}
