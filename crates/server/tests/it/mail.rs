//! A small mail server, written from RFC 5321: takes every mail, or fails on demand.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A mail as it came.
#[derive(Debug, Clone)]
pub(crate) struct Mail {
    pub(crate) to: String,
    pub(crate) text: String,
}

/// A mail server; ends with the process.
pub(crate) struct MailServer {
    pub(crate) address: SocketAddr,
    mails: Arc<Mutex<Vec<Mail>>>,
    /// This many mails are answered "try later" first.
    busy: Arc<AtomicUsize>,
}

impl MailServer {
    pub(crate) fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into())
    }

    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            mails: Arc::default(),
            busy: Arc::default(),
        };
        let (mails, busy) = (Arc::clone(&server.mails), Arc::clone(&server.busy));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (mails, busy) = (Arc::clone(&mails), Arc::clone(&busy));
                // A client may close its connection at any time.
                std::thread::spawn(move || converse(stream, &mails, &busy).ok());
            }
        });
        server
    }

    pub(crate) fn refuse(&self, count: usize) {
        self.busy.store(count, Ordering::SeqCst);
    }

    pub(crate) fn mails(&self) -> Vec<Mail> {
        self.mails.lock().unwrap().clone()
    }
}

fn converse(
    stream: TcpStream,
    mails: &Mutex<Vec<Mail>>,
    busy: &AtomicUsize,
) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut say = |text: &str| writer.write_all(format!("{text}\r\n").as_bytes());
    say("220 test")?;
    let (mut to, mut line) = (String::new(), String::new());
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let command = line.trim_end().to_owned();
        match command.split([' ', ':']).next().unwrap_or_default() {
            "EHLO" | "HELO" | "MAIL" | "RSET" | "NOOP" => say("250 ok")?,
            "RCPT" => {
                to = command;
                say("250 ok")?;
            }
            "DATA" => {
                say("354 continue")?;
                let mut text = String::new();
                loop {
                    line.clear();
                    if reader.read_line(&mut line)? == 0 {
                        return Ok(());
                    }
                    if line == ".\r\n" {
                        break;
                    }
                    text.push_str(&line);
                }
                let refused = busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                });
                if refused.is_ok() {
                    say("451 try later")?;
                    continue;
                }
                mails.lock().unwrap().push(Mail {
                    to: to.clone(),
                    text,
                });
                say("250 taken")?;
            }
            "QUIT" => {
                say("221 bye")?;
                return Ok(());
            }
            _ => say("502 what")?,
        }
    }
}
