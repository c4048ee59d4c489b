//! host-backup
