//! `account.*`: who may log in, and with what.

use std::sync::Arc;

use aws_lc_rs::digest;
use bus_client::{IncomingRequest, Reply};
use bus_messages::{
    AccountReply, ApiError, BackupPolicy, CreateAccount, CreateToken, ErrorCode, SecretText, TokenReply,
    UpdateAccount,
};
use domain_model::AccountId;
use rand::RngCore;
use uuid::Uuid;

use super::{Caller, account, hub, named};
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

/// Only an operator may: a policy decides how much an account uses.
pub(super) async fn update(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let id = account(&request)?;
    if Caller::of(&request)? != Caller::Operator {
        return Err(ApiError::new(ErrorCode::PermissionDenied, "only an operator changes an account"));
    }
    let update: UpdateAccount = request.decode()?;
    update.name.as_deref().map(|name| named("name", name)).transpose()?;
    update.backup_policy.as_ref().map(BackupPolicy::check).transpose()?;
    let (name, policy) = (update.name.as_deref(), update.backup_policy.as_ref());
    let account = registry.database.update_account(id, name, policy).await.map_err(from_database)?;
    let account = account.ok_or_else(|| ApiError::not_found(format!("there is no account {id}")))?;
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
