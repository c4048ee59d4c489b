//! operation-engine
