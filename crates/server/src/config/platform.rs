//! Variables that Kubernetes and Docker set for every service, recognised by their form.
//!
//! Source: Kubernetes, "Accessing the Service", environment variables; Docker, "Legacy container links".

use std::collections::BTreeMap;

const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// Whether the platform set this variable, and no operator: `REDIS_PORT=tcp://10.96.0.9:6379` and those beside it.
pub(super) fn is_of_platform(env: &BTreeMap<String, String>, name: &str, value: &str) -> bool {
    if name.ends_with("_PORT") && is_address(value) {
        return true;
    }
    // The part before the first suffix that fits may be a service's name.
    let services = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"];
    let mut services = services.iter().filter_map(|suffix| name.split_once(suffix));
    services.any(|(service, rest)| is_service(env, service) && is_rest(name, rest))
}

fn is_address(value: &str) -> bool {
    let protocol = value.trim().split_once("://").map(|(protocol, _)| protocol);
    protocol.is_some_and(|protocol| PROTOCOLS.contains(&protocol))
}

/// Whether the platform says where a service of this name is.
fn is_service(env: &BTreeMap<String, String>, service: &str) -> bool {
    let port = env.get(&format!("{service}_PORT"));
    let is_named = env.contains_key(&format!("{service}_SERVICE_HOST"))
        && env.contains_key(&format!("{service}_SERVICE_PORT"));
    is_named || port.is_some_and(|port| is_address(port))
}

/// Whether a name continues after the service's name as the platform's names do.
fn is_rest(name: &str, rest: &str) -> bool {
    match rest {
        "" => !name.ends_with("_PORT_"),
        // A named port, or `8080_TCP_ADDR`.
        _ => {
            let mut parts = rest.split('_');
            let number = parts.next().unwrap_or_default();
            let protocol = parts.next().unwrap_or_default();
            let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
            name.contains("_SERVICE_PORT_")
                || is_number && PROTOCOLS.contains(&protocol.to_lowercase().as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_variables_are_distinguished_from_those_of_operators() {
        let address = "tcp://10.96.0.9:6379";
        let mut env = BTreeMap::new();
        // Services `redis`, `towpath` and `towpath-server`, the last with a headless twin without an address.
        for service in ["REDIS", "TOWPATH", "TOWPATH_SERVER"] {
            for (suffix, value) in [
                ("_SERVICE_HOST", "10.96.0.9"),
                ("_SERVICE_PORT", "6379"),
                ("_SERVICE_PORT_HTTP_ADMIN", "7070"),
                ("_PORT", address),
                ("_PORT_6379_TCP", address),
                ("_PORT_6379_TCP_PROTO", "tcp"),
                ("_PORT_6379_TCP_PORT", "6379"),
                ("_PORT_6379_TCP_ADDR", "10.96.0.9"),
            ] {
                env.insert(format!("{service}{suffix}"), value.to_owned());
            }
        }
        for (name, value) in &env {
            assert!(is_of_platform(&env, name, value), "{name}");
        }
        for (name, value) in [
            ("REDIS_PORT", "6379"),
            ("REDIS_HOST", "10.96.0.9"),
            ("PORT", "8080"),
            ("TOWPATH_SERVER__LISTEN", ":8080"),
            ("TOWPATH_SERVER__ADMIN", "tcp://x"),
            ("DB_SERVICE_HOST", "10.96.0.9"),
            ("DB_PORT_5432_TCP", address),
        ] {
            assert!(!is_of_platform(&env, name, value), "{name}={value}");
        }
    }
}
