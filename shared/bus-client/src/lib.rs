//! bus-client
