//! backup-repository
