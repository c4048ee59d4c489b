use bus_messages::{Account, BackupPolicy};
use domain_model::{AccountId, ProjectId};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::{During, despite_deadlocks};
use crate::{Database, DatabaseError};

/// What a token lets its holder do, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct AccountRights {
    /// Whose token it is.
    pub account_id: AccountId,
    /// The projects that it may use: its own, and those that it collaborates in.
    pub projects: Vec<ProjectId>,
}

struct Row {
    id: Uuid,
    name: String,
    backup_policy: Option<Value>,
    created_at: OffsetDateTime,
}

impl TryFrom<Row> for Account {
    type Error = DatabaseError;

    fn try_from(row: Row) -> Result<Self, DatabaseError> {
        Ok(Self {
            id: row.id.into(),
            name: row.name,
            inbox_prefix: format!("_INBOX_{}", row.id),
            backup_policy: row
                .backup_policy
                .map(serde_json::from_value)
                .transpose()
                .map_err(|error| DatabaseError::row("accounts.backup_policy", error))?,
            created_at: row.created_at.into(),
        })
    }
}

impl Database {
    /// Creates an account.
    pub async fn create_account(&self, id: AccountId, name: &str) -> Result<Account, DatabaseError> {
        let row = sqlx::query_as!(
            Row,
            "INSERT INTO accounts (id, name) VALUES ($1, $2) RETURNING id, name, backup_policy, created_at",
            id.as_uuid(),
            name
        )
        .fetch_one(&self.pool)
        .await
        .during("create an account")?;
        row.try_into()
    }

    /// Changes what is not `None`; the scheduler looks anew at the projects of an account whose policy has changed. `None`
    /// where there is no such account.
    pub async fn update_account(
        &self,
        id: AccountId,
        name: Option<&str>,
        policy: Option<&BackupPolicy>,
    ) -> Result<Option<Account>, DatabaseError> {
        let policy = policy.map(|policy| serde_json::to_value(policy).unwrap_or_default());
        // It locks all projects of the account, in any order.
        let update = || async {
            let updated = sqlx::query_as!(
                Row,
                "WITH looked_at_anew AS (
                    UPDATE projects SET backup_due_at = NULL WHERE account_id = $1 AND $3::jsonb IS NOT NULL)
                 UPDATE accounts SET name = coalesce($2, name), backup_policy = coalesce($3, backup_policy)
                 WHERE id = $1 RETURNING id, name, backup_policy, created_at",
                id.as_uuid(),
                name,
                policy.clone(),
            )
            .fetch_optional(&self.pool);
            updated.await.during("update an account")
        };
        let row = despite_deadlocks(update).await?;
        row.map(Account::try_from).transpose()
    }

    /// Keeps the digest of a token. `false` where there is no such account.
    pub async fn keep_token(
        &self,
        account: AccountId,
        token_sha256: &[u8],
        time_to_live_s: u32,
    ) -> Result<bool, DatabaseError> {
        let kept = sqlx::query!(
            "INSERT INTO account_tokens (token_sha256, account_id, expires_at)
             SELECT $1, id, now() + make_interval(secs => $3) FROM accounts WHERE id = $2",
            token_sha256,
            account.as_uuid(),
            f64::from(time_to_live_s)
        )
        .execute(&self.pool)
        .await
        .during("keep a token")?;
        Ok(kept.rows_affected() == 1)
    }

    /// What the holder of a token may do; `None` for a token that is unknown or over.
    pub async fn rights_of_token(&self, token_sha256: &[u8]) -> Result<Option<AccountRights>, DatabaseError> {
        let row = sqlx::query!(
            r#"SELECT account_id,
                ARRAY(SELECT id FROM projects WHERE projects.account_id = token.account_id
                      UNION SELECT project_id FROM project_collaborators AS c WHERE c.account_id = token.account_id)
                AS "projects!"
             FROM account_tokens AS token WHERE token_sha256 = $1 AND expires_at > now()"#,
            token_sha256
        )
        .fetch_optional(&self.pool)
        .await
        .during("look up a token")?;
        Ok(row.map(|row| AccountRights {
            account_id: row.account_id.into(),
            projects: row.projects.into_iter().map(ProjectId::from).collect(),
        }))
    }
}
