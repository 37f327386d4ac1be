//! What a sealed home looks like.
//!
//! ```text
//! subject:  "RMHS" format kind version(8) fence(8) owner_length(2) owner agent_length(1) agent
//! key:      key_id(8) nonce(12) data key, encrypted under the master key (32 + 16)     authenticates subject, key_id
//! body:     nonce(12) length(4) archive, encrypted under the data key (length, + 16)   authenticates subject
//! ```
//! Numbers are big-endian. The data key is new for every version, so a nonce is used with it once.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::keys::{KeyId, KeyRing, MasterKey};
use crate::{AgentName, HOME_BYTES_MAX, OpenHome, OwnerHandle};

const MAGIC: &[u8; 4] = b"RMHS";
const FORMAT: u8 = 1;
const TAG_BYTES: usize = 16;
const DATA_KEY_BYTES: usize = 32;
const WRAPPED_BYTES: usize = DATA_KEY_BYTES + TAG_BYTES;
/// The largest sealed home, in bytes.
pub(crate) const SEALED_BYTES_MAX: usize = HOME_BYTES_MAX + 2048;

/// Why a sealed home does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It does not begin as one does.
    #[error("this is no sealed home")]
    NotSealed,
    /// It was written by a newer program.
    #[error("the sealed home has format {0}, which this version does not know")]
    Format(u8),
    /// It ends too early, or goes on after its end.
    #[error("the sealed home is cut off or has something added")]
    Length,
    /// No key of this id is at hand.
    #[error("the sealed home needs the master key {0}, which is not at hand")]
    UnknownKey(KeyId),
    /// It is somebody else's.
    #[error("the sealed home belongs to another owner")]
    OtherOwner,
    /// It is another agent's.
    #[error("the sealed home belongs to another agent")]
    OtherAgent,
    /// It was changed after it was sealed, or sealed by another key of the same id.
    #[error("the sealed home was changed after it was sealed")]
    Tampered,
    /// It is too large.
    #[error("the sealed home is larger than {} MiB", HOME_BYTES_MAX >> 20)]
    TooLarge,
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Home,
    /// The owner's login was removed: nothing is in it.
    Removed,
}

/// What is sealed, without its contents. Readable by anybody; to be believed once the data key was unwrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) version: u64,
    pub(crate) fence: u64,
    pub(crate) owner: Box<str>,
    pub(crate) agent: Box<str>,
}

impl Subject {
    pub(crate) fn check(&self, owner: &OwnerHandle, agent: &AgentName) -> Result<(), SealError> {
        if *self.owner != *owner.name() {
            return Err(SealError::OtherOwner);
        }
        if *self.agent != *agent.as_str() {
            return Err(SealError::OtherAgent);
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + self.owner.len() + self.agent.len());
        bytes.extend_from_slice(MAGIC);
        bytes.push(FORMAT);
        bytes.push(match self.kind {
            Kind::Home => 0,
            Kind::Removed => 1,
        });
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&self.fence.to_be_bytes());
        let owner = u16::try_from(self.owner.len()).expect("an owner's name is at most 512 bytes");
        bytes.extend_from_slice(&owner.to_be_bytes());
        bytes.extend_from_slice(self.owner.as_bytes());
        bytes.push(u8::try_from(self.agent.len()).expect("an agent's name is at most 64 bytes"));
        bytes.extend_from_slice(self.agent.as_bytes());
        bytes
    }
}

/// A sealed home whose frame is right. Nothing in it is proven yet.
pub(crate) struct Sealed {
    pub(crate) subject: Subject,
    pub(crate) key_id: KeyId,
    bytes: Vec<u8>,
    /// Where the subject ends and the key begins.
    subject_end: usize,
}

/// Takes the next bytes of a message.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], SealError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(SealError::Length)?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], SealError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(SealError::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(crate) fn text(&mut self, count: usize) -> Result<Box<str>, SealError> {
        let bytes = self.take(count)?;
        Ok(std::str::from_utf8(bytes)
            .map_err(|_| SealError::Tampered)?
            .into())
    }
}

impl Sealed {
    /// Reads the frame.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, SealError> {
        if bytes.len() > SEALED_BYTES_MAX {
            return Err(SealError::TooLarge);
        }
        let mut reader = Reader(&bytes);
        if reader.array::<4>().map_err(|_| SealError::NotSealed)? != *MAGIC {
            return Err(SealError::NotSealed);
        }
        let [format] = reader.array()?;
        if format != FORMAT {
            return Err(SealError::Format(format));
        }
        let kind = match reader.array()? {
            [0] => Kind::Home,
            [1] => Kind::Removed,
            [_] => return Err(SealError::Tampered),
        };
        let version = u64::from_be_bytes(reader.array()?);
        let fence = u64::from_be_bytes(reader.array()?);
        let owner_length = u16::from_be_bytes(reader.array()?);
        let owner = reader.text(usize::from(owner_length))?;
        let [agent_length] = reader.array()?;
        let agent = reader.text(usize::from(agent_length))?;
        let subject_end = bytes.len() - reader.0.len();
        let key_id = KeyId(reader.array()?);
        reader.take(NONCE_LEN + WRAPPED_BYTES + NONCE_LEN)?;
        let body_length = u32::from_be_bytes(reader.array()?);
        let body_length = usize::try_from(body_length).map_err(|_| SealError::TooLarge)?;
        if reader.0.len() != body_length + TAG_BYTES {
            return Err(SealError::Length);
        }
        let subject = Subject {
            kind,
            version,
            fence,
            owner,
            agent,
        };
        Ok(Self {
            subject,
            key_id,
            bytes,
            subject_end,
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn key_at(&self) -> usize {
        self.subject_end + 8
    }

    fn body_at(&self) -> usize {
        self.key_at() + NONCE_LEN + WRAPPED_BYTES
    }

    /// Proves the subject, and gives the data key.
    fn unwrap_key(&self, keys: &KeyRing) -> Result<Zeroizing<[u8; DATA_KEY_BYTES]>, SealError> {
        let master = keys.find(self.key_id).ok_or(SealError::UnknownKey(self.key_id))?;
        let (nonce, wrapped) = self.bytes[self.key_at()..self.body_at()].split_at(NONCE_LEN);
        let mut wrapped = Zeroizing::new(wrapped.to_vec());
        let plain = key(master.bytes())
            .open_in_place(
                to_nonce(nonce),
                Aad::from(&self.bytes[..self.key_at()]),
                &mut wrapped,
            )
            .map_err(|_| SealError::Tampered)?;
        let mut data_key = Zeroizing::new([0; DATA_KEY_BYTES]);
        data_key.copy_from_slice(plain);
        Ok(data_key)
    }

    /// Proves that owner, agent, version and fence are as they were sealed.
    pub(crate) fn prove(&self, keys: &KeyRing) -> Result<(), SealError> {
        self.unwrap_key(keys).map(|_| ())
    }

    /// Opens it.
    pub(crate) fn open(self, keys: &KeyRing) -> Result<OpenHome, SealError> {
        let data_key = self.unwrap_key(keys)?;
        let body_at = self.body_at();
        let start = body_at + NONCE_LEN + 4;
        let mut bytes = Zeroizing::new(self.bytes);
        let (head, body) = bytes.split_at_mut(start);
        let nonce = to_nonce(&head[body_at..body_at + NONCE_LEN]);
        let length = key(data_key.as_slice())
            .open_in_place(nonce, Aad::from(&head[..self.subject_end]), body)
            .map_err(|_| SealError::Tampered)?
            .len();
        Ok(OpenHome::new(&self.subject.owner, bytes, start, start + length))
    }

    /// The same home with its data key under another master key. The contents are checked too, so that damage is not
    /// carried on under a new key.
    pub(crate) fn rewrap(&self, keys: &KeyRing, to: &MasterKey) -> Result<Vec<u8>, SealError> {
        let data_key = self.unwrap_key(keys)?;
        let whole = Self::parse(self.bytes.clone())?;
        drop(whole.open(keys)?);
        let mut bytes = self.bytes[..self.subject_end].to_vec();
        wrap(&mut bytes, to, &data_key)?;
        bytes.extend_from_slice(&self.bytes[self.body_at()..]);
        Ok(bytes)
    }
}

/// Seals an archive.
pub(crate) fn seal(subject: &Subject, archive: &[u8], master: &MasterKey) -> Result<Vec<u8>, SealError> {
    if archive.len() > HOME_BYTES_MAX {
        return Err(SealError::TooLarge);
    }
    let random = SystemRandom::new();
    let mut data_key = Zeroizing::new([0; DATA_KEY_BYTES]);
    random
        .fill(data_key.as_mut_slice())
        .map_err(|_| SealError::Random)?;
    let mut bytes = subject.encode();
    let subject_end = bytes.len();
    bytes.reserve_exact(256 + archive.len());
    wrap(&mut bytes, master, &data_key)?;
    let nonce = fresh_nonce()?;
    bytes.extend_from_slice(&nonce);
    let length = u32::try_from(archive.len()).map_err(|_| SealError::TooLarge)?;
    bytes.extend_from_slice(&length.to_be_bytes());
    let start = bytes.len();
    // Encrypted where it lies: no plain copy is left. Room was reserved, so nothing moves.
    bytes.extend_from_slice(archive);
    let (head, body) = bytes.split_at_mut(start);
    let tag = key(data_key.as_slice())
        .seal_in_place_separate_tag(to_nonce(&nonce), Aad::from(&head[..subject_end]), body)
        .expect("the archive is far smaller than what AES-GCM takes");
    bytes.extend_from_slice(tag.as_ref());
    Ok(bytes)
}

/// Adds key id, nonce and wrapped data key to a subject.
fn wrap(bytes: &mut Vec<u8>, master: &MasterKey, data_key: &[u8; DATA_KEY_BYTES]) -> Result<(), SealError> {
    bytes.extend_from_slice(&master.id().0);
    let nonce = fresh_nonce()?;
    let mut wrapped = Zeroizing::new(*data_key);
    let tag = key(master.bytes())
        .seal_in_place_separate_tag(
            to_nonce(&nonce),
            Aad::from(bytes.as_slice()),
            wrapped.as_mut_slice(),
        )
        .expect("a key is far smaller than what AES-GCM takes");
    bytes.extend_from_slice(&nonce);
    bytes.extend_from_slice(wrapped.as_slice());
    bytes.extend_from_slice(tag.as_ref());
    Ok(())
}

fn key(bytes: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("keys have 32 bytes"))
}

fn fresh_nonce() -> Result<[u8; NONCE_LEN], SealError> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| SealError::Random)?;
    Ok(nonce)
}

fn to_nonce(bytes: &[u8]) -> Nonce {
    Nonce::try_assume_unique_for_key(bytes).expect("twelve bytes")
}
