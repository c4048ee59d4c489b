//! server-processes
