/// What a caller can do about a [`DatabaseError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseErrorKind {
    /// A named constraint refused the change; see [`DatabaseError::constraint`].
    Constraint,
    /// The database cannot be reached or is overloaded: worth another try.
    Unavailable,
    /// A defect here, or a row that does not read.
    Internal,
}

/// A failed statement, with what it was for.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The statement failed.
    #[error("could not {operation}")]
    Statement {
        /// What it was for, as in "could not create an operation".
        operation: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A row holds what it should not.
    #[error("{what} in the database does not read: {message}")]
    Row {
        /// Which column.
        what: &'static str,
        /// Why.
        message: String,
    },
    /// The schema could not be brought up to date.
    #[error("could not migrate the database")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// The address of the database does not read.
    #[error("the database URL does not read")]
    Url(#[source] sqlx::Error),
}

impl DatabaseError {
    pub(crate) fn row(what: &'static str, message: impl std::fmt::Display) -> Self {
        Self::Row { what, message: message.to_string() }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> DatabaseErrorKind {
        let Self::Statement { source, .. } = self else { return DatabaseErrorKind::Internal };
        match source {
            sqlx::Error::Database(error) if error.constraint().is_some() => DatabaseErrorKind::Constraint,
            // Classes 08 connection, 40 rollback, 53 resources, 57 operator intervention: they pass.
            sqlx::Error::Database(error) => match error.code().as_deref().and_then(|code| code.get(..2)) {
                Some("08" | "40" | "53" | "57") => DatabaseErrorKind::Unavailable,
                _ => DatabaseErrorKind::Internal,
            },
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Tls(_) => DatabaseErrorKind::Unavailable,
            _ => DatabaseErrorKind::Internal,
        }
    }

    /// Whether it was given up because it and another one waited for each other.
    pub(crate) fn is_deadlock(&self) -> bool {
        match self {
            Self::Statement { source: sqlx::Error::Database(error), .. } => {
                error.code().as_deref() == Some("40P01")
            }
            _ => false,
        }
    }

    /// The constraint that refused the change.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Statement { source: sqlx::Error::Database(error), .. } => error.constraint(),
            _ => None,
        }
    }
}

/// Names what a statement was for, where it fails.
pub(crate) trait During<T> {
    fn during(self, operation: &'static str) -> Result<T, DatabaseError>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, operation: &'static str) -> Result<T, DatabaseError> {
        self.map_err(|source| DatabaseError::Statement { operation, source })
    }
}

/// Does a transaction again that was given up for another one that it had waited for, and that for it.
pub(crate) async fn despite_deadlocks<T, F>(mut transaction: impl FnMut() -> F) -> Result<T, DatabaseError>
where
    F: Future<Output = Result<T, DatabaseError>>,
{
    const MOST_TRIES: u32 = 5;
    for _ in 1..MOST_TRIES {
        match transaction().await {
            Err(error) if error.is_deadlock() => tracing::debug!("two transactions waited for each other"),
            other => return other,
        }
    }
    transaction().await
}
