use std::fmt;
use std::str::FromStr;

use crate::HostId;

/// Which workers may claim an operation: the hub's, one host's, or any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Routing {
    /// Workers of the control plane.
    Hub,
    /// Workers on one host.
    Host(HostId),
    /// Whoever serves the kind.
    Any,
}

/// A text that is no [`Routing`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a routing: use hub, any or host-<uuid>")]
pub struct RoutingError(String);

impl fmt::Display for Routing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub => formatter.write_str("hub"),
            Self::Host(id) => write!(formatter, "host-{id}"),
            Self::Any => formatter.write_str("any"),
        }
    }
}

impl FromStr for Routing {
    type Err = RoutingError;

    fn from_str(text: &str) -> Result<Self, RoutingError> {
        let error = || RoutingError(text.chars().take(80).collect());
        match text {
            "hub" => Ok(Self::Hub),
            "any" => Ok(Self::Any),
            _ => {
                let id = text.strip_prefix("host-").ok_or_else(error)?;
                id.parse().map(Self::Host).map_err(|_| error())
            }
        }
    }
}

crate::travels_as_text!(Routing, "routing", { "type": "string", "description": "hub, any or host-<uuid>" });
