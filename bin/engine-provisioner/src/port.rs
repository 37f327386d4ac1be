//! A free port on loopback that stays reserved until the engine has it, and as long as the engine runs.
//!
//! Between finding a free port and the engine's listening on it, another engine could get the same one. So the socket
//! that found it stays bound, without listening: the kernel then gives the port to nobody who asks for any port, and
//! lets the engine have it, because both sockets allow their address to be shared (`SO_REUSEADDR`).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use socket2::{Domain, Socket, Type};

/// A port of 127.0.0.1, kept from others while this value lives.
#[derive(Debug)]
pub(crate) struct ReservedPort {
    _socket: Socket,
    number: u16,
}

impl ReservedPort {
    pub(crate) fn any() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // The port is chosen before sharing is allowed, so it is one that nobody has in any way.
        socket.bind(&SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).into())?;
        socket.set_reuse_address(true)?;
        let address = socket
            .local_addr()?
            .as_socket_ipv4()
            .ok_or_else(|| io::Error::other("no IPv4 address"))?;
        Ok(Self {
            _socket: socket,
            number: address.port(),
        })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_engine_gets_the_port_and_nobody_else_does() {
        let reserved = ReservedPort::any().unwrap();
        for _ in 0..200 {
            assert_ne!(ReservedPort::any().unwrap().number(), reserved.number());
            let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            assert_ne!(other.local_addr().unwrap().port(), reserved.number());
        }
        // The standard library's listener allows its address to be shared, as engines do.
        let engine = TcpListener::bind((Ipv4Addr::LOCALHOST, reserved.number())).unwrap();
        let client = std::net::TcpStream::connect(engine.local_addr().unwrap()).unwrap();
        assert_eq!(engine.accept().unwrap().1, client.local_addr().unwrap());
    }
}
