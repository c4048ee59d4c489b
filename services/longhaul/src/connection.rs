//! Where to connect to, and as whom: from the command line, the environment, or what `longhaul up` wrote into its data
//! directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bus_client::{Bus, ConnectSettings, Credentials};
use secrecy::SecretString;

use crate::UsageError;
use crate::api::Api;
use crate::up::ReadyFile;

/// A server that does not answer within this is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to reach the system. Without any of these, the system that `longhaul up` runs on the default data directory.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Connection {
    /// Where nats-server is: nats://host:port.
    #[arg(long, global = true, value_name = "URL", env = "LONGHAUL_NATS_URL")]
    nats_url: Option<String>,
    /// The user to log in as.
    #[arg(long, global = true, value_name = "USER", env = "LONGHAUL_NATS_USER")]
    user: Option<String>,
    /// The password of that user.
    #[arg(
        long,
        global = true,
        value_name = "PASSWORD",
        env = "LONGHAUL_NATS_PASSWORD",
        hide_env_values = true
    )]
    password: Option<String>,
    /// A token of an account, instead of a user and a password.
    #[arg(long, global = true, value_name = "TOKEN", env = "LONGHAUL_NATS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// What the inboxes of these credentials start with: for a token `_INBOX_<account id>`.
    #[arg(long, global = true, value_name = "PREFIX", env = "LONGHAUL_NATS_INBOX_PREFIX")]
    inbox_prefix: Option<String>,
    /// The data directory of a running `longhaul up`, whose ready.json says how to connect.
    #[arg(long, global = true, value_name = "DIRECTORY", env = "LONGHAUL_DATA")]
    data_dir: Option<PathBuf>,
}

impl Connection {
    /// Connects.
    pub(crate) async fn connect(&self) -> anyhow::Result<Api> {
        connect(self.settings()?).await.map(Api::new)
    }

    fn settings(&self) -> anyhow::Result<ConnectSettings> {
        let running = match &self.nats_url {
            Some(_) => None,
            None => Some(self.running_system()?),
        };
        let credentials = self.credentials(running.as_ref())?;
        let inbox_prefix = match (&self.inbox_prefix, &credentials) {
            (Some(prefix), _) => Some(prefix.clone()),
            (None, Credentials::Token(_)) => {
                return Err(usage(
                    "a token needs --inbox-prefix, too: `account create` shows it as inbox_prefix",
                ));
            }
            (None, Credentials::UserPassword { .. }) => None,
        };
        let url = self.nats_url.clone().or(running.map(|running| running.servers())).unwrap_or_default();
        Ok(ConnectSettings { url, credentials, inbox_prefix, name: "longhaul".to_owned() })
    }

    fn credentials(&self, running: Option<&ReadyFile>) -> anyhow::Result<Credentials> {
        match (&self.token, &self.user, &self.password) {
            (Some(token), None, None) => Ok(Credentials::Token(SecretString::from(token.clone()))),
            (Some(_), _, _) => Err(usage("give either --token, or --user and --password")),
            (None, Some(user), Some(password)) => Ok(Credentials::UserPassword {
                user: user.clone(),
                password: SecretString::from(password.clone()),
            }),
            (None, None, None) => match running {
                Some(running) => Ok(Credentials::UserPassword {
                    user: running.credentials.ops.user.clone(),
                    password: SecretString::from(running.credentials.ops.password.clone()),
                }),
                None => Err(usage("with --nats-url give --user and --password, or --token")),
            },
            (None, _, _) => Err(usage("--user and --password go together")),
        }
    }

    fn running_system(&self) -> anyhow::Result<ReadyFile> {
        let directory = data_directory_or_default(self.data_dir.as_deref())?;
        let file = directory.join("ready.json");
        ReadyFile::read(&file).with_context(|| {
            format!(
                "no system is running on {}: start one with `longhaul up`, or give --nats-url or --data-dir",
                directory.display()
            )
        })
    }
}

/// Connects, with an error where no server answers in time.
pub(crate) async fn connect(settings: ConnectSettings) -> anyhow::Result<Bus> {
    let url = settings.url.clone();
    match tokio::time::timeout(PATIENCE, Bus::connect(settings)).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(anyhow!("no nats-server answers at {url} within {} s", PATIENCE.as_secs())),
    }
}

/// The directory that was given, or `longhaul` in the user's data directory.
pub(crate) fn data_directory_or_default(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let directory = match given {
        Some(directory) => directory.to_owned(),
        None => {
            let set =
                |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
            data.ok_or_else(|| usage("there is no home directory here: give --data-dir"))?.join("longhaul")
        }
    };
    std::path::absolute(&directory).with_context(|| format!("finding {}", directory.display()))
}

fn usage(message: &str) -> anyhow::Error {
    UsageError(message.to_owned()).into()
}
