//! TCP ports for programs that bind them by themselves.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Context, Result};

/// A free TCP port of 127.0.0.1 that is given to nobody else, in this or another process, until it is dropped. What reserves
/// it is the UDP port of the same number: a program can bind the TCP port meanwhile, and again after a restart.
pub struct Port {
    number: u16,
    _reserved: UdpSocket,
}

impl Port {
    /// A port below the range that the kernel gives to outgoing connections.
    ///
    /// # Errors
    /// When none is free.
    pub fn reserve() -> Result<Port> {
        (0..200)
            .map(|_| rand::random_range(20_000..30_000))
            .find_map(|number| {
                let reserved = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
                TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
                Some(Port { number, _reserved: reserved })
            })
            .context("no free TCP port between 20000 and 30000 on 127.0.0.1")
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_port_is_given_once_and_can_be_bound_again_and_again() {
        let ports: Vec<_> = (0..500).map(|_| Port::reserve().unwrap()).collect();
        let numbers: BTreeSet<_> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
        for port in &ports {
            drop(TcpListener::bind(port.address()).unwrap());
            TcpListener::bind(port.address()).unwrap();
        }
    }
}
