//! Which addresses are the open internet's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// IPv4 networks that are not the open internet (IANA's special-purpose registry, multicast, and 240/4).
const NOT_PUBLIC_V4: [([u8; 4], u32); 16] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 31, 196, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// IPv6 networks inside 2000::/3 that are not the open internet, or carry an IPv4 address of which nothing was asked:
/// 2001::/23 with Teredo, documentation, 6to4.
const NOT_PUBLIC_V6: [(u128, u32); 4] = [
    (0x2001_0000 << 96, 23),
    (0x2001_0db8 << 96, 32),
    (0x2002_0000 << 96, 16),
    (0x3fff_0000 << 96, 20),
];

/// Whether the address is one of the open internet. All that IPv6 has outside 2000::/3 is not: loopback, link-local,
/// unique local, multicast, and IPv4 addresses that are mapped or translated.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let bits = address.to_bits();
            !NOT_PUBLIC_V4
                .iter()
                .any(|(network, length)| same_v4(bits, Ipv4Addr::from(*network).to_bits(), *length))
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            same_v6(bits, 0x2000_0000 << 96, 3)
                && !NOT_PUBLIC_V6
                    .iter()
                    .any(|(network, length)| same_v6(bits, *network, *length))
        }
    }
}

fn same_v4(one: u32, other: u32, length: u32) -> bool {
    (one ^ other).checked_shr(32 - length).unwrap_or(0) == 0
}

fn same_v6(one: u128, other: u128, length: u32) -> bool {
    (one ^ other).checked_shr(128 - length).unwrap_or(0) == 0
}

/// A network, written `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    length: u32,
}

impl Network {
    /// Whether the address is in it. An IPv4 address that is mapped into IPv6 is not the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => same_v4(own.to_bits(), other.to_bits(), self.length),
            (IpAddr::V6(own), IpAddr::V6(other)) => same_v6(own.to_bits(), other.to_bits(), self.length),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            length: if address.is_ipv4() {
                Ipv4Addr::BITS
            } else {
                Ipv6Addr::BITS
            },
        }
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let Some((address, length)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(Self::from).map_err(|_| ());
        };
        let whole = Self::from(address.parse::<IpAddr>().map_err(|_| ())?);
        let length: u32 = length.parse().map_err(|_| ())?;
        if length > whole.length {
            Err(())
        } else {
            Ok(Self { length, ..whole })
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, expect: bool) {
        assert_eq!(is_public(address.parse().unwrap()), expect, "{address}");
    }

    #[test]
    fn only_the_open_internet_is_public() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "172.32.0.1",
            "223.255.255.255",
        ] {
            check(address, true);
        }
        for address in ["2606:4700::1111", "2a00:1450:4001::200e", "2001:4860:4860::8888"] {
            check(address, true);
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            check(address, false);
        }
    }

    #[test]
    fn networks_hold_their_addresses_only() {
        let network: Network = "10.1.0.0/16".parse().unwrap();
        assert!(network.contains("10.1.255.1".parse().unwrap()));
        assert!(!network.contains("10.2.0.1".parse().unwrap()));
        assert!(!network.contains("::ffff:10.1.0.1".parse().unwrap()));
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()));
        let one: Network = "::1".parse().unwrap();
        assert!(one.contains("::1".parse().unwrap()) && !one.contains("::2".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<Network>().is_err() && "ten/8".parse::<Network>().is_err());
    }
}
