//! catalog-database
