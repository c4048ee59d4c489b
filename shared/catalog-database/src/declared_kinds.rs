//! The table `declared_kinds`: kinds that services have told the registry of.

use bus_messages::kinds::KindDeclaration;
use domain_model::OperationKind;

use crate::error::During;
use crate::{Database, DatabaseError};

impl Database {
    /// Keeps the declaration of a kind, in place of the one before.
    pub async fn declare_kind(&self, declaration: &KindDeclaration) -> Result<(), DatabaseError> {
        let text = serde_json::json!(declaration);
        sqlx::query!(
            "INSERT INTO declared_kinds AS kept (name, declaration) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET declaration = excluded.declaration, declared_at = now()
             WHERE kept.declaration <> excluded.declaration",
            declaration.name.as_str(),
            text
        )
        .execute(&self.pool)
        .await
        .during("declare a kind")?;
        Ok(())
    }

    /// The declarations of all kinds; of one that does not read (it was written by a later version) the name alone.
    pub async fn declared_kinds(&self) -> Result<Vec<Result<KindDeclaration, OperationKind>>, DatabaseError> {
        let rows = sqlx::query!("SELECT name, declaration FROM declared_kinds ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .during("read the declared kinds")?;
        let read = rows.into_iter().filter_map(|row| match serde_json::from_value(row.declaration) {
            Ok(declaration) => Some(Ok(declaration)),
            Err(_) => row.name.parse().ok().map(Err),
        });
        Ok(read.collect())
    }
}
