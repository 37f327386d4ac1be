//! A private CA, for mTLS between control plane and nodes: `remuda certs init | issue`.
//!
//! ```text
//! DIR/ca.pem  DIR/ca.key          the CA; the key never leaves this directory
//! DIR/NAME.pem  DIR/NAME.key      what one daemon gets, together with ca.pem
//! ```
//! An issued certificate works on both sides of a connection, since a control plane calls nodes and nodes call it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Clocks differ: a fresh certificate is valid from a little before now.
const BACKDATED: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA or certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file is there already.
    #[error("{} is there already; --force replaces it (what was issued before may stop working)", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no CA in the directory.
    #[error("there is no CA in {}; make one with `remuda certs init`", directory.display())]
    NoCa {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A name that cannot be a file's or a certificate's.
    #[error("{name:?} cannot be a certificate's name; right would be letters, digits, `.`, `-` and `_`")]
    Name {
        /// What was given.
        name: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// Read or write.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    NotACertificate {
        /// The file.
        path: PathBuf,
    },
    /// The certificate cannot be made.
    #[error("cannot make the certificate")]
    Make(#[from] rcgen::Error),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key, readable by its owner only.
    pub key: PathBuf,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// What to issue.
#[derive(Debug, Clone)]
pub struct Request {
    /// The file's name and the certificate's common name: a node's id, `control-plane`.
    pub name: String,
    /// Host names and addresses that it is to be reached by. The name itself is added.
    pub alt_names: Vec<String>,
    /// From when. Now, but for tests.
    pub from: SystemTime,
    /// For how long.
    pub days: u32,
    /// Whether files that are there may be replaced.
    pub force: bool,
}

/// Makes a CA in the directory.
///
/// # Errors
/// [`CertsError`]; nothing is overwritten without `force`.
pub fn init(directory: &Path, days: u32, force: bool) -> Result<Written, CertsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let not_after = set_validity(&mut params, SystemTime::now(), days);
    let key = KeyPair::generate()?;
    // Two CAs of one name would be taken for each other, and a stranger's certificate for a forged one.
    let own: String = params
        .key_identifier(&key)
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params.distinguished_name = common_name(&format!("Remuda private CA {own}"));
    let certificate = params.self_signed(&key)?;
    create_private_directory(directory)?;
    write_pair(directory, "ca", &certificate.pem(), &key, force, not_after)
}

/// Issues a certificate and key, signed by the directory's CA, valid for clients and servers.
///
/// # Errors
/// [`CertsError`]; nothing is overwritten without `force`.
pub fn issue(directory: &Path, request: &Request) -> Result<Written, CertsError> {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_');
    let name = &request.name;
    if name.is_empty()
        || name.len() > 64
        || name == "ca"
        || name.starts_with('.')
        || !name.chars().all(is_plain)
    {
        return Err(CertsError::Name { name: name.clone() });
    }
    let issuer = read_ca(directory)?;
    let mut alt_names = request.alt_names.clone();
    if !alt_names.contains(name) {
        alt_names.push(name.clone());
    }
    let mut params = CertificateParams::new(alt_names)?;
    params.distinguished_name = common_name(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let not_after = set_validity(&mut params, request.from, request.days);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    write_pair(
        directory,
        name,
        &certificate.pem(),
        &key,
        request.force,
        not_after,
    )
}

/// What a certificate file says, for people and for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Whose it is.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Reads the first certificate of a PEM file.
///
/// # Errors
/// [`CertsError::File`], [`CertsError::NotACertificate`].
pub fn about(path: &Path) -> Result<About, CertsError> {
    let text = read(path)?;
    let not_one = || CertsError::NotACertificate {
        path: path.to_owned(),
    };
    let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| not_one())?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|_| not_one())?;
    let validity = certificate.validity();
    Ok(About {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        not_before: at(validity.not_before.timestamp()),
        not_after: at(validity.not_after.timestamp()),
    })
}

/// Until when the first certificate of a PEM file is valid.
///
/// # Errors
/// As [`about`].
pub fn expiry(path: &Path) -> Result<SystemTime, CertsError> {
    about(path).map(|about| about.not_after)
}

fn read_ca(directory: &Path) -> Result<Issuer<'static, KeyPair>, CertsError> {
    let (cert, key) = (directory.join("ca.pem"), directory.join("ca.key"));
    if !cert.exists() || !key.exists() {
        return Err(CertsError::NoCa {
            directory: directory.to_owned(),
        });
    }
    Ok(Issuer::from_ca_cert_pem(
        &read(&cert)?,
        KeyPair::from_pem(&read(&key)?)?,
    )?)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_validity(params: &mut CertificateParams, from: SystemTime, days: u32) -> SystemTime {
    let not_after = from + DAY * days;
    params.not_before = (from - BACKDATED).into();
    params.not_after = not_after.into();
    not_after
}

fn write_pair(
    directory: &Path,
    name: &str,
    certificate: &str,
    key: &KeyPair,
    force: bool,
    not_after: SystemTime,
) -> Result<Written, CertsError> {
    // `Path::with_extension` would take `node.example` for a name with an extension.
    let written = Written {
        cert: directory.join(format!("{name}.pem")),
        key: directory.join(format!("{name}.key")),
        not_after,
    };
    if !force
        && let Some(path) = [&written.cert, &written.key]
            .into_iter()
            .find(|path| path.exists())
    {
        return Err(CertsError::Exists { path: path.clone() });
    }
    write(&written.key, &key.serialize_pem(), 0o600)?;
    write(&written.cert, certificate, 0o644)?;
    Ok(written)
}

fn create_private_directory(directory: &Path) -> Result<(), CertsError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| CertsError::File {
            what: "create",
            path: directory.to_owned(),
            source,
        })
}

/// Writes beside the file and renames, so that a reader never sees half of it and the mode is right from the start.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let all = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    all().map_err(|source| CertsError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, CertsError> {
    fs::read_to_string(path).map_err(|source| CertsError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

fn at(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH - distance
    } else {
        SystemTime::UNIX_EPOCH + distance
    }
}

#[cfg(test)]
mod tests;
