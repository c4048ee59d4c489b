//! `longhaul account`.

use bus_messages::{AccountReply, CreateAccount, CreateToken, TokenReply};
use clap::Subcommand;
use domain_model::{AccountId, Scope};

use crate::connection::Connection;
use crate::output::Output;

/// Arguments of `longhaul account`.
#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Create an account.
    Create {
        /// Its name.
        #[arg(long)]
        name: String,
    },
    /// Make a token with which programs of an account log in. It is shown once.
    Token {
        /// The id of the account.
        account: AccountId,
        /// Seconds that it is valid; a day by default.
        #[arg(long, value_name = "SECONDS")]
        ttl_s: Option<u32>,
    },
}

pub(super) async fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let api = arguments.connection.connect().await?;
    match arguments.action {
        Action::Create { name } => {
            let reply: AccountReply =
                api.call(Scope::Hub, "account", "create", &CreateAccount { name }).await?;
            let account = &reply.account;
            let fields = [
                ("id", account.id.to_string()),
                ("name", account.name.clone()),
                ("inbox prefix", account.inbox_prefix.clone()),
                ("created", account.created_at.to_string()),
            ];
            output.one(account, &fields)
        }
        Action::Token { account, ttl_s } => {
            let scope = Scope::Account(account);
            let reply: TokenReply =
                api.call(scope, "account", "create_token", &CreateToken { ttl_s }).await?;
            if !output.json {
                eprintln!("shown once; use it with --token and --inbox-prefix _INBOX_{account}");
                return output.line(reply.token.expose());
            }
            output.object(&reply)
        }
    }
}
