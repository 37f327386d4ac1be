//! The messages, as typed values.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A message and the channel that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The channel; [`crate::NO_CHANNEL`] for messages about the whole sandbox.
    pub channel: u32,
    /// What is said.
    pub message: Message,
}

/// What may be said. Who says it stands in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// init: the first message of every connection.
    Hello(Hello),
    /// node: the answer; from here on both sides may say everything else.
    Welcome(Welcome),
    /// node: the other answer; the connection ends.
    Refuse(Failure),
    /// node: whom the sandbox belongs to. Init keeps it and says it again in its next [`Hello`].
    SetLabel(String),
    /// both: a new channel.
    Open(Open),
    /// both: the channel is open. A connection is; so is an exec whose process runs.
    Accept,
    /// both: the channel cannot be opened, or (a watch, a connection) it ends with an error.
    Reject(Failure),
    /// both: bytes of a channel.
    Data(Vec<u8>),
    /// both: this side has sent its last byte in this channel.
    Eof,
    /// both: this side reads no more from this channel; what still comes is thrown away.
    Stop,
    /// both: so many more bytes may be sent in this channel.
    Credit(u32),
    /// node: a signal to the process group of an exec, by number.
    Signal(i32),
    /// init: the process of an exec has ended. Its output may still follow.
    Exited(Exit),
    /// init: an archive is packed or unpacked, or could not be.
    Done(Result<Done, Failure>),
    /// init: something has changed in a watched directory. Many changes make one message.
    Changed,
    /// both: no more of this watch.
    Close,
    /// node: are you well? The number comes back.
    Ping(u64),
    /// init: the answer.
    Pong(Health),
    /// node: end all processes but init itself.
    KillAll,
    /// init: there are none any more.
    Killed,
    /// node: end all processes and yourself.
    End,
}

/// What proves that a sandbox is the one it says it is. Not in any log: [`fmt::Debug`] hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The token that the sandbox was created with; it is good for one connection.
    Token(String),
    /// The key that the first welcome gave, for coming back to this or a restarted node.
    ReturnKey(String),
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::ReturnKey(_) => "ReturnKey(..)",
        })
    }
}

/// The first message of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest version of the protocol that init speaks.
    pub version_min: u32,
    /// The newest.
    pub version_max: u32,
    /// Which sandbox it is.
    pub sandbox: String,
    /// What proves it.
    pub proof: Proof,
    /// What the node has last said about whom it belongs to.
    pub label: Option<String>,
}

/// The answer to a hello.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version of the protocol for the rest of the connection.
    pub version: u32,
    /// The proof for the next connection.
    pub return_key: String,
    /// After how long without a byte from the node the node counts as gone. 0 where the socket itself tells.
    pub silence_max_ms: u64,
}

impl fmt::Debug for Welcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Welcome")
            .field("version", &self.version)
            .field("silence_max_ms", &self.silence_max_ms)
            .finish_non_exhaustive()
    }
}

/// What a new channel is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Open {
    /// node: start a process.
    Exec(Exec),
    /// node: unpack a tar archive into a directory.
    Unpack(Unpack),
    /// node: pack a directory into a tar archive.
    Pack(Pack),
    /// node: tell of changes in a directory and what is below it.
    Watch {
        /// The directory; made when it is missing.
        path: String,
    },
    /// init: a program has connected to the proxy.
    Connection {
        /// At which entrance: see [`crate::entrance_address`].
        #[serde(default)]
        entrance: u16,
    },
}

/// A process to start.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments. A program without a slash is looked for in the `PATH` of `environment`.
    pub command: Vec<String>,
    /// Its environment, on top of what the sandbox was created with.
    pub environment: Vec<(String, String)>,
    /// Its directory.
    pub directory: String,
    /// The channel of its standard error.
    pub stderr_channel: u32,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments and environment may hold keys and prompts.
        f.debug_struct("Exec")
            .field("program", &self.command.first())
            .field("directory", &self.directory)
            .field("stderr_channel", &self.stderr_channel)
            .finish_non_exhaustive()
    }
}

/// How much an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveLimits {
    /// All its files together.
    pub bytes_max: u64,
    /// Files, directories and links.
    pub entries_max: u64,
}

/// An archive to unpack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpack {
    /// Into which directory; made when it is missing.
    pub path: String,
    /// What it may hold.
    pub limits: ArchiveLimits,
    /// Whether links may lead anywhere. They are never followed.
    #[serde(default)]
    pub any_links: bool,
}

/// A directory to pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Which directory.
    pub path: String,
    /// What it may hold.
    pub limits: ArchiveLimits,
    /// What is left out: paths below the directory.
    pub exclude: Vec<String>,
    /// When there is any: all that is not one of these paths, below one or above one, is left out.
    #[serde(default)]
    pub only: Vec<String>,
    /// Whether links may lead anywhere. They are never followed.
    #[serde(default)]
    pub any_links: bool,
}

/// How a process ended: one of both is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The code that it ended with by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

/// What an archive held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// What was left out because it is neither file, directory nor a link that stays inside.
    pub skipped: u64,
}

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What to do about it.
    pub code: FailureCode,
    /// In words. Holds no content and no secret.
    pub message: String,
}

impl Failure {
    /// A failure of a kind, in words.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// No such program, file or directory.
    NotFound,
    /// What was sent is not allowed or makes no sense.
    Invalid,
    /// A limit is reached.
    TooLarge,
    /// No space is left in the sandbox.
    NoSpace,
    /// The other side does not know who this is.
    Unknown,
    /// Anything else.
    Failed,
}

/// How a sandbox is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The number of the ping.
    pub nonce: u64,
    /// Memory of all its processes: what several share counts in parts where that can be seen.
    pub memory_bytes: u64,
    /// How many processes it has, init not counted.
    pub processes: u32,
    /// Open channels.
    pub channels: u32,
}
