//! Master keys: where they come from and how one is told from another.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// More than this no file or command with a key has.
const TEXT_BYTES_MAX: u64 = 1024;
/// How long a command may take to print the key.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("the key file {} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner may read or write the file.
    #[error("the key file {} has mode {mode:04o}, and must be 0600 or stricter", path.display())]
    FileMode {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What is there is no plain file.
    #[error("the key file {} is no plain file", path.display())]
    NoPlainFile {
        /// Which.
        path: PathBuf,
    },
    /// The environment variable is not set, or not in UTF-8.
    #[error("the environment variable {0} is not set to a key")]
    Environment(String),
    /// The command could not be run.
    #[error("the key command {program} could not be run")]
    Command {
        /// Its program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command ended badly.
    #[error("the key command {program} ended with {status}")]
    CommandStatus {
        /// Its program.
        program: String,
        /// How.
        status: std::process::ExitStatus,
    },
    /// The command printed nothing in time.
    #[error("the key command {program} did not end within {} s", COMMAND_TIMEOUT.as_secs())]
    CommandTimeout {
        /// Its program.
        program: String,
    },
    /// No command was given.
    #[error("the key command is empty")]
    CommandEmpty,
    /// The text is no key.
    #[error("a master key is {} hexadecimal digits", KEY_BYTES * 2)]
    Text,
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Tells one master key from another. Says nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId(pub(crate) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A master key. It is wiped when it is dropped and cannot be printed, copied or serialised.
pub struct MasterKey {
    bytes: Box<Zeroizing<[u8; KEY_BYTES]>>,
    id: KeyId,
}

impl MasterKey {
    /// A new one.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Box::new(Zeroizing::new([0; KEY_BYTES]));
        SystemRandom::new()
            .fill(bytes.as_mut_slice())
            .map_err(|_| KeyError::Random)?;
        Ok(Self::from_bytes(bytes))
    }

    /// Writes the key to a file that is not there yet, for its owner only.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        let fail = |source| KeyError::File {
            path: path.to_owned(),
            source,
        };
        let mut text = Zeroizing::new(String::with_capacity(KEY_BYTES * 2 + 1));
        for byte in self.bytes.iter() {
            text.push(char::from_digit(u32::from(byte >> 4), 16).expect("four bits"));
            text.push(char::from_digit(u32::from(byte & 15), 16).expect("four bits"));
        }
        text.push('\n');
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(fail)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(fail)
    }

    /// The key in a file of 64 hexadecimal digits that only its owner may read or write.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let fail = |source| KeyError::File {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(KeyError::NoPlainFile {
                path: path.to_owned(),
            });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::FileMode {
                path: path.to_owned(),
                mode,
            });
        }
        let text = read_secret(file).map_err(fail)?;
        Self::parse(&text)
    }

    /// The key in an environment variable. It stays in this process's environment; children must not inherit it.
    pub fn from_environment(name: &str) -> Result<Self, KeyError> {
        let text = std::env::var(name).map_err(|_| KeyError::Environment(name.to_owned()))?;
        let text = Zeroizing::new(text);
        Self::parse(text.as_bytes())
    }

    /// The key that a command prints. Its standard error is this process's; it has 20 s.
    pub fn from_command(command: &[impl AsRef<OsStr>]) -> Result<Self, KeyError> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(KeyError::CommandEmpty);
        };
        let name = program.as_ref().to_string_lossy().into_owned();
        let fail = |source| KeyError::Command {
            program: name.clone(),
            source,
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(fail)?;
        let output = child.stdout.take().expect("it is piped");
        let (sender, receiver) = mpsc::sync_channel(1);
        // Ends with the command's output, which ends with the command at the latest.
        std::thread::spawn(move || {
            let _ = sender.send(read_secret(output));
        });
        let Ok(text) = receiver.recv_timeout(COMMAND_TIMEOUT) else {
            end(&mut child);
            return Err(KeyError::CommandTimeout { program: name });
        };
        let text = text.map_err(|source| {
            end(&mut child);
            KeyError::Command {
                program: name.clone(),
                source,
            }
        })?;
        let status = child.wait().map_err(fail)?;
        if !status.success() {
            return Err(KeyError::CommandStatus {
                program: name,
                status,
            });
        }
        Self::parse(&text)
    }

    /// Tells this key from others.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// A key for authenticating, which has nothing to do with encrypting.
    pub(crate) fn mark_key(&self) -> hmac::Key {
        let derived = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, self.bytes()),
            b"remuda home mark key 1",
        );
        hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
    }

    fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let digits = text.trim_ascii();
        if digits.len() != KEY_BYTES * 2 {
            return Err(KeyError::Text);
        }
        let mut bytes = Box::new(Zeroizing::new([0; KEY_BYTES]));
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
            let (Some(high), Some(low)) = (high, low) else {
                return Err(KeyError::Text);
            };
            *byte = u8::try_from(high << 4 | low).expect("two hexadecimal digits");
        }
        Ok(Self::from_bytes(bytes))
    }

    fn from_bytes(bytes: Box<Zeroizing<[u8; KEY_BYTES]>>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes.as_slice());
        let tag = hmac::sign(&key, b"remuda master key id 1");
        let mut id = [0; 8];
        id.copy_from_slice(&tag.as_ref()[..8]);
        Self { bytes, id: KeyId(id) }
    }
}

/// Reads a short text to its end, without leaving copies of it.
fn read_secret(source: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = usize::try_from(TEXT_BYTES_MAX).expect("a thousand");
    let mut text = Zeroizing::new(vec![0; limit]);
    let mut length = 0;
    let mut source = source.take(TEXT_BYTES_MAX);
    while length < limit {
        match source.read(&mut text[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    text[length..].zeroize();
    text.truncate(length);
    Ok(text)
}

fn end(child: &mut Child) {
    // It may have ended by itself, which is as good.
    let _ = child.kill();
    let _ = child.wait();
}

/// The master key that seals, and former ones that still open what is not rotated yet.
pub struct KeyRing {
    current: MasterKey,
    former: Vec<MasterKey>,
}

impl KeyRing {
    /// One key for everything.
    pub fn new(current: MasterKey) -> Self {
        Self {
            current,
            former: Vec::new(),
        }
    }

    /// Also opens what this key sealed.
    #[must_use]
    pub fn with_former(mut self, key: MasterKey) -> Self {
        self.former.push(key);
        self
    }

    /// The key that seals.
    pub fn current(&self) -> &MasterKey {
        &self.current
    }

    pub(crate) fn find(&self, id: KeyId) -> Option<&MasterKey> {
        std::iter::once(&self.current)
            .chain(&self.former)
            .find(|key| key.id == id)
    }
}
