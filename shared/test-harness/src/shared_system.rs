//! One system for the tests of one file: starting one takes seconds, and tests on projects of their own do not hurt
//! each other. A test that kills something starts a system of its own.

use std::ops::Deref;

use tokio::sync::OnceCell;

use crate::logs;
use crate::{SystemOptions, TestSystem};

/// A system that is started when the first test needs it, and stopped when the process of the tests ends.
pub struct SharedSystem {
    options: fn() -> SystemOptions,
    system: OnceCell<TestSystem>,
}

impl SharedSystem {
    /// To be kept in a `static`.
    pub const fn new(options: fn() -> SystemOptions) -> Self {
        Self { options, system: OnceCell::const_new() }
    }

    /// The system, which is running.
    ///
    /// # Panics
    /// Where it does not start.
    pub async fn get(&'static self) -> InUse {
        let start = || async { TestSystem::start((self.options)()).await };
        match self.system.get_or_try_init(start).await {
            Ok(system) => InUse(system),
            Err(error) => panic!("the system does not start: {error:#}"),
        }
    }
}

/// A shared system, in use by one test. Shows the logs where the test fails.
pub struct InUse(&'static TestSystem);

impl Deref for InUse {
    type Target = TestSystem;

    fn deref(&self) -> &TestSystem {
        self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if std::thread::panicking() {
            logs::print(&self.0.data_directory());
        }
    }
}
