//! `remuda.toml`: reading it and saying where in it something is.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, nearest};
use super::{DEFAULT_FILE, SECTIONS};

/// A settings file is a page or two; one that is larger than this is some other file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The settings file, or none. Its syntax and its section names are right.
#[derive(Debug, Clone, Default)]
pub struct ConfigFile {
    path: Option<PathBuf>,
    text: String,
}

impl ConfigFile {
    /// Reads the named file, or the default one of `directory` if it is there.
    pub(super) fn read(named: Option<PathBuf>, directory: &Path) -> Result<Self, ConfigError> {
        let (path, must_be_there) = match named {
            Some(path) => (path, true),
            None => (directory.join(DEFAULT_FILE), false),
        };
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(source) if !must_be_there && source.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        };
        let file = Self {
            path: Some(path),
            text,
        };
        file.check_sections()?;
        Ok(file)
    }

    /// A file of this text that is at no path. For tests.
    ///
    /// # Errors
    /// Syntax, and sections that nobody knows.
    pub fn from_text(text: impl Into<String>) -> Result<Self, ConfigError> {
        let file = Self {
            path: Some(PathBuf::from(DEFAULT_FILE)),
            text: text.into(),
        };
        file.check_sections()?;
        Ok(file)
    }

    /// Where it was read from; nothing when there is no file.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// One top-level section, read by its own type (which should refuse unknown fields). Nothing when it is not there.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and line.
    pub fn section<S: DeserializeOwned>(&self, name: &str) -> Result<Option<S>, ConfigError> {
        let mut document = self.parse()?;
        let Some(value) = document.get_mut().remove(name) else {
            return Ok(None);
        };
        let span = value.span();
        S::deserialize(value.into_deserializer())
            .map(Some)
            .map_err(|error| {
                ConfigError::one(
                    self.place(error.span().unwrap_or(span)),
                    error.message().to_owned(),
                )
            })
    }

    /// The keys and values of a section, with their places.
    pub(super) fn entries(&self, section: &str) -> Result<Vec<Entry>, ConfigError> {
        let document = self.parse()?;
        let Some(section_value) = document.get_ref().get(section) else {
            return Ok(Vec::new());
        };
        let Some(table) = section_value.get_ref().as_table() else {
            let text = format!("`{section}` is a section; write it as [{section}]");
            return Err(ConfigError::one(self.place(section_value.span()), text));
        };
        // In the file's order: a person reads problems from the top down.
        let mut found: Vec<_> = table.iter().collect();
        found.sort_by_key(|(key, _)| key.span().start);
        let entry = |(key, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| Entry {
            key: key.get_ref().to_string(),
            place: self.place(key.span()),
            value: texts(value.get_ref()),
        };
        Ok(found.into_iter().map(entry).collect())
    }

    /// `path:line`.
    fn place(&self, span: Range<usize>) -> String {
        let before = self.text.get(..span.start).unwrap_or(&self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let path = self.path.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        let path = path.strip_prefix(".").unwrap_or(path);
        format!("{}:{line}", path.display())
    }

    fn parse(&self) -> Result<Spanned<DeTable<'_>>, ConfigError> {
        DeTable::parse(&self.text).map_err(|error| {
            ConfigError::one(
                self.place(error.span().unwrap_or(0..0)),
                format!("not TOML: {}", error.message()),
            )
        })
    }

    fn check_sections(&self) -> Result<(), ConfigError> {
        for (key, _) in self.parse()?.get_ref() {
            let name: &str = key.get_ref();
            if !SECTIONS.contains(&name) {
                let hint = match nearest(name, SECTIONS.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the sections are {}", SECTIONS.join(", ")),
                };
                return Err(ConfigError::one(
                    self.place(key.span()),
                    format!("unknown key `{name}`; {hint}"),
                ));
            }
        }
        Ok(())
    }
}

/// One key of a section.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: String,
    /// The value as flags would give it, or why it cannot be one.
    pub(super) value: Result<Vec<String>, &'static str>,
}

fn texts(value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    match value {
        DeValue::Array(values) => values.iter().map(|value| text(value.get_ref())).collect(),
        one => text(one).map(|text| vec![text]),
    }
}

fn text(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => {
            match i128::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                Ok(number) => Ok(number.to_string()),
                Err(_) => Err("the number is too large"),
            }
        }
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Datetime(time) => Ok(time.to_string()),
        DeValue::Array(_) => Err("a list in a list cannot be read here"),
        DeValue::Table(_) => Err("a value is wanted here, not a table"),
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("larger than {FILE_BYTES_MAX} bytes"),
        ));
    }
    fs::read_to_string(path)
}
