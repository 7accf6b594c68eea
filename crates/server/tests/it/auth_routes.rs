//! Every route of every listener with every kind of credential, by every kind of request, over TLS.

use std::fmt::Write as _;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::client::{Client, read_answer};
use crate::process::{World, wait_until};
use crate::web::{Reply, serve};

/// Generated from the table of the binary, which a unit test compares with the routes.
const PAGE: &str = include_str!("../../../../docs/reference/scopes.md");

/// A running process uses a changed key file within this time.
const NOTICED: Duration = Duration::from_secs(10);

/// A scope that no route needs.
const UNRELATED: &str = "queue:unrelated:lease";

/// A route of the page.
struct Route {
    listener: &'static str,
    method: &'static str,
    path: String,
    /// The scope that a key needs for it.
    scope: Option<String>,
    without_key: &'static str,
}

fn routes() -> Vec<Route> {
    let mut routes = Vec::new();
    let mut listener = "";
    for line in PAGE.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            listener = title.split('`').nth(1).expect("a key of the configuration");
            // Another process, with routes of the same kinds.
            if title.contains("lines alone") {
                listener = "";
            }
        }
        let Some(row) = line.strip_prefix("| `") else {
            continue;
        };
        let columns: Vec<_> = row.split(" | ").collect();
        let (method, path) = columns[0].trim_matches('`').split_once(' ').unwrap();
        let name = if path.contains("{queue}") {
            "none"
        } else {
            "*"
        };
        let scope = columns[1].trim_matches('`').replace("NAME", name);
        routes.push(Route {
            listener,
            method,
            path: path
                .replace("{version}", "1")
                .replace("{id}", "00000000-0000-0000-0000-000000000000")
                .replace("{queue}", "none")
                .replace(['{', '}'], ""),
            scope: (scope != "none").then_some(scope),
            without_key: columns[2].trim_end_matches(" |"),
        });
    }
    routes
}

/// One kept-alive connection with TLS.
struct Connection {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    stream: Option<BufReader<StreamOwned<ClientConnection, TcpStream>>>,
}

impl Connection {
    /// A client that trusts this authority and shows this certificate.
    fn new(address: SocketAddr, folder: &Path, certificate: Option<&str>) -> Self {
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .ok();
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap();
        roots.add(authority).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let file = |kind: &str| folder.join(format!("{name}.{kind}"));
                let chain = vec![CertificateDer::from_pem_file(file("pem")).unwrap()];
                let secret = PrivateKeyDer::from_pem_file(file("key")).unwrap();
                builder.with_client_auth_cert(chain, secret).unwrap()
            }
        };
        Self {
            address,
            config: Arc::new(config),
            stream: None,
        }
    }

    /// The status of an answer; an error when the connection ends without one.
    fn status(
        &mut self,
        (method, path): (&str, &str),
        host: &str,
        headers: &[(&str, &str)],
    ) -> std::io::Result<u16> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            stream.set_nodelay(true)?;
            let name = "localhost".try_into().unwrap();
            let client = ClientConnection::new(Arc::clone(&self.config), name);
            let stream = StreamOwned::new(client.map_err(std::io::Error::other)?, stream);
            self.stream = Some(BufReader::new(stream));
        }
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        let stream = self.stream.as_mut().unwrap();
        let exchanged = stream
            .get_mut()
            .write_all(format!("{head}\r\n").as_bytes())
            .and_then(|()| read_answer(stream, false));
        let is_over = match &exchanged {
            Ok(answer) => answer
                .headers
                .get("connection")
                .is_some_and(|it| it == "close"),
            Err(_) => true,
        };
        if is_over {
            self.stream = None;
        }
        exchanged.map(|answer| answer.status)
    }
}

/// How a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Own,
    ForeignPage,
    ForeignHost,
    Forwarded,
}

const ORIGINS: [Origin; 4] = [
    Origin::Own,
    Origin::ForeignPage,
    Origin::ForeignHost,
    Origin::Forwarded,
];

/// Credentials of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credential {
    None,
    /// Of another system.
    Foreign,
    /// A key with another secret, one that expired, a JWT that expired.
    Invalid,
    /// A key, JWT or certificate with another scope.
    Unscoped,
    /// A key or JWT with the scope of the route.
    Scoped,
    /// A certificate whose key has every scope.
    Certificate,
    /// A certificate whose key has another scope.
    UnscopedCertificate,
    /// A certificate without a key.
    UnknownCertificate,
}

/// The statuses with which a request is refused; none when it reaches its route.
fn expected(route: &Route, credential: Credential, origin: Origin, mode: &str) -> &'static [u16] {
    let is_safe = route.method == "GET";
    let is_admin = route.listener == "server.admin";
    if origin == Origin::ForeignHost {
        return &[421];
    }
    let is_refused_page = match is_admin {
        true => route.path.starts_with("/v1/"),
        false => !is_safe,
    };
    if origin == Origin::ForeignPage && is_refused_page {
        return &[403];
    }
    let credential = match (credential, origin) {
        // A browser shows it whichever page asks.
        (Credential::Certificate | Credential::UnscopedCertificate, Origin::ForeignPage) => {
            Credential::None
        }
        (other, _) => other,
    };
    let is_here = origin == Origin::Own;
    match (credential, route.without_key) {
        (_, "any client, in every mode") => &[],
        (Credential::Scoped | Credential::Certificate, _) => &[],
        (Credential::Invalid, _) => &[401],
        (Credential::Unscoped | Credential::UnscopedCertificate, _) => &[403],
        (_, "any client") if mode == "auto" => &[],
        (_, "programs of this machine") if mode == "auto" && is_here => &[],
        (_, "any client" | "programs of this machine" | "refused, in every mode") => &[401],
        (_, "the app's own keys") if route.listener == "fleet.worker.listen" && is_here => &[],
        (_, "the app's own keys") => &[401, 403],
        (_, other) => panic!("an unknown kind of route: {other}"),
    }
}

/// Signs tokens as the identity provider.
struct Provider(Ed25519KeyPair);

impl Provider {
    fn jwks(&self) -> String {
        let public = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
        let key = serde_json::json!({"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": public});
        serde_json::json!({ "keys": [key] }).to_string()
    }

    fn token(&self, scope: &str, seconds: i64) -> String {
        let claims = serde_json::json!({
            "iss": "https://id.example/", "aud": "towpath", "sub": "test", "scope": scope,
            "exp": jiff::Timestamp::now().as_second() + seconds,
        });
        let parts = [
            r#"{"alg":"EdDSA","kid":"1"}"#.to_owned(),
            claims.to_string(),
        ];
        let signed = parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

fn check(mode: &str) {
    let provider = Arc::new(Provider(Ed25519KeyPair::generate().unwrap()));
    let published = provider.jwks();
    let jwks = serve(move |_| Reply::text(200, &published));
    let mut world = World::new();
    let folder = world.folder.clone();
    towpath_testkit::certificates::make(&folder);
    for name in ["admin", "unscoped", "unknown"] {
        towpath_testkit::certificates::client(&folder, name);
    }
    world
        .set("TOWPATH_SERVER__AUTH", mode)
        .set("TOWPATH_SERVER__TLS__CERTIFICATE", "server.pem")
        .set("TOWPATH_SERVER__TLS__KEY", "server.key")
        .set("TOWPATH_SERVER__TLS__CLIENT_CA", "ca.pem")
        .set("TOWPATH_SERVER__TLS__ADMIN", "on")
        .set("TOWPATH_SERVER__JWT__JWKS", format!("http://{jwks}/"))
        .set("TOWPATH_SERVER__JWT__ISSUER", "https://id.example/")
        .set("TOWPATH_SERVER__JWT__AUDIENCE", "towpath");
    let _running = world.up();

    let routes = routes();
    let new_key = |scope: &str, more: &[&str]| {
        let arguments = ["key", "new", "test", "--scope", scope];
        let key = world.json(&[&arguments[..], more].concat());
        key["key"].as_str().unwrap_or_default().to_owned()
    };
    let mut scopes: Vec<_> = routes.iter().filter_map(|it| it.scope.clone()).collect();
    scopes.sort();
    scopes.dedup();
    let scoped: Vec<_> = scopes
        .iter()
        .map(|scope| (scope, new_key(scope, &[])))
        .collect();
    new_key("admin", &["--certificate", "admin.test"]);
    new_key(UNRELATED, &["--certificate", "unscoped.test"]);
    let expired = new_key("admin", &["--expires", "1ms"]);
    let unscoped = new_key(UNRELATED, &[]);
    let wrong = format!("{}x", scoped[0].1);
    let expired_token = provider.token("admin", -60);
    let unscoped_token = provider.token(UNRELATED, 600);

    let listeners = [
        ("server.listen", world.http),
        ("orders.dashboard.listen", world.dashboard),
        ("fleet.controller.listen", world.controller),
        ("fleet.worker.listen", world.hits),
        ("server.admin", world.admin),
    ];
    let mut failures = Vec::new();
    let mut count = 0;
    for (listener, address) in listeners {
        let connect = |certificate| Connection::new(address, &folder, certificate);
        let mut plain = connect(None);
        let mut certified = ["admin", "unscoped", "unknown"].map(|name| connect(Some(name)));
        let host = format!("localhost:{}", address.port());
        // The key that was made last, and a token.
        wait_until("the keys", NOTICED, || {
            let admin = provider.token("admin", 600);
            let mut status = |key: &str| {
                let headers = [("x-api-key", key), ("x-forwarded-for", "192.0.2.7")];
                plain
                    .status(("GET", "/inventory"), &host, &headers)
                    .unwrap()
            };
            listener != "server.listen" || status(&unscoped) == 403 && status(&admin) == 200
        });
        for route in routes.iter().filter(|route| route.listener == listener) {
            let key = scoped
                .iter()
                .find(|(scope, _)| Some(*scope) == route.scope.as_ref());
            let key = key.map(|(_, key)| key.as_str()).unwrap_or(&unscoped);
            let token = provider.token(route.scope.as_deref().unwrap_or(UNRELATED), 600);
            let sent = [
                (Credential::None, ""),
                (Credential::Foreign, "another"),
                (Credential::Invalid, wrong.as_str()),
                (Credential::Invalid, &expired),
                (Credential::Invalid, &expired_token),
                (Credential::Unscoped, &unscoped),
                (Credential::Unscoped, &unscoped_token),
                (Credential::Scoped, key),
                (Credential::Scoped, &token),
            ];
            let shown = [
                Credential::Certificate,
                Credential::UnscopedCertificate,
                Credential::UnknownCertificate,
            ];
            for origin in ORIGINS {
                let mut see = |connection: &mut Connection, credential, sent: &str| {
                    let mut headers = Vec::new();
                    if !sent.is_empty() {
                        headers.push(("x-api-key", sent));
                    }
                    let own = format!("https://{host}");
                    match origin {
                        // The admin listener has no pages of its own.
                        Origin::Own if listener == "server.admin" => {}
                        Origin::Own => headers.push(("origin", own.as_str())),
                        Origin::ForeignPage => headers.push(("origin", "https://evil.example")),
                        Origin::Forwarded => headers.push(("x-forwarded-for", "192.0.2.7")),
                        Origin::ForeignHost => {}
                    }
                    let host = match origin {
                        Origin::ForeignHost => "evil.example",
                        _ => host.as_str(),
                    };
                    let asked = (route.method, route.path.as_str());
                    let status = connection.status(asked, host, &headers).unwrap();
                    let expected = expected(route, credential, origin, mode);
                    let is_right = match expected.is_empty() {
                        // It is off, which its app answers with 403.
                        true if route.path == "/api/test/crash" => status == 403,
                        true => ![401, 403, 405, 421].contains(&status),
                        false => expected.contains(&status),
                    };
                    count += 1;
                    if !is_right {
                        failures.push(format!(
                            "{listener} {asked:?} {credential:?} {origin:?}: {status}, not {expected:?}"
                        ));
                    }
                };
                for (credential, sent) in sent {
                    see(&mut plain, credential, sent);
                }
                for (connection, credential) in certified.iter_mut().zip(shown) {
                    see(connection, credential, "");
                }
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {count}:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(count > 4_000, "{count}");
}

#[test]
fn routes_admit_their_credentials_with_auto() {
    check("auto");
}

#[test]
fn routes_admit_their_credentials_with_on() {
    check("on");
}

#[test]
fn client_certificates_are_verified_and_take_the_place_of_a_key() {
    let mut world = World::new();
    let folder = world.folder.clone();
    towpath_testkit::certificates::make(&folder);
    towpath_testkit::certificates::client(&folder, "shop");
    let other = folder.join("other");
    std::fs::create_dir(&other).unwrap();
    towpath_testkit::certificates::make(&other);
    towpath_testkit::certificates::client(&other, "shop");
    std::fs::copy(folder.join("ca.pem"), other.join("ca.pem")).unwrap();
    world
        .set("TOWPATH_SERVER__AUTH", "on")
        .set("TOWPATH_SERVER__TLS__CERTIFICATE", "server.pem")
        .set("TOWPATH_SERVER__TLS__KEY", "server.key")
        .set("TOWPATH_SERVER__TLS__CLIENT_CA", "ca.pem");
    let _running = world.up();
    let named = ["--scope", "users:read", "--certificate", "shop.test"];
    let key = world.json(&[&["key", "new", "shop"][..], &named].concat());
    assert_eq!(key["certificate"], "shop.test", "{key}");
    assert!(key.get("key").is_none(), "{key}");
    let id = key["id"].as_str().unwrap();

    let ask = |folder: &Path, certificate| {
        let mut connection = Connection::new(world.http, folder, certificate);
        connection.status(("GET", "/api/users"), "localhost", &[])
    };
    wait_until("the key to be known", NOTICED, || {
        ask(&folder, Some("shop")).unwrap() == 200
    });
    assert_eq!(ask(&folder, None).unwrap(), 401);
    assert!(ask(&other, Some("shop")).is_err(), "another authority");
    let mut shop = Connection::new(world.http, &folder, Some("shop"));
    let missing = shop.status(("POST", "/enqueue"), "localhost", &[]);
    assert_eq!(missing.unwrap(), 403);

    let again = world.run(&[&["key", "new", "again"][..], &named].concat());
    let error = String::from_utf8(again.stderr).unwrap();
    assert!(error.contains("has this certificate"), "{error}");
    let rotated = world.run(&["key", "rotate", id]);
    let error = String::from_utf8(rotated.stderr).unwrap();
    assert!(error.contains("has no secret"), "{error}");
    // Certificates prove nothing without TLS, whatever their names are.
    let mut local = Client::new(world.admin);
    let status = local.send("GET", "/v1/kv", &[], b"").unwrap().status;
    assert_eq!(status, 401);

    world.ok(&["key", "revoke", id]);
    wait_until("the key to be refused", NOTICED, || {
        shop.status(("GET", "/api/users"), "localhost", &[])
            .unwrap()
            == 401
    });
}
