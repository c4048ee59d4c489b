//! One file a kind of operation.

mod project_copy;
mod test_sleep;

pub(crate) use project_copy::ProjectCopy;
pub(crate) use test_sleep::TestSleep;
