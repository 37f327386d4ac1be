//! Members of a JSON object as raw text, in the order in which they first came.

use crate::assemble::{AssembleError, PARTS_MAX};
use crate::json::{Kind, RawText, Scanner};

/// A JSON value that is put together out of pieces.
#[derive(Debug)]
enum Piece {
    /// A value as it stands in the text.
    Raw(String),
    /// What stands between the quotes of a string.
    Text(String),
}

/// The members of an object that is put together.
#[derive(Debug, Default)]
pub(super) struct Members(Vec<(String, Piece)>);

impl Members {
    fn find(&mut self, key: &str) -> Option<&mut Piece> {
        self.0
            .iter_mut()
            .find(|(name, _)| name == key)
            .map(|(_, piece)| piece)
    }

    /// Sets a member. A null says nothing where something is known already.
    pub(super) fn set(&mut self, key: &str, raw: &str) {
        match self.find(key) {
            Some(_) if raw == "null" => {}
            Some(Piece::Raw(known)) if known == raw => {}
            Some(known) => *known = Piece::Raw(raw.to_owned()),
            None => self.0.push((key.to_owned(), Piece::Raw(raw.to_owned()))),
        }
    }

    /// Adds to a member that is a text.
    pub(super) fn append(&mut self, key: &str, text: RawText<'_>) {
        self.append_inner(key, text.inner());
    }

    fn append_inner(&mut self, key: &str, inner: &str) {
        match self.find(key) {
            Some(Piece::Text(known)) => known.push_str(inner),
            Some(known) => *known = Piece::Text(inner.to_owned()),
            None => self.0.push((key.to_owned(), Piece::Text(inner.to_owned()))),
        }
    }

    /// Adds to a member that is a text; a value that is none says nothing.
    pub(super) fn append_value(&mut self, key: &str, scanner: &mut Scanner<'_>) -> Result<(), AssembleError> {
        if scanner.kind()? == Kind::String {
            self.append(key, scanner.string()?);
        } else {
            scanner.skip(&mut ())?;
        }
        Ok(())
    }

    /// Adds the elements of an array to a member that is one.
    pub(super) fn extend(&mut self, key: &str, array: &str) {
        let inner = array.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let new = inner.unwrap_or_default().trim();
        match self.find(key) {
            Some(Piece::Raw(known)) if known.ends_with(']') => {
                known.pop();
                let separator = if known.ends_with('[') || new.is_empty() {
                    ""
                } else {
                    ","
                };
                known.extend([separator, new, "]"]);
            }
            Some(known) => *known = Piece::Raw(format!("[{new}]")),
            None => self.0.push((key.to_owned(), Piece::Raw(format!("[{new}]")))),
        }
    }

    /// Takes a member out, as raw JSON.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(match self.0.remove(at).1 {
            Piece::Raw(raw) => raw,
            Piece::Text(inner) => format!("\"{inner}\""),
        })
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    /// Whether a member has come and is `raw`.
    pub(super) fn is(&self, key: &str, raw: &str) -> bool {
        self.0
            .iter()
            .any(|(name, piece)| name == key && matches!(piece, Piece::Raw(known) if known == raw))
    }

    /// Sets a member that has not come.
    pub(super) fn set_missing(&mut self, key: &str, raw: &str) {
        if !self.contains(key) {
            self.set(key, raw);
        }
    }

    /// Writes the object.
    pub(super) fn write(&self, out: &mut String) {
        out.push('{');
        for (at, (key, piece)) in self.0.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(&serde_json::Value::from(key.as_str()).to_string());
            out.push(':');
            match piece {
                Piece::Raw(raw) => out.push_str(raw),
                Piece::Text(inner) => out.extend(["\"", inner, "\""]),
            }
        }
        out.push('}');
    }

    /// The object as raw JSON.
    pub(super) fn to_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }
}

/// Parts of an answer that come in any order, each with its index.
#[derive(Debug)]
pub(super) struct Parts<T>(Vec<(u64, T)>);

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Default> Parts<T> {
    /// The part with that index, new if it has not come yet.
    pub(super) fn at(&mut self, index: u64) -> Result<&mut T, AssembleError> {
        let place = match self.0.binary_search_by_key(&index, |(index, _)| *index) {
            Ok(place) => place,
            Err(_) if self.0.len() == PARTS_MAX => return Err(AssembleError::Shape("too many parts")),
            Err(place) => {
                self.0.insert(place, (index, T::default()));
                place
            }
        };
        Ok(&mut self.0[place].1)
    }

    /// The parts in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.0.iter().map(|(index, part)| (*index, part))
    }

    /// The parts in order, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, part)| part)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Writes an array of what `write` writes.
pub(super) fn write_array<T>(
    out: &mut String,
    parts: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    out.push('[');
    for (at, part) in parts.enumerate() {
        if at > 0 {
            out.push(',');
        }
        write(out, part);
    }
    out.push(']');
}

/// Calls `member` with the key of each member of the object in `raw` and the scanner before its value.
pub(super) fn each<'a>(
    raw: &'a str,
    member: impl FnMut(&mut Scanner<'a>, &str) -> Result<(), AssembleError>,
) -> Result<(), AssembleError> {
    let mut scanner = Scanner::new(raw);
    each_of(&mut scanner, member)?;
    Ok(scanner.end()?)
}

/// Like [`each`], for the object that the scanner stands before.
pub(super) fn each_of<'a>(
    scanner: &mut Scanner<'a>,
    mut member: impl FnMut(&mut Scanner<'a>, &str) -> Result<(), AssembleError>,
) -> Result<(), AssembleError> {
    scanner.object(|scanner, key| member(scanner, &key.decode()))
}
