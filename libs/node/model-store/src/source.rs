//! Where a model comes from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;

use crate::digest::Digest;

/// Where a model comes from, and its SHA-256 if whoever names it knows it.
///
/// As text: `hf:ORG/REPO/FILE`, `hf:ORG/REPO@REVISION/FILE` or `hf:ORG/REPO/FILE@REVISION`; `https://...` or
/// `http://...`; `file:PATH` or a path. `#sha256=HEX` may stand at the end of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where.
    pub place: Place,
    /// What its content must be.
    pub sha256: Option<Digest>,
}

/// A place where a model can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file in a repository of the model hub.
    Hub(HubFile),
    /// An address.
    Url(Url),
    /// A file of this machine.
    File(PathBuf),
}

/// A file in a repository of the model hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// `ORG/REPO`.
    pub repository: String,
    /// The branch, tag or commit.
    pub revision: String,
    /// The file's path within.
    pub file: String,
}

/// Why a text names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Not of a hub's shape.
    #[error("{0:?} must be hf:ORG/REPO/FILE, with @REVISION after REPO or FILE if wanted")]
    Hub(String),
    /// Not an address.
    #[error("{0:?} is no address: {1}")]
    Url(String, String),
    /// An address of a kind that nothing is got from.
    #[error(
        "{0:?} is of no kind that models are got from; a source is a path, hf:ORG/REPO/FILE, or https:..."
    )]
    Scheme(String),
    /// The address holds a password.
    #[error("the address holds a password, which would be kept and shown: leave it out")]
    Password,
    /// The digest is none.
    #[error(transparent)]
    Digest(#[from] crate::digest::DigestError),
    /// There is nothing.
    #[error("a source is a path, hf:ORG/REPO/FILE, or https:...")]
    Empty,
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (place, sha256) = match text.rsplit_once("#sha256=") {
            Some((place, digest)) => (place, Some(digest.parse()?)),
            None => (text, None),
        };
        if place.is_empty() {
            return Err(SourceError::Empty);
        }
        Ok(Self {
            place: parse_place(place)?,
            sha256,
        })
    }
}

impl Source {
    /// Whether `text` names a place beyond this machine, so that it cannot be a path or a name.
    pub fn is_remote(text: &str) -> bool {
        ["hf:", "https:", "http:"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
    }

    /// The name that a model from here gets when nobody names it: the file's, without its extension.
    pub fn default_name(&self) -> String {
        let file = self.file_name();
        let stem = file.strip_suffix(".gguf").unwrap_or(&file);
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                c
            } else {
                '-'
            }
        };
        let name: String = stem.chars().map(safe).take(crate::store::NAME_LEN_MAX).collect();
        let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        if name.is_empty() {
            "model".to_owned()
        } else {
            name.to_owned()
        }
    }

    /// How many files make up the model, when this is one of several: `NAME-00001-of-00003.gguf`.
    pub(crate) fn parts(&self) -> Option<u32> {
        let file = self.file_name();
        let (rest, parts) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (_, part) = rest.rsplit_once('-')?;
        let number = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok()).flatten();
        number(part).and(number(parts)).filter(|parts| *parts > 1)
    }

    /// The file's name, for people.
    pub(crate) fn file_name(&self) -> String {
        let path = match &self.place {
            Place::Hub(file) => file.file.clone(),
            Place::Url(url) => url.path().to_owned(),
            Place::File(path) => path.to_string_lossy().into_owned(),
        };
        path.rsplit('/')
            .find(|part| !part.is_empty())
            .unwrap_or("model")
            .to_owned()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Hub(HubFile {
                repository,
                revision,
                file,
            }) if revision == MAIN => {
                write!(f, "hf:{repository}/{file}")?;
            }
            Place::Hub(HubFile {
                repository,
                revision,
                file,
            }) => write!(f, "hf:{repository}/{file}@{revision}")?,
            Place::Url(url) => write!(f, "{url}")?,
            Place::File(path) => {
                // Said only where the path could be taken for something else.
                let text = path.to_string_lossy();
                let ambiguous = text.starts_with("file:") || Self::is_remote(&text) || has_scheme(&text);
                write!(f, "{}{text}", if ambiguous { "file:" } else { "" })?;
            }
        }
        match &self.sha256 {
            Some(sha256) => write!(f, "#sha256={sha256}"),
            None => Ok(()),
        }
    }
}

/// The branch that is meant when none is named.
const MAIN: &str = "main";

fn parse_place(text: &str) -> Result<Place, SourceError> {
    if let Some(rest) = text.strip_prefix("hf:") {
        return parse_hub(rest)
            .map(Place::Hub)
            .ok_or_else(|| SourceError::Hub(text.to_owned()));
    }
    if text.starts_with("https:") || text.starts_with("http:") {
        let url = Url::parse(text).map_err(|error| SourceError::Url(text.to_owned(), error.to_string()))?;
        if url.password().is_some() || !url.username().is_empty() {
            return Err(SourceError::Password);
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(SourceError::Url(text.to_owned(), "it names no host".to_owned()));
        }
        return Ok(Place::Url(url));
    }
    // Nobody has a directory named `ftp:`, and "no such file" would say nothing of what is wrong.
    if !text.starts_with("file:") && has_scheme(text) {
        return Err(SourceError::Scheme(text.to_owned()));
    }
    match text.strip_prefix("file:").unwrap_or(text) {
        "" => Err(SourceError::Empty),
        path => Ok(Place::File(PathBuf::from(path))),
    }
}

/// Whether it begins as an address does (RFC 3986, 3.1).
fn has_scheme(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

fn parse_hub(text: &str) -> Option<HubFile> {
    let mut parts = text.splitn(3, '/');
    let (organisation, repository, file) = (parts.next()?, parts.next()?, parts.next()?);
    let (repository, after_repository) = split_revision(repository);
    let (file, after_file) = split_revision(file);
    let revision = match (after_repository, after_file) {
        (None, None) => MAIN,
        (Some(revision), None) | (None, Some(revision)) => revision,
        (Some(_), Some(_)) => return None,
    };
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    // A revision may be a path as well: refs/pr/1.
    let path = |text: &str| text.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let fits = plain(organisation) && plain(repository) && path(file) && path(revision);
    fits.then(|| HubFile {
        repository: format!("{organisation}/{repository}"),
        revision: revision.to_owned(),
        file: file.to_owned(),
    })
}

fn split_revision(text: &str) -> (&str, Option<&str>) {
    text.split_once('@')
        .map_or((text, None), |(before, revision)| (before, Some(revision)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hub(text: &str, repository: &str, revision: &str, file: &str) {
        let source: Source = text.parse().unwrap();
        let expect = HubFile {
            repository: repository.into(),
            revision: revision.into(),
            file: file.into(),
        };
        assert_eq!(source.place, Place::Hub(expect), "{text}");
        assert_eq!(source.to_string().parse::<Source>().unwrap(), source, "{text}");
    }

    #[test]
    fn a_hub_source_names_repository_revision_and_file() {
        hub("hf:org/repo/m.gguf", "org/repo", "main", "m.gguf");
        hub(
            "hf:org/repo/sub/m-00001.gguf",
            "org/repo",
            "main",
            "sub/m-00001.gguf",
        );
        hub("hf:org/repo@v1/m.gguf", "org/repo", "v1", "m.gguf");
        hub("hf:org/repo/m.gguf@refs/pr/1", "org/repo", "refs/pr/1", "m.gguf");
        for wrong in [
            "hf:",
            "hf:org/repo",
            "hf:org/repo/",
            "hf:org/repo/../m",
            "hf:o/r@a/m@b",
            "hf:o r/x/m",
            "hf:o/r//m",
        ] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts_of_a_model_are_recognised() {
        let parts = |file: &str| format!("hf:o/r/{file}").parse::<Source>().unwrap().parts();
        assert_eq!(parts("m-00002-of-00003.gguf"), Some(3));
        for whole in [
            "m.gguf",
            "m-00001-of-00001.gguf",
            "m-1-of-3.gguf",
            "best-of-00003.gguf",
            "m-00002-of-00003.bin",
        ] {
            assert_eq!(parts(whole), None, "{whole}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_as_it_can_be_read(text in "(hf:|https://|file:|)[a-zA-Z0-9@/:._#=% -]{0,40}") {
            if let Ok(source) = text.parse::<Source>() {
                let again: Source = source.to_string().parse().unwrap();
                prop_assert_eq!(&again, &source);
                prop_assert!(!source.default_name().is_empty());
            }
        }
    }

    #[test]
    fn addresses_paths_and_digests_are_read() {
        let digest = Digest::of(b"");
        let source: Source = format!("https://example.org/a/M%201.gguf?x=1#sha256={digest}")
            .parse()
            .unwrap();
        assert_eq!(source.sha256, Some(digest));
        assert_eq!(source.default_name(), "M-201");
        assert_eq!(source.to_string().parse::<Source>().unwrap(), source);
        let path: Source = "models/demo/remuda-demo.gguf".parse().unwrap();
        assert_eq!(path.place, Place::File("models/demo/remuda-demo.gguf".into()));
        assert_eq!(path.default_name(), "remuda-demo");
        assert_eq!("file:/m/.x.gguf".parse::<Source>().unwrap().default_name(), "x");
        assert_eq!(
            "https://user:pass@example.org/m".parse::<Source>(),
            Err(SourceError::Password)
        );
        assert!("https://".parse::<Source>().is_err());
        assert_eq!(
            "ftp://x/m".parse::<Source>(),
            Err(SourceError::Scheme("ftp://x/m".to_owned()))
        );
        let odd: Source = "file:ftp://x/m".parse().unwrap();
        assert_eq!(odd.place, Place::File("ftp://x/m".into()));
        assert_eq!(odd.to_string().parse::<Source>().unwrap(), odd);
        assert!("m.gguf#sha256=12".parse::<Source>().is_err());
        assert_eq!("".parse::<Source>(), Err(SourceError::Empty));
    }
}
