//! `longhaul db`: the HTTP admin API of a database-backup beside some application's database.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Subcommand;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use crate::UsageError;
use crate::output::{Output, or_dash};

/// A service that does not take a connection within this is not there.
const PATIENCE_TO_CONNECT: Duration = Duration::from_secs(10);

/// The service answers within half a minute, if only with an operation to wait for.
const PATIENCE_FOR_AN_ANSWER: Duration = Duration::from_secs(120);

/// How often an operation is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// Arguments of `longhaul db`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Where the admin API is: http://host:port, or https://host where a proxy has a certificate for it.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "LONGHAUL_DATABASE_BACKUP_URL",
        default_value = "http://127.0.0.1:8786"
    )]
    url: String,
    /// Its token.
    #[arg(long, global = true, value_name = "TOKEN", env = "BACKUP_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<SecretString>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Back the database up now, and wait for it.
    Backup,
    /// List the backups, newest first.
    List,
    /// Restore a backup, and wait for it. The application must not run.
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Restore {
        /// The backup.
        #[arg(group = "which")]
        id: Option<String>,
        /// The newest backup.
        #[arg(long, group = "which")]
        latest: bool,
        /// What was there before the last restore.
        #[arg(long, group = "which")]
        rollback: bool,
    },
    /// How the service is, and what became of operations.
    Status,
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = AdminApi::new(&arguments.url, arguments.token)?;
    match arguments.action {
        Action::Backup => {
            let taken = api.operate("/api/admin/backup", &json!({}), "backup").await?;
            let fields = [
                ("backup", text(&taken["backupId"])),
                ("size", text(&taken["size"])),
                ("sha256", text(&taken["sha256"])),
            ];
            output.one(&taken, &fields)
        }
        Action::List => {
            output.list(&api.backups().await?, ["id", "type", "status", "timestamp", "size"], |backup| {
                ["id", "type", "status", "timestamp", "size"].map(|field| text(&backup[field]))
            })
        }
        Action::Restore { id, rollback, .. } => {
            let request = match (id, rollback) {
                (Some(id), _) => json!({ "backupId": id }),
                (None, true) => json!({ "rollback": true }),
                (None, false) => {
                    let backups = api.backups().await?;
                    let newest = backups.first().context("there is no backup")?;
                    json!({ "backupId": newest["id"] })
                }
            };
            let restored = api.operate("/api/admin/restore", &request, "restore").await?;
            let fields = [
                ("backup", text(&restored["backupId"])),
                ("bytes", text(&restored["bytes"])),
                ("rollback copy", text(&restored["rollbackCopy"])),
            ];
            output.one(&restored, &fields)
        }
        Action::Status => {
            let health = api.ask("GET", "/api/health", None).await?.1;
            let newest = health["operations"].as_array().and_then(|operations| operations.first());
            let fields = [
                ("status", text(&health["status"])),
                ("last backup", text(&health["lastBackup"])),
                ("waiting uploads", text(&health["pendingUploads"])),
                (
                    "last operation",
                    newest.map_or_else(
                        || "-".to_owned(),
                        |operation| format!("{} {}", text(&operation["kind"]), text(&operation["state"])),
                    ),
                ),
            ];
            output.one(&health, &fields)
        }
    }
}

/// A value as a person reads it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => or_dash::<String>(None),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The admin API of one service.
struct AdminApi {
    authority: String,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    token: SecretString,
}

impl AdminApi {
    fn new(url: &str, token: Option<SecretString>) -> anyhow::Result<Self> {
        let wrong = || UsageError(format!("{url:?}: give --url http://host:port or https://host:port"));
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(tls()?),
            _ => return Err(wrong().into()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.filter(|_| matches!(uri.path(), "" | "/") && uri.query().is_none());
        let authority = authority.ok_or_else(wrong)?;
        let port = authority.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let token = token
            .ok_or_else(|| UsageError("give the admin token: --token, or BACKUP_ADMIN_TOKEN".to_owned()))?;
        Ok(Self { authority: authority.to_string(), host, port, tls, token })
    }

    async fn backups(&self) -> anyhow::Result<Vec<Value>> {
        let (_, mut answer) = self.ask("GET", "/api/admin/backups", None).await?;
        match answer["backups"].take() {
            Value::Array(backups) => Ok(backups),
            _ => bail!("the answer has no backups"),
        }
    }

    /// Begins an operation, and waits for its end.
    async fn operate(&self, path: &str, request: &Value, kind: &str) -> anyhow::Result<Value> {
        let (status, answer) = self.ask("POST", path, Some(request)).await?;
        if status != 202 {
            return Ok(answer);
        }
        let op = &answer["op"];
        loop {
            tokio::time::sleep(LOOK).await;
            let (_, mut health) = self.ask("GET", "/api/health", None).await?;
            let operations = health["operations"].as_array_mut().context("the answer has no operations")?;
            let operation = operations.iter_mut().find(|operation| operation["op"] == *op);
            let operation = operation
                .with_context(|| format!("the service does not know operation {} any more", text(op)))?;
            match operation["state"].as_str() {
                Some("running") => {}
                Some("succeeded") => return Ok(operation["outcome"][kind].take()),
                _ => return Err(refusal(&operation["error"])),
            }
        }
    }

    async fn connect(&self) -> anyhow::Result<Box<dyn Connection>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.host.clone())?;
        Ok(Box::new(tls.connect(name, stream).await?))
    }

    /// One request; what is refused is an error.
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", &self.authority)
            .header("Authorization", format!("Bearer {}", self.token.expose_secret()))
            .body(Full::new(body))
            .map_err(|_| UsageError("the token, or the URL, cannot be part of a request".to_owned()))?;
        let answer = async {
            let stream = tokio::time::timeout(PATIENCE_TO_CONNECT, self.connect()).await??;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let answer = sender.send_request(request).await?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await?.to_bytes();
            connection.abort();
            anyhow::Ok((status, body))
        };
        let (status, body) = tokio::time::timeout(PATIENCE_FOR_AN_ANSWER, answer)
            .await
            .map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| format!("asking database-backup at {}", self.authority))?;
        let value: Value = serde_json::from_slice(&body).with_context(|| {
            format!("{} answers {status} and no JSON: is it a database-backup?", self.authority)
        })?;
        if status >= 400 {
            return Err(refusal(&value["error"]));
        }
        Ok((status, value))
    }
}

/// A connection, encrypted or not.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Trusts whom this machine trusts, or the certificates in the file that `SSL_CERT_FILE` names.
fn tls() -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    let (trusted, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if trusted == 0 {
        bail!(
            "this machine trusts nobody: install ca-certificates, or name a file of certificates in SSL_CERT_FILE"
        );
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn refusal(error: &Value) -> anyhow::Error {
    anyhow!("{} ({})", text(&error["message"]), text(&error["code"]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use super::*;

    #[test]
    fn a_url_must_be_one_of_a_host_and_there_must_be_a_token() {
        let token = || Some(SecretString::from("x"));
        for (url, port) in [("http://127.0.0.1:8786/", 8786), ("http://a", 80), ("http://[::1]:9", 9)] {
            assert_eq!(AdminApi::new(url, token()).unwrap().port, port);
        }
        for url in ["ftp://a:1", "127.0.0.1:8786", "http://", "http://a/b", "http://a?b", "http://user@a"] {
            assert!(AdminApi::new(url, token()).is_err(), "{url}");
        }
        assert!(AdminApi::new("http://127.0.0.1:8786", None).is_err());
    }
}
