//! A service whose messages about an operation are read on their way, and that is killed at one of them.
//!
//! What the service sends at that moment never arrives: the step has failed. Or what is sent to it: then the step has had
//! its effect, and the next attempt takes it again.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use server_processes::{ManagedProcess, ProcessSpec, Signal, healthy, wait_until};
use test_harness::{TestSystem, wait_for};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(90);

/// A service of an installation that is started by the test, behind a proxy of its own.
pub(super) struct Interposed {
    spec: ProcessSpec,
    address_file: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    process: std::sync::Mutex<Option<Arc<ManagedProcess>>>,
    watched: Mutex<Option<Watched>>,
}

/// An operation, and the message at which the service is to be killed.
pub(super) struct Watched {
    /// Its id, as JSON and as MessagePack have it.
    marks: [Vec<u8>; 2],
    /// What it asked about the operation, by where the answer goes to.
    asked: HashMap<Vec<u8>, String>,
    at: Option<Moment>,
    is_hit: bool,
    messages: BTreeMap<String, usize>,
}

/// A message of this name, and the first of its name or which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    pub(super) name: String,
    pub(super) number: usize,
}

/// What passed, and whether the service was killed at it.
#[derive(Debug)]
pub(super) struct Seen {
    /// How many messages of each name.
    pub(super) messages: BTreeMap<String, usize>,
    pub(super) is_hit: bool,
}

impl Watched {
    /// To be killed at this moment, if it comes.
    pub(super) fn new(op_id: &str, at: Option<Moment>) -> Self {
        let id: Uuid = op_id.parse().unwrap();
        let marks = [id.to_string().into_bytes(), id.as_bytes().to_vec()];
        Self { marks, asked: HashMap::new(), at, is_hit: false, messages: BTreeMap::new() }
    }

    /// Whether a message may go on: all may but the one at which the service is killed.
    fn passes(&mut self, sender: Sender, frame: &Frame) -> bool {
        if self.is_hit {
            return true;
        }
        let names_it = self.marks.iter().any(|mark| contains(&frame.payload, mark));
        let name = match sender {
            Sender::Service if names_it && frame.subject.starts_with(b"work.v1.") => {
                let verb = frame.subject.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
                let verb = String::from_utf8_lossy(verb).into_owned();
                self.asked.extend(frame.reply.clone().map(|inbox| (inbox, verb.clone())));
                verb
            }
            Sender::Server => match self.asked.remove(&frame.subject) {
                Some(verb) => format!("answer to {verb}"),
                None if names_it && frame.subject.starts_with(b"_INBOX") => "lease".to_owned(),
                None => return true,
            },
            Sender::Service => return true,
        };
        let number = self.messages.entry(name.clone()).or_default();
        *number += 1;
        self.is_hit = self.at == Some(Moment { name, number: *number });
        !self.is_hit
    }
}

impl Interposed {
    /// Starts the service `name` of the installation with the settings that its launcher has written; the launcher's own
    /// is to have ended.
    pub(super) async fn start(system: &TestSystem, name: &str) -> anyhow::Result<Self> {
        let program = name.trim_end_matches(|last: char| last.is_ascii_digit()).trim_end_matches('-');
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let server = system.ready().nats_url;
        let server = server.strip_prefix("nats://").context("an address of nats-server")?.parse()?;
        let variables = format!("LONGHAUL_{}", program.replace('-', "_").to_uppercase());
        let config = system.data_directory().join("config");
        let address_file = config.join(format!("{name}.interposed"));
        let spec = ProcessSpec::new(name, system.program(program)?, system.data_directory().join("logs"))
            .argument("--config")
            .argument(config.join(format!("{name}.toml")))
            .current_directory(system.data_directory())
            .environment(format!("{variables}__HTTP__ADDRESS_FILE"), &address_file)
            .environment(format!("{variables}__NATS__URL"), format!("nats://{}", listener.local_addr()?));
        let shared = Arc::new(Shared { process: std::sync::Mutex::new(None), watched: Mutex::new(None) });
        tokio::spawn(accept(listener, server, Arc::clone(&shared)));
        let interposed = Self { spec, address_file, shared };
        interposed.launch().await?;
        Ok(interposed)
    }

    async fn launch(&self) -> anyhow::Result<()> {
        let _ = fs::remove_file(&self.address_file);
        let process = Arc::new(ManagedProcess::spawn(self.spec.clone()).await?);
        self.shared.set_process(Arc::clone(&process));
        let listens = || async { healthy(fs::read_to_string(&self.address_file)?.trim().parse()?).await };
        wait_until(&process, PATIENCE, listens).await
    }

    /// Nothing comes through until an operation is told: so it is watched from its first message on.
    pub(super) async fn hold(&self) -> MutexGuard<'_, Option<Watched>> {
        self.shared.watched.lock().await
    }

    /// Waits until `ended`, and starts the service again where it is killed, after something was done `meanwhile`.
    pub(super) async fn while_it_is_killed<T>(
        &self,
        ended: impl Future<Output = T>,
        meanwhile: impl FnOnce(),
    ) -> (T, Seen) {
        let process = self.shared.process().unwrap();
        let mut ended = pin!(ended);
        let early = tokio::select! {
            ended = &mut ended => Some(ended),
            _ = process.wait() => None,
        };
        if early.is_some() {
            self.all_is_answered().await;
        }
        let hit = self.hold().await.as_ref().is_some_and(|watched| watched.is_hit);
        assert!(hit || process.is_running(), "it has ended by itself: {}", process.log_tail());
        if hit {
            process.wait().await;
            meanwhile();
            self.launch().await.unwrap();
        }
        let ended = match early {
            Some(ended) => ended,
            None => ended.await,
        };
        let Watched { messages, is_hit, .. } = self.hold().await.take().unwrap();
        (ended, Seen { messages, is_hit })
    }

    /// Waits until nothing is under way about the operation, or the service was killed.
    async fn all_is_answered(&self) {
        let is_so = || async {
            let watched = self.hold().await;
            let waits = watched.as_ref().is_some_and(|watched| !watched.is_hit && !watched.asked.is_empty());
            if waits { Err("an answer is under way") } else { Ok(()) }
        };
        wait_for("all to be answered", PATIENCE, is_so).await;
    }
}

impl Drop for Interposed {
    fn drop(&mut self) {
        if let Some(process) = self.shared.process() {
            let _ = process.signal(Signal::KILL);
        }
    }
}

impl Shared {
    fn process(&self) -> Option<Arc<ManagedProcess>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_process(&self, process: Arc<ManagedProcess>) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, shared: Arc<Shared>) {
    while let Ok((service, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // A server that is not there refuses: so does the proxy, by closing.
            let Ok(server) = TcpStream::connect(server).await else { return };
            let (_, _) = (service.set_nodelay(true), server.set_nodelay(true));
            let (from_service, to_service) = service.into_split();
            let (from_server, to_server) = server.into_split();
            // Where the service is killed, neither side hears of the other any more.
            tokio::select! {
                _ = carry(Sender::Service, from_service, to_server, &shared) => {}
                _ = carry(Sender::Server, from_server, to_service, &shared) => {}
            }
        });
    }
}

async fn carry(
    sender: Sender,
    from: impl AsyncRead + Unpin,
    mut to: OwnedWriteHalf,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    while let Some(frame) = Frame::read(&mut from).await? {
        let mut watched = shared.watched.lock().await;
        if watched.as_mut().is_some_and(|watched| !watched.passes(sender, &frame)) {
            if let Some(process) = shared.process() {
                process.signal(Signal::KILL).unwrap();
            }
            return Ok(());
        }
        drop(watched);
        to.write_all(&frame.line).await?;
        to.write_all(&frame.payload).await?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Sender {
    Service,
    Server,
}

/// A piece of the client protocol of NATS: a line and, of a message, what belongs to it.
/// (<https://docs.nats.io/reference/reference-protocols/nats-protocol>)
#[derive(Debug, Default)]
struct Frame {
    line: Vec<u8>,
    subject: Vec<u8>,
    reply: Option<Vec<u8>>,
    payload: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Self>> {
        let mut frame = Self::default();
        if from.read_until(b'\n', &mut frame.line).await? == 0 {
            return Ok(None);
        }
        let words: Vec<&[u8]> =
            frame.line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
        let [b"PUB" | b"HPUB" | b"MSG" | b"HMSG", subject, .., length] = words[..] else {
            return Ok(Some(frame));
        };
        frame.subject = subject.to_vec();
        // With headers, their length comes before that of all.
        frame.reply = match words[..] {
            [b"PUB", _, reply, _] | [b"HPUB", _, reply, _, _] => Some(reply.to_vec()),
            _ => None,
        };
        let length: usize = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok()).unwrap();
        // What ends it belongs to it.
        frame.payload.resize(length + 2, 0);
        from.read_exact(&mut frame.payload).await?;
        Ok(Some(frame))
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn frames_are_read_as_they_are_written() {
    let text = b"PING\r\nPUB work.v1.hub.claim _INBOX.a.1 4\r\n1\r\n3\r\nHPUB a.b 3 5\r\n12345\r\n\
        HPUB a.b reply 3 5\r\n12345\r\nMSG _INBOX.a.1 7 2\r\nok\r\n";
    let mut from = &text[..];
    let (mut again, mut told) = (Vec::new(), Vec::new());
    while let Some(frame) = Frame::read(&mut from).await.unwrap() {
        again.extend([&frame.line[..], &frame.payload[..]].concat());
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        told.push((words(&frame.subject), frame.reply.as_deref().map(words), words(&frame.payload)));
    }
    let expected = [
        ("", None, ""),
        ("work.v1.hub.claim", Some("_INBOX.a.1"), "1\r\n3\r\n"),
        ("a.b", None, "12345\r\n"),
        ("a.b", Some("reply"), "12345\r\n"),
        ("_INBOX.a.1", None, "ok\r\n"),
    ];
    let expected = expected.map(|(subject, reply, payload): (&str, Option<&str>, &str)| {
        (subject.to_owned(), reply.map(str::to_owned), payload.to_owned())
    });
    assert_eq!(told, expected);
    assert_eq!(again, text);
}
