//! The connection's bytes: a Unix socket, or TCP with TLS. Never blocks.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use init_protocol::NodeAddress;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// How long a TCP connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) enum Transport {
    Unix(UnixStream),
    Tls(Box<Tls>),
}

pub(crate) struct Tls {
    socket: TcpStream,
    session: ClientConnection,
}

impl Transport {
    pub(crate) fn connect(address: &NodeAddress) -> io::Result<Self> {
        match address {
            NodeAddress::Unix(path) => {
                let socket = UnixStream::connect(path)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Unix(socket))
            }
            NodeAddress::Tls {
                address,
                server_name,
                ca_pem,
            } => {
                let session = session(server_name, ca_pem).map_err(io::Error::other)?;
                let address = address
                    .to_socket_addrs()?
                    .next()
                    .ok_or_else(|| io::Error::other("the node's name has no address"))?;
                let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Tls(Box::new(Tls { socket, session })))
            }
        }
    }

    /// Bytes that came; 0 at the end of the connection.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Takes bytes to send; fewer than given when its own buffer is full.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(socket) => socket.write(bytes),
            Self::Tls(tls) => {
                let count = tls.session.writer().write(bytes)?;
                tls.flush()?;
                if count == 0 && !bytes.is_empty() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(count)
            }
        }
    }

    /// Whether something that was taken has not been sent yet.
    pub(crate) fn wants_write(&self) -> bool {
        match self {
            Self::Unix(_) => false,
            Self::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// Sends what was taken, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.as_fd(),
            Self::Tls(tls) => tls.socket.as_fd(),
        }
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An end without TLS's own goodbye is an end all the same: frames tell where they end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if self.session.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            self.session
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.flush()?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn session(server_name: &str, ca_pem: &str) -> Result<ClientConnection, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let name = ServerName::try_from(server_name.to_owned()).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())
}
