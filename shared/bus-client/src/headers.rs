use async_nats::{HeaderMap, HeaderValue};

/// The headers of a message. Names are matched as they are written: `Content-Type` is not `content-type`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(HeaderMap);

impl Headers {
    pub(crate) fn new(headers: Option<HeaderMap>) -> Self {
        Self(headers.unwrap_or_default())
    }

    /// The value of the header; the first where there are several.
    pub fn get(&self, name: &str) -> Option<&str> {
        let values = self.0.get(name.parse::<async_nats::HeaderName>().ok()?)?;
        Some(values.as_str())
    }

    /// All values of the header.
    pub(crate) fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.0.get_all(name).map(HeaderValue::as_str)
    }
}

/// A header value out of any text: what could end the header early becomes a space.
pub(crate) fn header_value(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1024).collect()
}

/// A header map with these headers.
pub(crate) fn header_map<'a>(headers: impl IntoIterator<Item = (&'static str, &'a str)>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(name, header_value(value));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_value_cannot_start_another_header() {
        assert_eq!(header_value("upload\r\nNats-Rollup: all"), "upload  Nats-Rollup: all");
        let headers = Headers::new(Some(header_map([("Content-Type", "a\nb")])));
        assert_eq!(headers.get("Content-Type"), Some("a b"));
        assert_eq!(headers.get("content-type"), None);
    }
}
