//! One file a kind of operation.

mod test_sleep;

pub(crate) use test_sleep::TestSleep;
