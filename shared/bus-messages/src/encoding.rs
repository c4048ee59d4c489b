use serde::de::DeserializeOwned;
use serde::{Deserializer, Serialize};

/// How a body is written. JSON by default, so that `nats req` and `nats sub` are readable as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Encoding {
    /// `application/json`.
    #[default]
    Json,
    /// `application/msgpack`, with named fields.
    MessagePack,
}

/// How deep lists and objects lie in each other at most, in what is asked. Whatever is kept of it is read again in larger wholes: by
/// serde_json, which reads 127 levels.
const MOST_NESTING: usize = 64;

/// The same of what is answered, in MessagePack.
const MOST_NESTING_OF_MESSAGE_PACK: usize = 1024;

/// A body that cannot be read as what was expected.
#[derive(Debug, thiserror::Error)]
#[error("the body does not read as {encoding}: {message}")]
pub struct DecodeError {
    encoding: &'static str,
    message: String,
}

impl Encoding {
    /// The encoding that a `Content-Type` header names; JSON where there is none.
    pub fn from_content_type(content_type: Option<&str>) -> Result<Self, DecodeError> {
        match content_type.map(|value| value.split(';').next().unwrap_or_default().trim()) {
            None | Some("" | "application/json") => Ok(Self::Json),
            Some("application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack") => {
                Ok(Self::MessagePack)
            }
            Some(other) => Err(DecodeError {
                encoding: "application/json or application/msgpack",
                message: format!("its Content-Type is {:?}", other.chars().take(80).collect::<String>()),
            }),
        }
    }

    /// The value of the `Content-Type` header.
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::MessagePack => "application/msgpack",
        }
    }

    /// Whether a body is an object, with names: a list would be taken for its values in the order of the fields, which
    /// is no promise of the protocol.
    fn is_object(&self, body: &[u8]) -> bool {
        match self {
            Self::Json => body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{'),
            // fixmap, map 16, map 32.
            Self::MessagePack => matches!(body.first(), Some(0x80..=0x8f | 0xde | 0xdf)),
        }
    }

    /// Reads what somebody asks: as [`Encoding::decode`], but no more than 64 lists and objects in each other.
    pub fn decode_request<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, DecodeError> {
        if *self == Self::Json && nesting_of_json(body) > MOST_NESTING {
            let message = format!("more than {MOST_NESTING} lists and objects lie in each other");
            return Err(DecodeError { encoding: self.content_type(), message });
        }
        self.read(body, MOST_NESTING)
    }

    /// Reads a body, which is to be an object. An empty one reads as an object without fields.
    pub fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, DecodeError> {
        self.read(body, MOST_NESTING_OF_MESSAGE_PACK)
    }

    /// `most_nesting` is that of MessagePack; serde_json has its own.
    fn read<T: DeserializeOwned>(&self, body: &[u8], most_nesting: usize) -> Result<T, DecodeError> {
        let error = |message: String| DecodeError { encoding: self.content_type(), message };
        if body.is_empty() {
            return serde_json::from_slice(b"{}").map_err(|cause| error(cause.to_string()));
        }
        if !self.is_object(body) {
            return Err(error("it is no object with named fields".to_owned()));
        }
        match self {
            Self::Json => serde_json::from_slice(body).map_err(|cause| {
                let again = &mut serde_json::Deserializer::from_slice(body);
                error(place_and_cause::<T, _>(again, cause))
            }),
            Self::MessagePack => {
                let reader = || {
                    let mut reader = rmp_serde::Deserializer::new(std::io::Cursor::new(body));
                    reader.set_max_depth(most_nesting);
                    reader
                };
                let mut first = reader();
                let value = T::deserialize(&mut first)
                    .map_err(|cause| error(place_and_cause::<T, _>(&mut reader(), cause)))?;
                if first.get_ref().position() == body.len() as u64 {
                    Ok(value)
                } else {
                    Err(error("bytes follow the value".to_owned()))
                }
            }
        }
    }

    /// Writes a body.
    ///
    /// # Panics
    /// Never for the types of this crate: all of their maps have text keys, and no number is out of range.
    pub fn encode<T: Serialize + ?Sized>(&self, value: &T) -> Vec<u8> {
        match self {
            Self::Json => serde_json::to_vec(value).expect("messages have text keys only"),
            Self::MessagePack => rmp_serde::to_vec_named(value).expect("messages have text keys only"),
        }
    }
}

/// How deep lists and objects lie in each other, in a text that may be JSON.
fn nesting_of_json(body: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Why something does not read, after the path of the field in which it is. It is read once more for that, so that what
/// does read pays nothing for it.
pub(crate) fn place_and_cause<'de, T, D>(again: D, cause: D::Error) -> String
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
    D::Error: std::fmt::Display,
{
    match serde_path_to_error::deserialize::<D, T>(again) {
        Err(error) if error.path().iter().next().is_some() => format!("{}: {}", error.path(), error.inner()),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GetOperation, OperationReply};

    #[test]
    fn what_lies_too_deep_is_no_request() {
        fn nested(levels: usize) -> serde_json::Value {
            (0..levels).fold(serde_json::json!("]]]]\\\"{{{{"), |inside, _| serde_json::json!([inside]))
        }
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let read = |levels: usize| {
                let body = encoding.encode(&serde_json::json!({ "value": nested(levels) }));
                encoding.decode_request::<serde_json::Map<String, serde_json::Value>>(&body)
            };
            // The object is a level.
            assert_eq!(read(MOST_NESTING - 2).unwrap()["value"], nested(MOST_NESTING - 2));
            for levels in [MOST_NESTING, 200, 5000] {
                assert!(read(levels).is_err(), "{levels} levels in {encoding:?}");
            }
        }
        assert_eq!(nesting_of_json(br#"{"a":"[\"[","b":[{},[1,[2]]]}"#), 4);
    }

    #[test]
    fn both_encodings_refuse_unknown_fields_and_trailing_bytes() {
        let id = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let good = encoding.encode(&serde_json::json!({ "op_id": id }));
            assert_eq!(encoding.decode::<GetOperation>(&good).unwrap().op_id.to_string(), id);
            let list = encoding.encode(&serde_json::json!([id]));
            assert!(encoding.decode::<GetOperation>(&list).is_err(), "a list has no names");
            let unknown = encoding.encode(&serde_json::json!({ "op_id": id, "x": 1 }));
            assert!(encoding.decode::<GetOperation>(&unknown).is_err());
            let trailing = [good.as_slice(), b" 1"].concat();
            assert!(encoding.decode::<GetOperation>(&trailing).is_err());
            assert!(encoding.decode::<OperationReply>(b"").is_err());
        }
    }

    #[test]
    fn both_encodings_name_the_field_that_does_not_read() {
        let id = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let wrong = encoding.encode(&serde_json::json!({ "op_id": 7 }));
            let error = encoding.decode::<GetOperation>(&wrong).unwrap_err().to_string();
            assert!(error.contains(": op_id: invalid type: integer `7`"), "{error}");
            let fence = serde_json::json!({ "op_id": id, "attempt": "first", "lease_id": id });
            let wrong = encoding.encode(&serde_json::json!({ "worker_id": "w", "ops": [fence] }));
            let error = encoding.decode::<crate::ProgressRequest>(&wrong).unwrap_err().to_string();
            assert!(error.contains(": ops[0].attempt: "), "{error}");
        }
    }

    #[test]
    fn an_unknown_content_type_is_an_error() {
        assert_eq!(Encoding::from_content_type(None).unwrap(), Encoding::Json);
        assert_eq!(
            Encoding::from_content_type(Some("application/json; charset=utf-8")).unwrap(),
            Encoding::Json
        );
        assert!(Encoding::from_content_type(Some("text/xml")).is_err());
    }
}
