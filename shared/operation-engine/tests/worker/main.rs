//! The worker against a stand-in for the registry, over a real nats-server.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../../bus-client/tests/support/mod.rs"]
mod support;

mod failures;
mod setting;
mod stand_in;
mod stopping;
mod telling;
