//! Templates: text with `{{ VARIABLE }}` in it.
//!
//! A template knows what it stands in ([`Place`]), and a value is quoted for that place, so that it can only ever be
//! one piece of text there. Values are never read for templates again: nothing expands twice.
//!
//! | place | where a variable may stand | how it is quoted |
//! |---|---|---|
//! | `Plain` | anywhere; not first in an argument when the value begins with `-` | not at all: one argument, one variable of the environment |
//! | `Json` | within double quotes | as JSON escapes |
//! | `Toml` | within double quotes | as JSON escapes, which are TOML's, too |
//! | `Shell` | where a word may be | in single quotes |

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer};

/// The longest value.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// What a template may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variable {
    /// The directory that npm installed into: the one with `node_modules`.
    Install,
    /// The home directory in the sandbox.
    Home,
    /// The directory that the agent works in.
    Workspace,
    /// The model asked for.
    Model,
    /// How hard it shall think, in the CLI's own words.
    Effort,
    /// The CLI's own id of a conversation.
    Session,
    /// The address of a model endpoint, without a path.
    BaseUrl,
    /// The key for that endpoint, or the one that a person logs in with.
    Key,
}

impl Variable {
    /// Every variable.
    pub const ALL: [Self; 8] = [
        Self::Install,
        Self::Home,
        Self::Workspace,
        Self::Model,
        Self::Effort,
        Self::Session,
        Self::BaseUrl,
        Self::Key,
    ];

    /// The name in templates.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Install => "INSTALL",
            Self::Home => "HOME",
            Self::Workspace => "WORKSPACE",
            Self::Model => "MODEL",
            Self::Effort => "EFFORT",
            Self::Session => "SESSION",
            Self::BaseUrl => "BASE_URL",
            Self::Key => "KEY",
        }
    }
}

/// What variables stand for.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<Variable, String>);

impl Values {
    /// No values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one.
    #[must_use]
    pub fn with(mut self, variable: Variable, value: impl Into<String>) -> Self {
        self.0.insert(variable, value.into());
        self
    }

    /// Sets one when there is one.
    #[must_use]
    pub fn with_some(self, variable: Variable, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.with(variable, value),
            None => self,
        }
    }

    /// The value of a variable.
    pub fn get(&self, variable: Variable) -> Option<&str> {
        self.0.get(&variable).map(String::as_str)
    }
}

/// Names only: a key is among the values.
impl fmt::Debug for Values {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// What a template stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An argument, or the value of an environment variable.
    Plain,
    /// A JSON text.
    Json,
    /// A TOML text.
    Toml,
    /// A command line for a shell, or a file in its syntax.
    Shell,
}

/// Why a template or a value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// There is no such variable.
    #[error("there is no variable {name:?}; there are {known}", known = known())]
    Unknown {
        /// What was written.
        name: String,
    },
    /// `{{` has no `}}`.
    #[error("\"{{{{\" without \"}}}}\" in {text:?}")]
    Open {
        /// The template.
        text: String,
    },
    /// In this place a variable would not be one piece of text.
    #[error("{{{{ {} }}}} must stand {}", variable.name(), match place {
        Place::Shell => "outside quotes in a shell text, which quotes it by itself",
        _ => "within double quotes in a JSON or TOML text",
    })]
    Misplaced {
        /// The variable.
        variable: Variable,
        /// The place.
        place: Place,
    },
    /// Nobody has given a value.
    #[error("{} is not known here", variable.name())]
    Missing {
        /// The variable.
        variable: Variable,
    },
    /// The value cannot stand there.
    #[error("the value of {} {reason}", variable.name())]
    Value {
        /// The variable.
        variable: Variable,
        /// Why.
        reason: &'static str,
    },
}

fn known() -> String {
    Variable::ALL.map(Variable::name).join(", ")
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable(Variable),
}

/// Text with variables in it, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
    place: Place,
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str, place: Place) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else {
                return Err(TemplateError::Open {
                    text: text.to_owned(),
                });
            };
            let name = name.trim();
            let variable = Variable::ALL
                .into_iter()
                .find(|variable| variable.name() == name)
                .ok_or_else(|| TemplateError::Unknown {
                    name: name.to_owned(),
                })?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Variable(variable));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        let template = Self { pieces, place };
        template.check_places()?;
        Ok(template)
    }

    /// The text with values in the places of variables.
    pub fn expand(&self, values: &Values) -> Result<String, TemplateError> {
        let mut text = String::new();
        for (index, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Variable(variable) => {
                    let value = values
                        .get(*variable)
                        .ok_or(TemplateError::Missing { variable: *variable })?;
                    check_value(*variable, value, self.place == Place::Plain && index == 0)?;
                    match self.place {
                        Place::Plain => text.push_str(value),
                        Place::Json | Place::Toml => push_escaped(value, &mut text),
                        Place::Shell => push_shell_word(value, &mut text),
                    }
                }
            }
        }
        Ok(text)
    }

    /// The variables that it asks for.
    pub fn variables(&self) -> impl Iterator<Item = Variable> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Variable(variable) => Some(*variable),
            Piece::Text(_) => None,
        })
    }

    /// A variable stands within double quotes, or in shell texts outside all quotes.
    fn check_places(&self) -> Result<(), TemplateError> {
        let mut quotes = Quotes::Outside;
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => quotes = quotes.after(text, self.place),
                Piece::Variable(variable) => {
                    let right = match self.place {
                        Place::Plain => true,
                        Place::Json | Place::Toml => quotes == Quotes::Double,
                        Place::Shell => quotes == Quotes::Outside,
                    };
                    if !right {
                        return Err(TemplateError::Misplaced {
                            variable: *variable,
                            place: self.place,
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where in a quoted text one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quotes {
    Outside,
    Double,
    Single,
    /// After a backslash, or in a comment: no place for a variable.
    Escape,
    Comment,
}

impl Quotes {
    fn after(self, text: &str, place: Place) -> Self {
        let single = matches!(place, Place::Toml | Place::Shell);
        let comments = matches!(place, Place::Toml | Place::Shell);
        let mut escaped_in = Self::Double;
        text.chars()
            .fold(self, |state, character| match (state, character) {
                (Self::Outside, '"') => Self::Double,
                (Self::Outside, '\'') if single => Self::Single,
                (Self::Outside, '#') if comments => Self::Comment,
                (Self::Outside, '\\') if place == Place::Shell => {
                    escaped_in = Self::Outside;
                    Self::Escape
                }
                (Self::Double, '\\') => {
                    escaped_in = Self::Double;
                    Self::Escape
                }
                (Self::Double, '"') | (Self::Single, '\'') | (Self::Comment, '\n') => Self::Outside,
                (Self::Escape, _) => escaped_in,
                (state, _) => state,
            })
    }
}

fn check_value(variable: Variable, value: &str, first: bool) -> Result<(), TemplateError> {
    let reason = if value.len() > VALUE_BYTES_MAX {
        "is too long"
    } else if value.contains('\0') {
        "holds a zero byte"
    } else if first && value.starts_with('-') {
        "begins with \"-\" and would be read as a flag"
    } else {
        return Ok(());
    };
    Err(TemplateError::Value { variable, reason })
}

/// Escapes that JSON and TOML's basic strings have in common.
fn push_escaped(value: &str, into: &mut String) {
    use fmt::Write as _;
    for character in value.chars() {
        match character {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            '\u{0}'..='\u{1f}' | '\u{7f}' => {
                write!(into, "\\u{:04x}", u32::from(character)).expect("a string takes everything");
            }
            _ => into.push(character),
        }
    }
}

fn push_shell_word(value: &str, into: &mut String) {
    into.push('\'');
    into.push_str(&value.replace('\'', "'\\''"));
    into.push('\'');
}

/// In profiles: a string, or a table of one member that names the place: `{ toml = "..." }`.
impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a string, { json = .. }, { toml = .. } or { shell = .. }"
        )]
        enum Written {
            Plain(String),
            Placed(Placed),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Placed {
            Json(String),
            Toml(String),
            Shell(String),
        }
        let (text, place) = match Written::deserialize(deserializer)? {
            Written::Plain(text) => (text, Place::Plain),
            Written::Placed(Placed::Json(text)) => (text, Place::Json),
            Written::Placed(Placed::Toml(text)) => (text, Place::Toml),
            Written::Placed(Placed::Shell(text)) => (text, Place::Shell),
        };
        Self::parse(&text, place).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
