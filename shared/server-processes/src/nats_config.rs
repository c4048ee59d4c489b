//! The configuration of nats-server: the very files of `nats-config/`, and the values of one data directory.
//!
//! Tests that load another configuration than production prove nothing about who may do what. The files are part of the
//! program, and only the values of an installation (addresses, passwords, hosts) are filled in.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::secrets;

/// The declaration of the stream `LRO`, as the JetStream API takes it (`nats-config/streams/LRO.json`).
pub const LRO_STREAM_DECLARATION: &str = include_str!("../../../nats-config/streams/LRO.json");

const SERVER: &str = include_str!("../../../nats-config/server.conf");
const ACCOUNTS: &str = include_str!("../../../nats-config/accounts.conf");
const PERMISSIONS: &str = include_str!("../../../nats-config/permissions.conf");
const GENERATED: &str = include_str!("../../../nats-config/generated.conf.template");
const ONE_SERVER: &str = include_str!("../../../nats-config/cluster.conf");
const CLUSTER: &str = include_str!("../../../nats-config/cluster.conf.template");
const HOST_USER: &str = include_str!("../../../nats-config/host-user.conf.template");

/// One user of nats-server and its password.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The user's name.
    pub user: String,
    /// Its password.
    pub password: String,
    /// The one prefix that it may use for its inboxes: no dot at the end.
    pub inbox_prefix: String,
}

impl Identity {
    fn new(user: &str) -> Self {
        // What the command line uses when nothing else is said.
        let inbox_prefix = if user == "ops" { "_INBOX".to_owned() } else { format!("_INBOX_{user}") };
        Self { user: user.to_owned(), password: secrets::random_password(), inbox_prefix }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Everybody who may log in without the registry, and the key with which the registry lets the others in.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identities {
    /// Answers requests (account BUS).
    pub hub: Identity,
    /// Writes the stream (account BUS).
    pub hub_writer: Identity,
    /// The scheduler (account BUS).
    pub scheduler: Identity,
    /// Operators (account BUS).
    pub ops: Identity,
    /// Answers the server's questions about log-ins of the account APP (account AUTH).
    pub hub_auth: Identity,
    /// The server's own account.
    pub sys: Identity,
    /// One for each host, by host id (account BUS).
    pub hosts: BTreeMap<String, Identity>,
    /// Seed of the account key (`SA…`) that signs the users of the account APP: a secret of the registry.
    pub callout_seed: String,
    /// The public key of that seed (`A…`), which nats-server trusts.
    pub callout_issuer: String,
}

impl fmt::Debug for Identities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identities").field("hosts", &self.hosts.keys()).finish_non_exhaustive()
    }
}

impl Identities {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let issuer = nkeys::KeyPair::new_account();
        Ok(Self {
            hub: Identity::new("hub"),
            hub_writer: Identity::new("hub-writer"),
            scheduler: Identity::new("scheduler"),
            ops: Identity::new("ops"),
            hub_auth: Identity::new("hub-auth"),
            sys: Identity::new("sys"),
            hosts: BTreeMap::new(),
            callout_seed: issuer.seed().context("making the key that signs log-ins")?,
            callout_issuer: issuer.public_key(),
        })
    }

    /// Adds a host by its id; its identity stays as it is when it is there already.
    pub(crate) fn add_host(&mut self, host_id: &str) -> anyhow::Result<&Identity> {
        // The id becomes one token of subjects, and text of the configuration.
        if host_id.is_empty() || !host_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            bail!("{host_id:?} is no host id: letters, digits and hyphens");
        }
        let new = || Identity::new(&format!("host-{host_id}"));
        Ok(self.hosts.entry(host_id.to_owned()).or_insert_with(new))
    }
}

/// Where one nats-server listens.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) client_port: u16,
    pub(crate) monitoring_port: u16,
    /// For the other servers of a cluster.
    #[serde(default)]
    pub(crate) route_port: u16,
}

/// One server's place among its fellows.
#[derive(Clone)]
pub(crate) enum Membership {
    /// It is alone.
    Alone,
    /// It is one of a cluster.
    Member {
        /// From 1.
        number: usize,
        /// Where all of them, itself too, take routes.
        route_ports: Vec<u16>,
    },
}

impl Membership {
    /// Added to the names of what belongs to this server only.
    pub(crate) fn suffix(&self) -> String {
        match self {
            Self::Alone => String::new(),
            Self::Member { number, .. } => format!("-{number}"),
        }
    }
}

/// Writes all files of the configuration into `directory`; the messages are kept in it as well.
pub(crate) fn write_files(
    directory: &Path,
    addresses: Addresses,
    identities: &Identities,
    membership: &Membership,
) -> anyhow::Result<()> {
    let store = directory.to_str().with_context(|| format!("{} is not UTF-8", directory.display()))?;
    if store.contains(['"', '\\', '\n']) {
        bail!(
            "{} holds a character that cannot stand in the configuration of nats-server",
            directory.display()
        );
    }
    for (name, contents) in [
        ("permissions.conf", PERMISSIONS),
        ("generated.conf", &generated(store, addresses, identities, membership)?),
        ("cluster.conf", &cluster(addresses, identities, membership)?),
        ("accounts.conf", ACCOUNTS),
        ("server.conf", SERVER),
    ] {
        secrets::write_private(&directory.join(name), contents.as_bytes())?;
    }
    Ok(())
}

fn cluster(addresses: Addresses, identities: &Identities, membership: &Membership) -> anyhow::Result<String> {
    let Membership::Member { route_ports, .. } = membership else { return Ok(ONE_SERVER.to_owned()) };
    let password = &identities.sys.password;
    let routes: Vec<String> = route_ports
        .iter()
        .map(|port| format!("\"nats-route://route:{password}@127.0.0.1:{port}\""))
        .collect();
    fill(
        CLUSTER,
        &[
            ("{ROUTE_LISTEN}", &format!("127.0.0.1:{}", addresses.route_port)),
            ("{ROUTE_PASSWORD}", password),
            ("{ROUTES}", &routes.join("\n    ")),
        ],
    )
}

fn generated(
    store: &str,
    addresses: Addresses,
    identities: &Identities,
    membership: &Membership,
) -> anyhow::Result<String> {
    let inboxes: Vec<String> =
        identities.hosts.values().map(|host| format!("\"{}.>\"", host.inbox_prefix)).collect();
    let mut users = Vec::new();
    for (id, host) in &identities.hosts {
        users.push(fill(HOST_USER, &[("{HOST_ID}", id), ("{HOST_PASSWORD}", &host.password)])?);
    }
    fill(
        GENERATED,
        &[
            ("{SERVER_NAME}", &format!("longhaul{}", membership.suffix())),
            ("{LISTEN}", &format!("127.0.0.1:{}", addresses.client_port)),
            ("{MONITORING}", &format!("127.0.0.1:{}", addresses.monitoring_port)),
            ("{STORE_DIRECTORY}", store),
            ("{CALLOUT_ISSUER}", &identities.callout_issuer),
            ("{HUB_AUTH_PASSWORD}", &identities.hub_auth.password),
            ("{SYS_PASSWORD}", &identities.sys.password),
            ("{HUB_PASSWORD}", &identities.hub.password),
            ("{HUB_WRITER_PASSWORD}", &identities.hub_writer.password),
            ("{SCHEDULER_PASSWORD}", &identities.scheduler.password),
            ("{OPS_PASSWORD}", &identities.ops.password),
            ("{HOST_INBOXES}", &inboxes.join("\n        ")),
            ("{HOST_USERS}", &users.join("  ")),
        ],
    )
}

/// Fills in a template: each name must be in it.
fn fill(template: &str, values: &[(&str, &str)]) -> anyhow::Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values {
        if !text.contains(name) {
            bail!("the template has no {name}");
        }
        text = text.replace(name, value);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_template_is_filled_in() {
        let mut identities = Identities::new().unwrap();
        identities.add_host("11111111-1111-4111-8111-111111111111").unwrap();
        let addresses = Addresses { client_port: 1, monitoring_port: 2, route_port: 3 };
        let member = Membership::Member { number: 2, route_ports: vec![3, 4, 5] };
        let text = generated("/srv/nats", addresses, &identities, &member).unwrap()
            + &cluster(addresses, &identities, &member).unwrap();
        let unfilled =
            text.split('{').skip(1).find(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
        assert_eq!(unfilled, None);
    }

    #[test]
    fn a_host_id_that_could_change_the_configuration_is_refused() {
        let mut identities = Identities::new().unwrap();
        for bad in ["", "a.b", "*", ">", "a b", "a\"", "a\n"] {
            assert!(identities.add_host(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn passwords_are_not_printed() {
        let identities = Identities::new().unwrap();
        let printed = format!("{identities:?} {:?}", identities.hub);
        assert!(!printed.contains(&identities.hub.password) && !printed.contains(&identities.callout_seed));
    }
}
