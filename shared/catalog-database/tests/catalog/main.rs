//! The catalog, against a real Postgres.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod backup_schedule;
mod operations;
mod plans;
mod retention;
mod support;
mod upkeep;
