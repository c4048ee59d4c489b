//! Points at which a test can stop the code as a crash would.
//!
//! A crash between two steps is the case that an exchange exists for, and it cannot be arranged from outside. So
//! each step that changes something on disk reports here once it is done. In production nobody listens.

use std::fmt;
use std::sync::Arc;

use crate::VolumeError;

/// What is called after each step. An error ends the operation there and then, with nothing cleaned up.
pub(crate) type Listener = dyn Fn(&'static str) -> Result<(), VolumeError> + Send + Sync;

/// The listener of a host root, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Steps(Option<Arc<Listener>>);

impl Steps {
    #[cfg(test)]
    pub(crate) fn new(listener: Arc<Listener>) -> Self {
        Self(Some(listener))
    }

    /// Says that `step` is done.
    pub(crate) fn done(&self, step: &'static str) -> Result<(), VolumeError> {
        match &self.0 {
            Some(listener) => listener(step),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "Steps(listened to)" } else { "Steps" })
    }
}
