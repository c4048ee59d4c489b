//! An S3 server in this process that goes wrong at the requests that it is told to: on the wire, so that everything above
//! it is what runs in production. Its listings come two entries a page.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(unreachable_pub, reason = "a module of tests")]

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use object_storage::{ConnectOptions, ObjectStore, ProviderSettings, RetryPolicy, S3Settings, TimeLimits};
use s3s::service::{S3Service, S3ServiceBuilder};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Put,
    Get,
    List,
    Delete,
}

/// Objects of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Pack,
    Index,
    Snapshot,
    Key,
    Config,
    Marker,
    Anything,
}

impl Of {
    /// How their keys go on below the root of the repository.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pack => "data/",
            Self::Index => "index/",
            Self::Snapshot => "snapshots/",
            Self::Key => "keys/",
            Self::Config => "config",
            Self::Marker => backup_repository::MARKER_NAME,
            Self::Anything => "",
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// This answers, and nothing happens.
    Answer(u16, &'static str),
    /// Nothing happens, and nobody answers.
    Silence,
    /// It happens, and nobody answers.
    SilenceAfterEffect,
    /// The connection ends before anything happens.
    Reset,
    /// It happens, and the connection ends before the answer.
    ResetAfterEffect,
    /// The connection ends in the middle of the answer.
    ResetInBody,
    /// Half of the object comes, as if it were all of it.
    CutInHalf,
    /// One bit of the object is another when it arrives.
    FlipBit,
    /// One bit of the body is another when the server has it.
    FlipBitOfUpload,
    /// The object comes, so slowly that nobody waits for its end.
    Drip,
    /// Says that it has deleted, and has not.
    PretendDeletion,
    /// The page lacks its first entry.
    OmitFirst,
}

/// At which of the requests that match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Nth(u32),
    First(u32),
    From(u32),
    Always,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub verb: Verb,
    pub of: Of,
    pub action: Action,
    pub when: When,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    matching: u32,
    met: u32,
}

pub struct FaultyS3 {
    endpoint: String,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl Drop for FaultyS3 {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl FaultyS3 {
    /// Serves the buckets in `directory`.
    pub async fn start(directory: &Path) -> Self {
        let service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory).unwrap()).build();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                let (service, state) = (service.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let answer =
                        service_fn(move |request| answer(service.clone(), Arc::clone(&state), request));
                    // A client that goes away, or is made to, is no error of the server.
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), answer)
                        .await;
                });
            }
        });
        Self { endpoint, state, accepting }
    }

    /// From now on this goes wrong, or nothing.
    pub fn set_fault(&self, fault: Option<Fault>) {
        *self.state.lock().unwrap() = State { fault, ..State::default() };
    }

    /// How many requests have met the fault.
    pub fn met(&self) -> u32 {
        self.state.lock().unwrap().met
    }

    /// Its bucket of this name, created if need be. Gives up soon, so that tests do not wait.
    pub async fn bucket(&self, name: &str) -> Arc<dyn ObjectStore> {
        let settings = ProviderSettings::S3(S3Settings {
            endpoint: Some(self.endpoint.clone()),
            region: "auto".into(),
            access_key_id: "test".into(),
            secret_access_key: "test".into(),
            session_token: None,
            path_style: true,
        });
        let options = ConnectOptions {
            retry: RetryPolicy {
                attempts: 4,
                base_delay: Duration::from_millis(1),
                maximum_delay: Duration::from_millis(5),
            },
            time_limits: TimeLimits { attempt: Duration::from_secs(2), ..TimeLimits::default() },
            ..ConnectOptions::default()
        };
        let buckets = settings.connect_with(options).unwrap();
        // It may be there already.
        let _ = buckets.create_bucket(name, None).await;
        buckets.open_bucket(name)
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

fn whole(body: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn error(status: u16, code: &str) -> Answer {
    let text = format!("<Error><Code>{code}</Code><Message>for the test</Message></Error>");
    Response::builder().status(status).body(whole(text.into())).unwrap()
}

/// The parts, one after another, and after each a pause.
fn parts(parts: Vec<io::Result<Bytes>>, pause: Duration) -> UnsyncBoxBody<Bytes, io::Error> {
    let frames = stream::iter(parts).then(move |part| async move {
        tokio::time::sleep(pause).await;
        part.map(Frame::data)
    });
    StreamBody::new(frames).boxed_unsync()
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// An error of the service makes the server close the connection.
async fn answer(
    service: S3Service,
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Answer, io::Error> {
    let (mut head, body) = request.into_parts();
    let mut body = body.collect().await.map_err(|_| reset())?.to_bytes();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let verb = if query.contains("list-type=2") {
        Verb::List
    } else if head.method == Method::POST && query.contains("delete") {
        Verb::Delete
    } else if head.method == Method::PUT {
        Verb::Put
    } else {
        Verb::Get
    };
    // The signature is of the request as it was; nobody here asks who somebody is.
    head.headers.remove("authorization");
    if verb == Verb::List {
        let uri = format!("{}&max-keys=2", head.uri);
        head.uri = uri.parse::<Uri>().unwrap();
    }
    // A listing names its prefix in the query, a deletion its keys in the body.
    let subject = match verb {
        Verb::List => query.replace("%2F", "/"),
        Verb::Delete => String::from_utf8_lossy(&body).into_owned(),
        // Whether something is there, is asked by HEAD; no fault concerns that.
        Verb::Put | Verb::Get if head.method == Method::HEAD => String::new(),
        Verb::Put | Verb::Get => head.uri.path().to_owned(),
    };
    let action = due(&mut state.lock().unwrap(), verb, &subject);
    match action {
        Some(Action::Answer(status, code)) => {
            return Ok(error(status, code));
        }
        Some(Action::Silence) => std::future::pending().await,
        Some(Action::Reset) => return Err(reset()),
        Some(Action::PretendDeletion) => {
            return Ok(Response::new(whole("<DeleteResult></DeleteResult>".into())));
        }
        Some(Action::FlipBitOfUpload) => body = flipped(&body),
        _ => {}
    }
    // As S3 does it, and the crate does not.
    if let Some(expected) = head.headers.get("x-amz-content-sha256").and_then(|hash| hash.to_str().ok())
        && expected.len() == 64
        && expected != HEXLOWER.encode(&Sha256::digest(&body))
    {
        return Ok(error(400, "XAmzContentSHA256Mismatch"));
    }
    let answered =
        service.call(Request::from_parts(head, s3s::Body::from(body))).await.map_err(|_| reset())?;
    let (mut head, body) = answered.into_parts();
    let body = BodyExt::collect(body).await.map_err(|_| reset())?.to_bytes();
    let half = body.len() / 2;
    let body = match action {
        Some(Action::SilenceAfterEffect) => std::future::pending().await,
        Some(Action::ResetAfterEffect) => return Err(reset()),
        Some(Action::ResetInBody) => parts(vec![Ok(body.slice(..half)), Err(reset())], Duration::ZERO),
        Some(Action::CutInHalf) => {
            head.headers.insert("content-length", half.into());
            whole(body.slice(..half))
        }
        Some(Action::FlipBit) => whole(flipped(&body)),
        Some(Action::Drip) => {
            let drops = body.chunks(body.len().div_ceil(20).max(1)).map(|drop| Ok(body.slice_ref(drop)));
            parts(drops.collect(), Duration::from_millis(500))
        }
        Some(Action::OmitFirst) => {
            let text = without_first(&String::from_utf8_lossy(&body));
            head.headers.remove("content-length");
            whole(text.into())
        }
        _ => whole(body),
    };
    Ok(Response::from_parts(head, body))
}

/// Counts a request, and tells whether it is one that goes wrong.
fn due(state: &mut State, verb: Verb, subject: &str) -> Option<Action> {
    let fault = state.fault.filter(|fault| {
        let of = fault.of.name();
        let concerns = if of.ends_with('/') { subject.contains(of) } else { subject.ends_with(of) };
        fault.verb == verb && !subject.is_empty() && concerns
    })?;
    state.matching += 1;
    let is_due = match fault.when {
        When::Nth(number) => state.matching == number,
        When::First(count) => state.matching <= count,
        When::From(number) => state.matching >= number,
        When::Always => true,
    };
    state.met += u32::from(is_due);
    is_due.then_some(fault.action)
}

fn flipped(body: &Bytes) -> Bytes {
    let mut bytes = body.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

/// A page of a listing without its first entry.
fn without_first(page: &str) -> String {
    let Some((before, rest)) = page.split_once("<Contents>") else { return page.to_owned() };
    let (_, after) = rest.split_once("</Contents>").unwrap();
    let page = format!("{before}{after}");
    let Some((before, rest)) = page.split_once("<KeyCount>") else { return page };
    let (count, after) = rest.split_once("</KeyCount>").unwrap();
    format!("{before}<KeyCount>{}</KeyCount>{after}", count.parse::<u32>().unwrap() - 1)
}
