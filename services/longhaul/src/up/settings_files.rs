//! The settings of each service of an installation, as TOML.
//!
//! Only what differs from the services' own defaults is written. The files hold passwords and keys.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;
use domain_model::HostId;
use server_processes::{Identities, Identity};

use super::Replicas;
use super::installation::Installation;
use super::ready_file::ReadyObjectStore;

/// What the settings of the services are made of.
pub(super) struct Settings<'a> {
    pub(super) data_directory: &'a Path,
    pub(super) installation: &'a Installation,
    pub(super) identities: &'a Identities,
    /// All servers, with commas between them.
    pub(super) nats_url: &'a str,
    pub(super) replicas: Replicas,
    pub(super) database_url: &'a str,
    pub(super) object_store: &'a ReadyObjectStore,
}

impl Settings<'_> {
    /// Those of the registry.
    pub(super) fn registry(&self) -> String {
        let mut text = String::new();
        self.nats(&mut text, "nats", &self.identities.hub);
        self.nats(&mut text, "nats_writer", &self.identities.hub_writer);
        if self.replicas == Replicas::Three {
            text.push_str("\n[stream]\nreplicas = 3\n");
        }
        section(&mut text, "database", &[("url", self.database_url)]);
        match self.object_store {
            ReadyObjectStore::Local { root } => {
                section(&mut text, "object_store", &[("provider", "local")]);
                let root = root.to_string_lossy();
                section(&mut text, "object_store.connection", &[("kind", "local"), ("root", &root)]);
            }
            ReadyObjectStore::S3 { endpoint, access_key_id, secret_access_key } => {
                section(&mut text, "object_store", &[("provider", "s3")]);
                let keys = [
                    ("kind", "s3"),
                    ("endpoint", endpoint),
                    ("region", "us-east-1"),
                    ("access_key_id", access_key_id),
                    ("secret_access_key", secret_access_key),
                ];
                section(&mut text, "object_store.connection", &keys);
                text.push_str("path_style = true\n");
            }
        }
        let key = [("id", self.installation.master_key_id.as_str()), ("key", &self.installation.master_key)];
        section(&mut text, "master_key", &key);
        section(&mut text, "authorization", &[("issuer_seed", &self.identities.callout_seed)]);
        self.nats(&mut text, "authorization.nats", &self.identities.hub_auth);
        text
    }

    /// Those of the scheduler.
    pub(super) fn scheduler(&self) -> String {
        let mut text = String::new();
        self.nats(&mut text, "nats", &self.identities.scheduler);
        let cache = self.data_directory.join("cache").join("scheduler");
        section(&mut text, "browse", &[("cache", &cache.to_string_lossy())]);
        text
    }

    /// Those of the service on one host.
    pub(super) fn host_backup(&self, index: usize, id: &HostId) -> anyhow::Result<String> {
        let identity = self.identities.hosts.get(&id.to_string());
        let identity = identity.with_context(|| format!("nats-server knows no host {id}"))?;
        let cache = self.data_directory.join("cache").join(format!("host-{index}"));
        fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
        let root = super::host_root(self.data_directory, index);
        let mut text = String::new();
        self.nats(&mut text, "nats", identity);
        let (id, root, cache) = (id.to_string(), root.to_string_lossy(), cache.to_string_lossy());
        section(&mut text, "host", &[("id", &id), ("root", &root), ("cache", &cache)]);
        Ok(text)
    }

    fn nats(&self, text: &mut String, name: &str, identity: &Identity) {
        let values = [
            ("url", self.nats_url),
            ("user", identity.user.as_str()),
            ("password", &identity.password),
            ("inbox_prefix", &identity.inbox_prefix),
        ];
        section(text, name, &values);
    }
}

/// Adds a table of texts.
pub(super) fn section(text: &mut String, name: &str, values: &[(&str, &str)]) {
    let _ = writeln!(text, "\n[{name}]");
    for (key, value) in values {
        // A string of JSON is one of TOML.
        let _ = writeln!(text, "{key} = {}", serde_json::Value::from(*value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        let mut text = String::new();
        section(&mut text, "host", &[("root", "/a \"b\"\\c\n[nats]")]);
        assert_eq!(text, "\n[host]\nroot = \"/a \\\"b\\\"\\\\c\\n[nats]\"\n");
    }
}
