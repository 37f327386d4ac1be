//! Where programs in a sandbox find the proxy: one port, on as many loopback addresses as are needed to tell by the
//! address which program it was. That works for every client and every form of request, and is the kernel's word.

use std::net::{Ipv4Addr, SocketAddrV4};

const PROXY_PORT: u16 = 3128;

/// The address in a sandbox at which init listens for the programs' connections to the world.
pub const PROXY_ADDRESS: &str = "127.0.0.1:3128";

/// Where an entrance of the proxy is: 0 is [`PROXY_ADDRESS`], the others are in 127.1.0.0/16.
pub fn entrance_address(entrance: u16) -> SocketAddrV4 {
    let [high, low] = entrance.to_be_bytes();
    let address = match entrance {
        0 => Ipv4Addr::LOCALHOST,
        _ => Ipv4Addr::new(127, 1, high, low),
    };
    SocketAddrV4::new(address, PROXY_PORT)
}

/// Which entrance is at an address: 0 for all of loopback that is no other one. None: it is not loopback, and no
/// program of the sandbox has connected there.
pub fn entrance_at(address: Ipv4Addr) -> Option<u16> {
    match address.octets() {
        [127, 1, high, low] => Some(u16::from_be_bytes([high, low])),
        [127, ..] => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entrance_is_found_by_its_address() {
        assert_eq!(entrance_address(0).to_string(), PROXY_ADDRESS);
        assert_eq!(entrance_address(258).to_string(), "127.1.1.2:3128");
        for entrance in [0, 1, 255, 256, u16::MAX] {
            assert_eq!(entrance_at(*entrance_address(entrance).ip()), Some(entrance));
        }
        assert_eq!(entrance_at(Ipv4Addr::new(127, 9, 9, 9)), Some(0));
        assert_eq!(entrance_at(Ipv4Addr::new(10, 1, 0, 1)), None);
    }
}
