//! bus-subjects
