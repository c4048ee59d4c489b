//! `account.*`: who may log in, and with what.

use std::sync::Arc;

use aws_lc_rs::digest;
use bus_client::{IncomingRequest, Reply};
use bus_messages::{AccountReply, ApiError, CreateAccount, CreateToken, SecretText, TokenReply};
use domain_model::AccountId;
use rand::RngCore;
use uuid::Uuid;

use super::{account, hub, named};
use crate::errors::from_database;
use crate::registry::Registry;

const DAY_S: u32 = 24 * 3600;

pub(super) async fn create(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    hub(&request)?;
    let create: CreateAccount = request.decode()?;
    named("name", &create.name)?;
    let id = AccountId::from(Uuid::new_v4());
    let account = registry.database.create_account(id, &create.name).await.map_err(from_database)?;
    Ok(request.reply(&AccountReply { account }))
}

pub(super) async fn create_token(
    registry: Arc<Registry>,
    request: IncomingRequest,
) -> Result<Reply, ApiError> {
    let id = account(&request)?;
    let create: CreateToken = request.decode()?;
    let ttl_s = create.ttl_s.unwrap_or(DAY_S);
    if !(1..=90 * DAY_S).contains(&ttl_s) {
        return Err(ApiError::invalid_argument(format!(
            "ttl_s is to be from 1 to {}, not {ttl_s}",
            90 * DAY_S
        )));
    }
    let mut secret = [0_u8; 32];
    rand::rng().fill_bytes(&mut secret);
    let token = format!("lht_{}", data_encoding::BASE64URL_NOPAD.encode(&secret));
    let kept = registry.database.keep_token(id, &token_digest(&token), ttl_s).await.map_err(from_database)?;
    if !kept {
        return Err(ApiError::not_found(format!("there is no account {id}")));
    }
    Ok(request.reply(&TokenReply { token: SecretText::new(token) }))
}

/// What is kept of a token.
pub(crate) fn token_digest(token: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, token.as_bytes()).as_ref().to_vec()
}
