//! CIDR blocks in the configuration.

use std::net::IpAddr;

use ipnet::IpNet;

/// `10.1.2.0/24`, or a single address.
pub fn parse(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn blocks_and_single_addresses_are_parsed() {
        let contains = |net: &str, address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            parse(net).unwrap().contains(&address)
        };
        assert!(contains("10.1.2.0/24", "10.1.2.255") && !contains("10.1.2.0/24", "10.1.3.0"));
        assert!(contains("10.1.2.7/24", "10.1.2.255"));
        assert!(contains("127.0.0.1", "127.0.0.1") && !contains("127.0.0.1", "127.0.0.2"));
        assert!(contains("0.0.0.0/0", "255.255.255.255") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("fd00::/8", "fd12::1") && !contains("fd00::/8", "fe80::1"));
        for wrong in [
            "",
            "x",
            "10.0.0.0/33",
            "::1/129",
            "10.0.0.0/x",
            "10.0.0.0/-1",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
