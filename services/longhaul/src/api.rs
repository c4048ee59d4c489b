//! The public API, as this command line asks it.

use std::time::Duration;

use bus_client::{Bus, RequestError};
use bus_messages::{
    CreateOperation, CreatedOperation, Encoding, ListOperations, ListRequest, Operation, OperationList,
};
use bus_subjects::ApiSubject;
use domain_model::Scope;
use serde::Serialize;
use serde::de::DeserializeOwned;

const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest page that a list gives.
const PAGE: u32 = 200;

/// A connection to the API.
pub(crate) struct Api {
    bus: Bus,
}

impl Api {
    /// The API on this connection.
    pub(crate) fn new(bus: Bus) -> Self {
        Self { bus }
    }

    /// The connection.
    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Asks `api.v1.<scope>.<noun>.<verb>`.
    pub(crate) async fn call<A: DeserializeOwned>(
        &self,
        scope: Scope,
        noun: &str,
        verb: &str,
        request: &impl Serialize,
    ) -> Result<A, RequestError> {
        let subject = ApiSubject::new(scope, noun, verb).to_string();
        self.bus.request(subject, request, Encoding::Json, TIMEOUT).await
    }

    /// Creates an operation.
    pub(crate) async fn create_operation(
        &self,
        scope: Scope,
        create: &CreateOperation,
    ) -> Result<CreatedOperation, RequestError> {
        self.call(scope, "lro", "create", create).await
    }

    /// Every item of a list, page after page, or the first `limit` of them.
    pub(crate) async fn list<A: DeserializeOwned, T>(
        &self,
        scope: Scope,
        noun: &str,
        limit: Option<u32>,
        page: impl Fn(A) -> (Vec<T>, Option<String>),
    ) -> Result<Vec<T>, RequestError> {
        let mut items = Vec::new();
        let mut cursor = None;
        loop {
            let Some(wanted) = page_size(limit, items.len()) else { return Ok(items) };
            let request = ListRequest { limit: Some(wanted), cursor };
            let (found, next) = page(self.call(scope, noun, "list", &request).await?);
            items.extend(found);
            match next {
                Some(next) => cursor = Some(next),
                None => return Ok(items),
            }
        }
    }

    /// The operations of a scope that `filter` asks for, newest first; all of them, or the first `limit`.
    pub(crate) async fn operations(
        &self,
        scope: Scope,
        filter: &ListOperations,
        limit: Option<u32>,
    ) -> Result<Vec<Operation>, RequestError> {
        let mut operations = Vec::new();
        let mut cursor = None;
        loop {
            let Some(wanted) = page_size(limit, operations.len()) else { return Ok(operations) };
            let request = ListOperations { limit: Some(wanted), cursor, ..filter.clone() };
            let page: OperationList = self.call(scope, "lro", "list", &request).await?;
            operations.extend(page.ops);
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(operations),
            }
        }
    }
}

/// How many to ask for next; `None` when there are enough.
fn page_size(limit: Option<u32>, have: usize) -> Option<u32> {
    match limit.map(|limit| (limit as usize).saturating_sub(have)) {
        None => Some(PAGE),
        Some(0) => None,
        Some(left) => Some(u32::try_from(left).unwrap_or(PAGE).min(PAGE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_asks_for_no_more_than_its_limit() {
        assert_eq!(page_size(None, 1000), Some(200));
        assert_eq!(
            [page_size(Some(5), 0), page_size(Some(5), 3), page_size(Some(5), 5)],
            [Some(5), Some(2), None]
        );
        assert_eq!(page_size(Some(1000), 0), Some(200));
    }
}
