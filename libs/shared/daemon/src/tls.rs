//! TLS between control plane, nodes and clients: rustls with ring, PEM files, a private CA.
//!
//! Both sides check each other when a CA is set. What a refusal means is said by [`explain`]: which side, and why.
//! Files are read again when they change ([`Watched`]): a renewed certificate needs no restart, and one that cannot be
//! read leaves the old one in use.

mod accept;
pub(crate) mod explain;
mod watched;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use accept::{AcceptError, accept, accept_tcp};
pub use explain::{Sides, explain};
pub use watched::Watched;

/// HTTP/2, then HTTP/1.1.
pub const ALPN_HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A certificate chain and its key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, then those that lead to the CA.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl Identity {
    /// Both or neither: one file without the other is a mistake. `names` are the two settings, for the error.
    ///
    /// # Errors
    /// [`TlsError::HalfIdentity`].
    pub fn of_settings(
        cert: Option<&Path>,
        key: Option<&Path>,
        names: [&'static str; 2],
    ) -> Result<Option<Self>, TlsError> {
        match (cert, key) {
            (Some(cert), Some(key)) => Ok(Some(Self {
                cert: cert.to_owned(),
                key: key.to_owned(),
            })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(TlsError::HalfIdentity {
                given: names[0],
                missing: names[1],
            }),
            (None, Some(_)) => Err(TlsError::HalfIdentity {
                given: names[1],
                missing: names[0],
            }),
        }
    }
}

/// Whose certificates a server asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// Nobody's.
    Off,
    /// Those who have one show it; a wrong one is refused, none is let through.
    Optional(PathBuf),
    /// Only those with a certificate of this CA get in.
    Required(PathBuf),
}

/// A TLS configuration cannot be made. Exit code 64.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of certificate and key is set.
    #[error("{given} is set and {missing} is not; a certificate and its key go together")]
    HalfIdentity {
        /// What is set.
        given: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read the {what} in {}", path.display())]
    Unreadable {
        /// Certificate, key or CA.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file can be read and is not what it should be.
    #[error("{} holds no {what} in PEM form", path.display())]
    NotPem {
        /// Certificate, key or CA.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The parts do not fit.
    #[error("the certificate {} and the key {} cannot be used", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The CA cannot be used.
    #[error("the CA in {} cannot be used: {reason}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Makes ring the process's cryptography. Doing it again changes nothing; a provider that somebody else has installed
/// stays.
pub fn install_provider() {
    // The error only says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What a server shows, and whom it lets in.
///
/// # Errors
/// [`TlsError`].
pub fn server_config(
    identity: &Identity,
    clients: &ClientAuth,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    install_provider();
    let builder = ServerConfig::builder();
    let builder = match clients {
        ClientAuth::Off => builder.with_no_client_auth(),
        ClientAuth::Optional(ca) | ClientAuth::Required(ca) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots(ca)?));
            let verifier = match clients {
                ClientAuth::Optional(_) => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier = verifier.build().map_err(|error| TlsError::Ca {
                path: ca.clone(),
                reason: error.to_string(),
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = read_identity(identity)?;
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|source| unusable(identity, source))?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Whom a client believes (the CA alone), and what it shows when it is asked.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(
    ca: &Path,
    identity: Option<&Identity>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    install_provider();
    let builder = ClientConfig::builder().with_root_certificates(roots(ca)?);
    let mut config = match identity {
        Some(identity) => {
            let (chain, key) = read_identity(identity)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|source| unusable(identity, source))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn roots(ca: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca, "CA certificate")? {
        roots.add(certificate).map_err(|error| TlsError::Ca {
            path: ca.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn read_identity(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&identity.cert, "certificate")?;
    let text = read(&identity.key, "private key")?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| TlsError::NotPem {
        what: "private key",
        path: identity.key.clone(),
    })?;
    Ok((chain, key))
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path, what)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NotPem {
            what,
            path: path.to_owned(),
        })?;
    if found.is_empty() {
        return Err(TlsError::NotPem {
            what,
            path: path.to_owned(),
        });
    }
    Ok(found)
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable {
        what,
        path: path.to_owned(),
        source,
    })
}

fn unusable(identity: &Identity, source: rustls::Error) -> TlsError {
    TlsError::Unusable {
        cert: identity.cert.clone(),
        key: identity.key.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
