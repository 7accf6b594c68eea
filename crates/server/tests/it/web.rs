//! A small HTTP server that stands for receivers and workers, written from the standard and not from our server.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

/// A request as it came.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// The server's reaction to a request.
pub(crate) enum Reply {
    /// Status, headers and body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The connection ends without a word.
    Reset,
    /// A body that never ends.
    Endless,
}

impl Reply {
    pub(crate) fn text(status: u16, body: &str) -> Self {
        Self::Answer(status, Vec::new(), body.as_bytes().to_vec())
    }
}

/// Serves on a loopback port until the test's process ends; the handler may take its time.
pub(crate) fn serve(handler: impl Fn(Request) -> Reply + Send + Sync + 'static) -> SocketAddr {
    serve_at((Ipv4Addr::LOCALHOST, 0), handler)
}

/// The same at this address.
pub(crate) fn serve_at(
    at: (Ipv4Addr, u16),
    handler: impl Fn(Request) -> Reply + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(at).unwrap();
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(handler);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let handler = Arc::clone(&handler);
            // A client that disconnects ends its thread.
            std::thread::spawn(move || converse(stream, &*handler).ok());
        }
    });
    address
}

pub(crate) fn converse(
    stream: TcpStream,
    handler: &dyn Fn(Request) -> Reply,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers
            .get("content-length")
            .and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body)?;
        let request = Request {
            method,
            path,
            headers,
            body,
        };
        match handler(request) {
            Reply::Reset => return Ok(()),
            Reply::Endless => {
                stream
                    .get_mut()
                    .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                loop {
                    stream.get_mut().write_all(b"400\r\n")?;
                    stream.get_mut().write_all(&[b'x'; 1024])?;
                    stream.get_mut().write_all(b"\r\n")?;
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            Reply::Answer(status, headers, body) => {
                let mut head = format!("HTTP/1.1 {status} X\r\n");
                if status != 304 {
                    head.push_str(&format!("content-length: {}\r\n", body.len()));
                }
                for (name, value) in headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                head.push_str("\r\n");
                stream.get_mut().write_all(head.as_bytes())?;
                stream.get_mut().write_all(&body)?;
            }
        }
    }
}
