use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgPool};

use crate::DatabaseError;
use crate::error::During;

/// What holds for every connection. Every statement here is short: compiling one costs more than running it. Its plan is made
/// once, perhaps while a table has a page or two, and kept while that grows to a million rows: so never with a scan of the
/// whole table where an index will do. A registry that is paused, or whose machine is gone, in the middle of a transaction
/// keeps its locks from others for no longer than half a lease: the transaction is rolled back, and the registry learns of it.
const SETTINGS: [(&str, &str); 7] = [
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("idle_in_transaction_session_timeout", "15s"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "2"),
];

/// A connection that was in use so recently is believed to be there still.
const BELIEVED: Duration = Duration::from_millis(500);

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// A pool of connections to the catalog. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    pub(crate) pool: PgPool,
}

impl Database {
    /// Connects with at most `connections` connections; a caller waits up to 5 s for a free one.
    pub async fn connect(url: &SecretString, connections: u32) -> Result<Self, DatabaseError> {
        let options = PgConnectOptions::from_str(url.expose_secret()).map_err(DatabaseError::Url)?;
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(Duration::from_secs(5))
            // A question to each connection before each transaction is a round trip of its own: only those are asked
            // that have had time to be lost.
            .test_before_acquire(false)
            .before_acquire(|connection, found| {
                Box::pin(async move {
                    if found.idle_for >= BELIEVED {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_with(options.application_name("longhaul").options(SETTINGS))
            .await
            .during("connect to the database")?;
        Ok(Self { pool })
    }

    /// Brings the schema up to date. Under an advisory lock: several registries may start at once.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        MIGRATIONS.run(&self.pool).await.map_err(DatabaseError::Migration)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), DatabaseError> {
        sqlx::query!("SELECT 1 AS one").fetch_one(&self.pool).await.during("reach the database").map(drop)
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
