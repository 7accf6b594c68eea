//! Refused destinations in every spelling, and the effect of exceptions.

#![expect(clippy::disallowed_methods, reason = "tests have no supervisor")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Answers these lists one after the other, then the last one.
struct Scripted(Vec<Vec<IpAddr>>, AtomicUsize);

#[async_trait]
impl Lookup for Scripted {
    async fn lookup(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
        let turn = self.1.fetch_add(1, Ordering::Relaxed);
        Ok(self.0[turn.min(self.0.len() - 1)].clone())
    }
}

fn egress(exceptions: &[&str], answers: &[&[&str]]) -> EgressPolicy {
    let exceptions: Vec<String> = exceptions.iter().map(ToString::to_string).collect();
    let addresses = |list: &&[&str]| list.iter().map(|one| one.parse().unwrap()).collect();
    let lookup = Scripted(answers.iter().map(addresses).collect(), AtomicUsize::new(0));
    EgressPolicy::with(&exceptions, Duration::from_secs(2), Arc::new(lookup)).unwrap()
}

#[test]
fn odd_spellings_of_places_that_are_not_public_are_refused() {
    let egress = egress(&[], &[&[]]);
    let refused = [
        // Loopback, in every spelling that a URL knows.
        "http://127.0.0.1/",
        "http://127.1/",
        "http://127.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://127.0.0.1./",
        "http://127.255.255.254/",
        "http://0/",
        "http://0.0.0.0/",
        "http://0.1.2.3/",
        "http://[::1]/",
        "http://[::]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://①②⑦.0.0.1/",
        "http://127。0。0。1/",
        // Mapped and embedded addresses of version 4.
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[::ffff:8.8.8.8]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b::8.8.8.8]/",
        "http://[64:ff9b:1::1]/",
        "http://[2002:7f00:1::]/",
        "http://[2002:808:808::]/",
        "http://[2001:0:4136:e378::1]/",
        // Private, shared and local.
        "http://10.0.0.1/",
        "http://10.255.255.255/",
        "http://172.16.0.1/",
        "http://172.31.255.255/",
        "http://192.168.0.1/",
        "http://100.64.0.0/",
        "http://100.127.255.255/",
        "http://169.254.169.254/",
        "http://169.254.0.1/",
        "http://0xA9FEA9FE/",
        "http://2852039166/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[fc00::1]/",
        "http://[fec0::1]/",
        // Reserved for protocols, documents and tests, many receivers, broadcast.
        "http://192.0.0.1/",
        "http://192.0.2.1/",
        "http://192.88.99.1/",
        "http://198.18.0.1/",
        "http://198.19.255.255/",
        "http://198.51.100.1/",
        "http://203.0.113.1/",
        "http://224.0.0.1/",
        "http://233.252.0.1/",
        "http://239.255.255.255/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "http://[ff02::1]/",
        "http://[2001:db8::1]/",
        "http://[3fff::1]/",
        "http://[100::1]/",
        "http://[5f00::1]/",
        // Ports of other services, and invalid web addresses.
        "http://8.8.8.8:22/",
        "http://8.8.8.8:25/",
        "http://host:465/",
        "http://host:0/",
        "ftp://8.8.8.8/",
        "file:///etc/passwd",
        "gopher://8.8.8.8/",
        "data:,x",
        "http://user@8.8.8.8/",
        "http://user:secret@host/",
        "http://",
        "//8.8.8.8/",
        "8.8.8.8",
        "",
        "http://[::1",
        "http://a b/",
    ];
    assert!(refused.len() >= 60);
    for url in refused {
        assert!(egress.check(url).is_err(), "{url}");
    }
    for url in [
        "http://8.8.8.8/",
        "https://8.8.8.8/",
        "http://8.8.8.8:8080/x?y#z",
        "https://host.example/",
        "http://[2606:4700::1111]/",
        "http://100.63.255.255/",
        "http://100.128.0.0/",
        "http://172.15.0.1/",
        "http://172.32.0.1/",
        "http://11.0.0.0/",
        "http://223.255.255.255/",
        "http://[2003::1]/",
    ] {
        egress
            .check(url)
            .unwrap_or_else(|error| panic!("{url}: {}", error.chain()));
    }
}

#[test]
fn exceptions_allow_only_their_destinations() {
    let egress = egress(
        &[
            "127.0.0.1:8080",
            "10.1.2.0/24",
            "[::1]:80",
            "intern",
            "fd00::/8",
        ],
        &[&[]],
    );
    for url in [
        "http://127.0.0.1:8080/",
        "http://10.1.2.255:22/",
        "http://[::1]/",
        "http://intern:25/",
        "http://INTERN./",
        "http://[fd12::1]:9000/",
    ] {
        egress
            .check(url)
            .unwrap_or_else(|error| panic!("{url}: {}", error.chain()));
    }
    for url in [
        "http://127.0.0.1:8081/",
        "http://127.0.0.2:8080/",
        "http://10.1.3.0/",
        "http://[::1]:81/",
    ] {
        assert!(egress.check(url).is_err(), "{url}");
    }
    for wrong in [
        "",
        "a b",
        "10.0.0.0/33",
        "::1/129",
        "host/8",
        "host:x",
        "127.0.0.1:99999",
    ] {
        assert!(!EgressPolicy::is_exception(wrong), "{wrong}");
    }
}

/// A server on a loopback address that answers every request, and its port.
async fn server() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = axum::Router::new().fallback(async || "inside");
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

#[tokio::test]
async fn a_name_that_turns_to_another_place_is_not_followed_there() {
    let port = server().await;
    let url = format!("http://rebinding.example:{port}/");
    // First a public address, without a server here, then the internal one.
    let open = egress(&[], &[&["127.0.0.1"]]);
    let refused = open.get(&Url::parse(&url).unwrap()).await.unwrap_err();
    assert_eq!(refused.to_string(), REFUSED);
    let turning = egress(&[], &[&["192.0.2.1", "127.0.0.1", "::1"], &["127.0.0.1"]]);
    for _ in 0..2 {
        let refused = turning.get(&Url::parse(&url).unwrap()).await.unwrap_err();
        assert_eq!(refused.to_string(), REFUSED, "whenever it is asked");
    }
    // The same name is asked where it is allowed to lead.
    let allowed = egress(&["rebinding.example"], &[&["127.0.0.1"]]);
    let answer = allowed.get(&Url::parse(&url).unwrap()).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "inside");
    // An exception for one port says nothing of another.
    let other = egress(&["127.0.0.1:1"], &[&["127.0.0.1"]]);
    assert!(other.get(&Url::parse(&url).unwrap()).await.is_err());
}

#[tokio::test]
async fn of_mixed_addresses_only_public_ones_are_tried() {
    let checked = |answers| Checked {
        rule: egress(&[], answers).rule,
        port: 80,
    };
    let resolve = async |checked: Checked| {
        let found = checked.resolve("host".parse().unwrap()).await;
        found.map(|found| found.map(|one| one.ip().to_string()).collect::<Vec<_>>())
    };
    let mixed: &[&[&str]] = &[&["10.0.0.1", "8.8.8.8", "::1"]];
    assert_eq!(resolve(checked(mixed)).await.unwrap(), ["8.8.8.8"]);
    assert!(resolve(checked(&[&["10.0.0.1"]])).await.is_err());
}

/// Hosts that lead to an address of version 4, in the forms that URL parsers, resolvers and gateways know.
fn spellings(address: Ipv4Addr) -> BTreeSet<String> {
    let [a, b, c, d] = address.octets();
    let number = u32::from(address);
    let (low_24, low_16) = (number & 0x00ff_ffff, number & 0xffff);
    let dotted = address.to_string();
    let wide = |text: &str| -> String {
        let wide = |it: char| match it.to_digit(10) {
            Some(digit) => char::from_u32(0xff10 + digit).expect("a digit"),
            None => '。',
        };
        text.chars().map(wide).collect()
    };
    let escaped: String = dotted.bytes().map(|it| format!("%{it:02x}")).collect();
    let halves = format!("{:x}:{:x}", number >> 16, low_16);
    BTreeSet::from([
        dotted.clone(),
        format!("{dotted}."),
        wide(&dotted),
        escaped,
        number.to_string(),
        format!("{number}."),
        wide(&number.to_string()),
        format!("0x{number:x}"),
        format!("0X{number:X}"),
        format!("0x0000{number:08x}"),
        format!("0{number:o}"),
        format!("000{number:o}"),
        format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
        format!("0x{a:02X}.0x{b:02X}.0x{c:02X}.0x{d:02X}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("000{a:o}.000{b:o}.000{c:o}.000{d:o}"),
        format!("0x{a:x}.{b}.0{c:o}.{d}"),
        format!("0{a:o}.{b}.{c}.0x{d:x}"),
        format!("{a}.{low_24}"),
        format!("{a}.0x{low_24:x}"),
        format!("0x{a:x}.0{low_24:o}"),
        format!("{a}.{b}.{low_16}"),
        format!("{a}.{b}.0x{low_16:x}"),
        format!("0{a:o}.0{b:o}.0{low_16:o}"),
        format!("[::ffff:{dotted}]"),
        format!("[::FFFF:{dotted}]"),
        format!("[::ffff:{halves}]"),
        format!("[0:0:0:0:0:ffff:{halves}]"),
        format!("[0000:0000:0000:0000:0000:ffff:{dotted}]"),
        format!("[::ffff:0:{halves}]"),
        format!("[::{dotted}]"),
        format!("[::{halves}]"),
        format!("[64:ff9b::{dotted}]"),
        format!("[64:ff9b::{halves}]"),
        format!("[64:ff9b:1::{halves}]"),
        format!("[2002:{halves}::]"),
        format!("[2002:{halves}::1]"),
        format!("[2001:0:{halves}::1]"),
    ])
}

/// Requests that a server on a loopback address has seen.
async fn canary() -> (u16, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let counter = Arc::clone(&seen);
    let app = axum::Router::new().fallback(async move || {
        counter.fetch_add(1, Ordering::Relaxed);
        "inside"
    });
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, app).await });
    (port, seen)
}

#[tokio::test]
async fn no_spelling_of_an_internal_address_reaches_it() {
    let (port, seen) = canary().await;
    let guarded = egress(&[], &[&["127.0.0.1"]]);
    let mut count = 0;
    let inside = [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
    ];
    for address in inside {
        for host in spellings(address.parse().unwrap()) {
            let url = format!("http://{host}:{port}/");
            count += 1;
            assert!(guarded.check(&url).is_err(), "{url}");
            if let Ok(parsed) = Url::parse(&url) {
                assert!(guarded.get(&parsed).await.is_err(), "{url}");
            }
        }
    }
    // Names that lead there, whatever they are.
    for name in [
        "localhost",
        "LOCALHOST.",
        "127.0.0.1.nip.example",
        "metadata.internal",
        "xn--n3h.example",
        "a.b.c.d.e.f",
    ] {
        count += 1;
        let url = Url::parse(&format!("http://{name}:{port}/")).unwrap();
        assert!(guarded.get(&url).await.is_err(), "{url}");
    }
    assert!(count >= 300, "{count}");
    assert_eq!(
        seen.load(Ordering::Relaxed),
        0,
        "requests reached the canary"
    );

    // Without the guard the same spellings reach it, so that the canary would have noticed.
    let open = egress(&["0.0.0.0/0", "::/0"], &[&["127.0.0.1"]]);
    for host in spellings(Ipv4Addr::LOCALHOST) {
        let url = Url::parse(&format!("http://{host}:{port}/"));
        if let (Ok(url), false) = (url, host.contains(':') && !host.contains("ffff:127")) {
            open.get(&url).await.ok();
        }
    }
    let reached = seen.load(Ordering::Relaxed);
    assert!(reached >= 24, "{reached} spellings reached the canary");
}
