//! bus-messages
