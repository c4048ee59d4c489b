//! A NATS client of a few lines, which asks the server and believes nothing else: permission tests must not depend on what
//! a client library checks by itself.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use server_processes::Identity;

/// A connection that has logged in.
pub(crate) struct RawClient {
    stream: BufReader<TcpStream>,
    subscriptions: u32,
    delivered: VecDeque<Message>,
}

/// A message that was delivered.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) subject: String,
    pub(crate) reply: Option<String>,
    pub(crate) headers: String,
    pub(crate) payload: Vec<u8>,
}

enum Line {
    Pong,
    Refusal(String),
    Message(Message),
}

impl RawClient {
    /// Logs in with fields of the `CONNECT` message; the error is what the server said.
    pub(crate) fn log_in(port: u16, credentials: Value) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut client =
            Self { stream: BufReader::new(stream), subscriptions: 0, delivered: VecDeque::new() };
        let mut options = serde_json::json!({ "verbose": false, "headers": true, "no_responders": true, "lang": "raw", "version": "0" });
        options.as_object_mut().unwrap().extend(credentials.as_object().unwrap().clone());
        client.send(&format!("CONNECT {options}\r\n"), b"");
        match client.refusal() {
            None => Ok(client),
            Some(refusal) => Err(refusal),
        }
    }

    /// Logs in as one of the users of the configuration.
    pub(crate) fn log_in_as(port: u16, identity: &Identity) -> Result<Self, String> {
        Self::log_in(port, serde_json::json!({ "user": identity.user, "pass": identity.password }))
    }

    /// Subscribes, and tells whether the server allowed it.
    pub(crate) fn subscribe(&mut self, subject: &str) -> bool {
        self.subscriptions += 1;
        self.send(&format!("SUB {subject} {}\r\n", self.subscriptions), b"");
        self.refusal().is_none()
    }

    /// Publishes, and tells whether the server allowed it.
    pub(crate) fn publish(&mut self, subject: &str, reply: &str, payload: &[u8]) -> bool {
        self.send(&format!("PUB {subject} {reply} {}\r\n", payload.len()), payload);
        self.refusal().is_none()
    }

    /// Publishes with headers (`Name: value\r\n…`).
    pub(crate) fn publish_with_headers(
        &mut self,
        subject: &str,
        reply: &str,
        headers: &str,
        payload: &[u8],
    ) -> bool {
        let block = format!("NATS/1.0\r\n{headers}\r\n");
        let sizes = format!("{} {}", block.len(), block.len() + payload.len());
        self.send(&format!("HPUB {subject} {reply} {sizes}\r\n"), &[block.as_bytes(), payload].concat());
        self.refusal().is_none()
    }

    /// Asks, and returns the first answer.
    pub(crate) fn request(&mut self, subject: &str, inbox: &str, payload: &[u8]) -> Message {
        assert!(self.subscribe(inbox), "the inbox {inbox} is refused");
        self.send(&format!("PUB {subject} {inbox} {}\r\n", payload.len()), payload);
        self.next_message()
    }

    /// Waits for the next message.
    pub(crate) fn next_message(&mut self) -> Message {
        if let Some(message) = self.delivered.pop_front() {
            return message;
        }
        loop {
            match self.read().expect("a message") {
                Line::Message(message) => return message,
                Line::Refusal(refusal) => panic!("the server said {refusal}"),
                Line::Pong => {}
            }
        }
    }

    /// Whether the connection is still open and answers.
    pub(crate) fn is_open(&mut self) -> bool {
        self.refusal().is_none()
    }

    /// What the server has refused by now.
    fn refusal(&mut self) -> Option<String> {
        self.send("PING\r\n", b"");
        let mut refused = None;
        loop {
            match self.read() {
                Ok(Line::Pong) => return refused,
                Ok(Line::Refusal(refusal)) => refused = Some(refusal),
                Ok(Line::Message(message)) => self.delivered.push_back(message),
                Err(error) => return refused.or(Some(error)),
            }
        }
    }

    fn send(&mut self, line: &str, payload: &[u8]) {
        let ending: &[u8] = if payload.is_empty() && !line.starts_with("PUB") { b"" } else { b"\r\n" };
        // A server that has hung up says why in what there is to read.
        let _ = self.stream.get_mut().write_all(&[line.as_bytes(), payload, ending].concat());
    }

    fn read(&mut self) -> Result<Line, String> {
        loop {
            let mut line = String::new();
            match self.stream.read_line(&mut line) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.first().copied() {
                Some("PONG") => return Ok(Line::Pong),
                Some("PING") => self.send("PONG\r\n", b""),
                Some("-ERR") => return Ok(Line::Refusal(line.trim_end().to_owned())),
                Some(kind @ ("MSG" | "HMSG")) => return self.read_message(kind, &words).map(Line::Message),
                _ => {}
            }
        }
    }

    fn read_message(&mut self, kind: &str, words: &[&str]) -> Result<Message, String> {
        let sizes = if kind == "MSG" { 1 } else { 2 };
        let total: usize = words.last().and_then(|word| word.parse().ok()).ok_or("no size")?;
        let header_size =
            if kind == "MSG" { 0 } else { words[words.len() - 2].parse().map_err(|_| "no header size")? };
        let reply = (words.len() - sizes == 4).then(|| words[3].to_owned());
        let mut body = vec![0; total + 2];
        self.stream.read_exact(&mut body).map_err(|error| error.to_string())?;
        body.truncate(total);
        let payload = body.split_off(header_size);
        Ok(Message {
            subject: words[1].to_owned(),
            reply,
            headers: String::from_utf8_lossy(&body).into_owned(),
            payload,
        })
    }
}
