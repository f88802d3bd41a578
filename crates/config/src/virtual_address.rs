//! An address that several gateway machines share, one at a time: `[gateway.virtual_address]`, and the same in the
//! gateway's own file.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One address that the healthiest of some machines has (VRRPv3, RFC 5798).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtualAddress {
    /// The address with the length of its network, as `192.0.2.10/24`.
    pub address: IpNet,
    /// The interface that it comes to.
    pub interface: String,
    /// Number of the group in its network, 1 to 255; the same on all its machines.
    pub router_id: u8,
    /// The machine with the highest one has the address while its gateway is well; 2 to 254.
    #[serde(default = "hundred")]
    pub priority: u8,
    /// Addresses of the other machines; without them, machines find each other by multicast.
    #[serde(default)]
    pub peers: Vec<IpAddr>,
    /// How often the machine that has it says so, in ms: 10 to 500, in steps of 10. Another one takes it after three
    /// silent ones.
    #[serde(default = "quarter")]
    pub advert_ms: u16,
}

fn hundred() -> u8 {
    100
}

fn quarter() -> u16 {
    250
}

impl VirtualAddress {
    /// Whether it can be served; the reason why not.
    pub fn check(&self) -> Result<(), String> {
        let named = (1..16).contains(&self.interface.len())
            && self.interface.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(&it));
        if !named {
            return Err(format!("`virtual_address.interface`: `{}` is not the name of an interface", self.interface));
        }
        if self.router_id == 0 {
            return Err("`virtual_address.router_id` is 1 to 255".to_owned());
        }
        if !(2..=254).contains(&self.priority) {
            return Err(format!("`virtual_address.priority` is 2 to 254, not {}", self.priority));
        }
        if !(10..=500).contains(&self.advert_ms) || !self.advert_ms.is_multiple_of(10) {
            return Err(format!("`virtual_address.advert_ms` is 10 to 500 in steps of 10, not {}", self.advert_ms));
        }
        let (address, four) = (self.address.addr(), self.address.addr().is_ipv4());
        if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            return Err(format!("`virtual_address.address`: {address} cannot be shared by machines"));
        }
        if let Some(peer) = self.peers.iter().find(|it| it.is_ipv4() != four || **it == address) {
            return Err(format!("`virtual_address.peers`: {peer} is not another machine's address of the same kind"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_shared_is_refused() {
        let good = VirtualAddress {
            address: "192.0.2.10/24".parse().unwrap(),
            interface: "eth0".to_owned(),
            router_id: 51,
            priority: 100,
            peers: vec!["192.0.2.2".parse().unwrap()],
            advert_ms: 250,
        };
        assert_eq!(good.check(), Ok(()));
        type Change = fn(&mut VirtualAddress);
        let changes: [(&str, Change); 8] = [
            ("interface", |it| it.interface = "eth0 {".to_owned()),
            ("interface", |it| it.interface = String::new()),
            ("router_id", |it| it.router_id = 0),
            ("priority", |it| it.priority = 255),
            ("advert_ms", |it| it.advert_ms = 1000),
            ("advert_ms", |it| it.advert_ms = 255),
            ("address", |it| it.address = "127.0.0.1/8".parse().unwrap()),
            ("peers", |it| it.peers = vec!["192.0.2.10".parse().unwrap()]),
        ];
        for (part, change) in changes {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bad.check().unwrap_err().contains(part), "{bad:?}");
        }
    }
}
