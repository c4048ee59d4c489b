//! domain-model
