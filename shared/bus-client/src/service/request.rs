use bus_messages::{ApiError, Encoding};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{CONTENT_TYPE, REQUEST_INFO};
use crate::Headers;

/// Who asks, as the server says: the header `Nats-Request-Info` that it sets where a request crosses accounts
/// (import with `share: true`), over anything that the client put there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RequestInfo {
    /// The NATS account of the client.
    #[serde(rename = "acc")]
    pub account: String,
    /// The user of the client; empty where the server does not tell.
    #[serde(default)]
    pub user: String,
}

/// A request, as a handler gets it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IncomingRequest {
    subject: String,
    headers: Headers,
    payload: Bytes,
    encoding: Encoding,
    request_info: Option<RequestInfo>,
}

/// The answer of a handler; make it with [`IncomingRequest::reply`].
#[derive(Debug, Clone)]
pub struct Reply {
    pub(super) encoding: Encoding,
    pub(super) payload: Bytes,
}

impl IncomingRequest {
    pub(super) fn new(subject: String, headers: Headers, payload: Bytes) -> Result<Self, ApiError> {
        let encoding = Encoding::from_content_type(headers.get(CONTENT_TYPE))
            .map_err(|error| ApiError::invalid_argument(format!("{error}; leave it out for JSON")))?;
        let request_info = read_request_info(&headers);
        Ok(Self { subject, headers, payload, encoding, request_info })
    }

    /// The subject of the request, every wildcard of the endpoint filled in.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// How the body is written, and so the answer.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Who asks. `None` for a client in the service's own account: that one may set the header at will, so
    /// that only what its credentials let it reach says anything about it.
    pub fn request_info(&self) -> Option<&RequestInfo> {
        self.request_info.as_ref()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// 400 with what is wrong, to be answered as it is.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        self.encoding.decode_request(&self.payload).map_err(ApiError::invalid_argument)
    }

    /// Answers with this value, in the encoding of the request.
    pub fn reply<T: Serialize + ?Sized>(&self, value: &T) -> Reply {
        Reply { encoding: self.encoding, payload: self.encoding.encode(value).into() }
    }
}

/// The header as the server sets it: exactly one. Several are somebody's attempt to confuse.
fn read_request_info(headers: &Headers) -> Option<RequestInfo> {
    let mut values = headers.all(REQUEST_INFO);
    let (value, more) = (values.next()?, values.next());
    if more.is_some() {
        return None;
    }
    serde_json::from_str(value).ok()
}
