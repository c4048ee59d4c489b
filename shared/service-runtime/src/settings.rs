//! Settings: a committed default, then a file, then the environment; and a clear word about what is wrong in them.
//!
//! A misspelt key that is silently ignored is found months later, when the setting was needed. So structs of
//! settings carry `#[serde(deny_unknown_fields)]`, and an error names the key and where it was written. It never
//! shows a value: it could be a password.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::{Actual, Kind};
use figment::providers::{Format, Toml};
use figment::value::Dict;
use serde::de::DeserializeOwned;

/// What every service understands on its command line. A service with more arguments flattens it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServiceArguments {
    /// A TOML file whose values take the place of the built-in defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the settings, say "ok" or what is wrong (exit status 2), and do nothing else.
    #[arg(long)]
    pub check_config: bool,
}

/// Settings that cannot be used. No message shows the value of a setting.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("could not read the settings file {}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{place} is not valid TOML: {message}")]
    Syntax {
        /// "the settings file …" or "the built-in default settings".
        place: String,
        /// Where, and what is wrong.
        message: String,
    },
    /// A key that no setting has.
    #[error("unknown key `{key}` in {place}; known there: {}", known.join(", "))]
    UnknownKey {
        /// The key, with its sections, dotted.
        key: String,
        /// Where it was written.
        place: String,
        /// The keys that its section has.
        known: Vec<String>,
    },
    /// A key that has no default and was given nowhere.
    #[error("missing key `{key}`; set it in the settings file or as {variable} in the environment")]
    MissingKey {
        /// The key, with its sections, dotted.
        key: String,
        /// The environment variable that would set it.
        variable: String,
    },
    /// A value of the wrong type or out of range.
    #[error("bad value for `{key}` in {place}: {message}")]
    BadValue {
        /// The key, with its sections, dotted.
        key: String,
        /// Where it was written.
        place: String,
        /// What was expected.
        message: String,
    },
}

/// Reads the settings of the service `service_name` (as in `host-backup`): `default_toml`, over that the file of
/// `--config`, over that the environment, where `LONGHAUL_HOST_BACKUP__SECTION__KEY` sets `section.key`. Values from
/// the environment are strings that are read as the setting's type; lists and tables can be set in the file only.
///
/// # Errors
///
/// See [`SettingsError`]; each is the operator's to mend (exit status 2).
pub fn load_settings<T: DeserializeOwned>(
    service_name: &str,
    default_toml: &'static str,
    arguments: &ServiceArguments,
) -> Result<T, SettingsError> {
    load_settings_with_variables(service_name, default_toml, arguments, &[])
}

/// The same, with variables of other names for some settings: `("R2_BUCKET_NAME", "storage.bucket")`. They override
/// the file; a variable in the form of [`load_settings`] overrides them.
///
/// # Errors
///
/// As [`load_settings`].
pub fn load_settings_with_variables<T: DeserializeOwned>(
    service_name: &str,
    default_toml: &'static str,
    arguments: &ServiceArguments,
    variables: &[(&str, &str)],
) -> Result<T, SettingsError> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    load(service_name, default_toml, arguments.config.as_deref(), variables, environment)
}

fn load<T: DeserializeOwned>(
    service_name: &str,
    default_toml: &str,
    file: Option<&Path>,
    variables: &[(&str, &str)],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<T, SettingsError> {
    let layers = Layers::read(service_name, default_toml, file, variables, environment)?;
    let mut merged = Figment::from(Toml::string(default_toml));
    if let Some(file) = &layers.file {
        merged = merged.merge(file.values.clone());
    }
    for (key, (_, value)) in &layers.environment {
        merged = merged.merge((key, value));
    }
    merged.extract_lossy().map_err(|error| layers.explain(error))
}

/// What was given where, to say where a bad value comes from.
struct Layers {
    variable_prefix: String,
    file: Option<File>,
    /// By dotted key: the variable's name and value.
    environment: BTreeMap<String, (String, String)>,
}

struct File {
    path: PathBuf,
    values: Figment,
}

impl Layers {
    fn read(
        service_name: &str,
        default_toml: &str,
        file: Option<&Path>,
        variables: &[(&str, &str)],
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let variable_prefix = format!("LONGHAUL_{}__", service_name.to_uppercase().replace('-', "_"));
        parse("the built-in default settings", default_toml)?;
        let file = match file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| SettingsError::Unreadable { file: path.to_owned(), source })?;
                let values = parse(&file_place(path), &text)?;
                Some(File { path: path.to_owned(), values })
            }
        };
        let mut ours = BTreeMap::new();
        let mut of_other_names = BTreeMap::new();
        for (name, value) in environment {
            if let Some((_, key)) = variables.iter().find(|(variable, _)| *variable == name) {
                of_other_names.insert((*key).to_owned(), (name, value));
            } else if let Some(key) = name.strip_prefix(&variable_prefix) {
                ours.insert(key.to_lowercase().replace("__", "."), (name, value));
            }
        }
        of_other_names.append(&mut ours);
        Ok(Self { variable_prefix, file, environment: of_other_names })
    }

    /// Where the value of `key`, or of something in it, was last set.
    fn place_of(&self, key: &str) -> String {
        let inside = format!("{key}.");
        let variable = self.environment.iter().find(|(name, _)| *name == key || name.starts_with(&inside));
        match (variable, &self.file) {
            (Some((_, (name, _))), _) => format!("the environment variable {name}"),
            (None, Some(file)) if file.values.find_value(key).is_ok() => file_place(&file.path),
            _ => "the built-in default settings".to_owned(),
        }
    }

    fn explain(&self, error: figment::Error) -> SettingsError {
        let section = error.path.join(".");
        let within = |name: &str| match section.as_str() {
            "" => name.to_owned(),
            section if section.ends_with(&format!(".{name}")) || section == name => section.to_owned(),
            section => format!("{section}.{name}"),
        };
        let bad_value = |message: String| {
            let key = section.clone();
            SettingsError::BadValue { place: self.place_of(&key), key, message }
        };
        match error.kind {
            Kind::UnknownField(name, known) => {
                let key = within(&name);
                let known = known.iter().map(ToString::to_string).collect();
                SettingsError::UnknownKey { place: self.place_of(&key), key, known }
            }
            Kind::MissingField(name) => {
                let key = within(&name);
                let variable = format!("{}{}", self.variable_prefix, key.to_uppercase().replace('.', "__"));
                SettingsError::MissingKey { key, variable }
            }
            Kind::InvalidType(actual, expected) => {
                bad_value(format!("it is {}, expected {expected}", type_of(&actual)))
            }
            Kind::InvalidValue(_, expected) => bad_value(format!("expected {expected}")),
            Kind::InvalidLength(length, expected) => {
                bad_value(format!("it has length {length}, expected {expected}"))
            }
            Kind::UnknownVariant(_, known) => bad_value(format!("expected one of {}", known.join(", "))),
            Kind::Message(message) => bad_value(message),
            other => bad_value(other.to_string()),
        }
    }
}

fn file_place(path: &Path) -> String {
    format!("the settings file {}", path.display())
}

fn parse(place: &str, toml: &str) -> Result<Figment, SettingsError> {
    let values = Figment::from(Toml::string(toml));
    match values.extract::<Dict>() {
        Ok(_) => Ok(values),
        Err(error) => {
            // The parser quotes the line, between bars; it could hold a password.
            let message = error.kind.to_string();
            let lines = message.lines().filter(|line| !line.contains('|')).map(str::trim);
            let message = lines.collect::<Vec<_>>().join(", ");
            Err(SettingsError::Syntax { place: place.to_owned(), message })
        }
    }
}

/// The type of a value, without the value.
fn type_of(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) => "an integer",
        Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) | Actual::Bytes(_) => "a string",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "a value of another type",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::net::SocketAddr;

    use secrecy::{ExposeSecret, SecretString};
    use serde::Deserialize;

    use super::*;
    use crate::{HttpSettings, LogFormat, TelemetrySettings};

    const DEFAULT: &str = r#"
        # How many at once.
        slots = 4
        name = "default"
        [telemetry]
        log_filter = "info"
        [http]
        listen = "127.0.0.1:0"
    "#;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        slots: u16,
        name: String,
        token: SecretString,
        verbose: Option<bool>,
        telemetry: TelemetrySettings,
        http: HttpSettings,
    }

    fn settings(file: Option<&str>, environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("longhaul.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
        }
        let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        load("host-backup", DEFAULT, file.map(|_| path.as_path()), &[], environment)
    }

    fn message(file: Option<&str>, environment: &[(&str, &str)]) -> String {
        settings(file, environment).unwrap_err().to_string()
    }

    const TOKEN: (&str, &str) = ("LONGHAUL_HOST_BACKUP__TOKEN", "secret");

    #[test]
    fn the_file_is_stronger_than_the_default_and_the_environment_than_both() {
        let loaded = settings(
            Some("slots = 5\nname = \"file\"\ntoken = \"from file\"\n[telemetry]\nlog_format = \"human\""),
            &[
                ("LONGHAUL_HOST_BACKUP__SLOTS", "6"),
                ("LONGHAUL_HOST_BACKUP__VERBOSE", "true"),
                ("LONGHAUL_HOST_BACKUP__HTTP__LISTEN", "127.0.0.1:99"),
                ("LONGHAUL_REGISTRY__SLOTS", "7"),
                ("LONGHAUL_HOST_BACKUP", "not a setting"),
            ],
        )
        .unwrap();
        assert_eq!((loaded.slots, loaded.name.as_str(), loaded.verbose), (6, "file", Some(true)));
        assert_eq!(loaded.telemetry.log_format, LogFormat::Human);
        assert_eq!(loaded.telemetry.log_filter.as_str(), "info");
        assert_eq!(loaded.http.listen, SocketAddr::from(([127, 0, 0, 1], 99)));
        assert_eq!(loaded.token.expose_secret(), "from file");
        assert!(!format!("{loaded:?}").contains("from file"));
    }

    #[test]
    fn a_password_of_digits_or_brackets_in_the_environment_is_still_a_string() {
        for password in ["123456", "true", "[x", "1e5", "\"quoted\"", " {a} "] {
            let loaded = settings(None, &[("LONGHAUL_HOST_BACKUP__TOKEN", password)]).unwrap();
            assert_eq!(loaded.token.expose_secret(), password);
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name_and_where_it_is_written() {
        let in_file = message(Some("slot = 5"), &[TOKEN]);
        assert!(in_file.starts_with("unknown key `slot` in the settings file /"), "{in_file}");
        assert!(in_file.contains("longhaul.toml; known there: slots, name, token"), "{in_file}");
        let nested = message(Some("[telemetry]\nlog_fromat = \"json\""), &[TOKEN]);
        assert!(nested.starts_with("unknown key `telemetry.log_fromat` in the settings file"), "{nested}");
        assert!(nested.ends_with("known there: log_format, log_filter"), "{nested}");
        assert_eq!(
            message(None, &[TOKEN, ("LONGHAUL_HOST_BACKUP__HTTP__PORT", "1")]),
            "unknown key `http.port` in the environment variable LONGHAUL_HOST_BACKUP__HTTP__PORT; \
             known there: listen, address_file"
        );
    }

    #[test]
    fn a_missing_key_is_named_with_the_variable_that_would_set_it() {
        assert_eq!(
            message(None, &[]),
            "missing key `token`; set it in the settings file or as LONGHAUL_HOST_BACKUP__TOKEN in the environment"
        );
    }

    #[test]
    fn a_bad_value_is_explained_without_being_shown() {
        let wrong_type = message(Some("token = 4711\n"), &[]);
        assert!(wrong_type.starts_with("bad value for `token` in the settings file"), "{wrong_type}");
        assert!(wrong_type.ends_with("it is an integer, expected a string") && !wrong_type.contains("4711"));
        let variable = message(None, &[TOKEN, ("LONGHAUL_HOST_BACKUP__SLOTS", "many")]);
        assert!(
            variable.contains("`slots` in the environment variable LONGHAUL_HOST_BACKUP__SLOTS"),
            "{variable}"
        );
        let filter = message(None, &[TOKEN, ("LONGHAUL_HOST_BACKUP__TELEMETRY__LOG_FILTER", "a=b=c")]);
        assert!(filter.contains("is no log filter"), "{filter}");
        let format = message(None, &[TOKEN, ("LONGHAUL_HOST_BACKUP__TELEMETRY__LOG_FORMAT", "xml")]);
        assert!(format.ends_with("expected one of json, human"), "{format}");
        let address = message(None, &[TOKEN, ("LONGHAUL_HOST_BACKUP__HTTP__LISTEN", "here")]);
        assert!(address.contains("invalid socket address"), "{address}");
    }

    #[test]
    fn a_file_that_is_missing_or_no_toml_is_refused_and_the_bad_line_is_not_shown() {
        let syntax = message(Some("name = \"x\"\ntoken = hunter2\n"), &[]);
        assert!(syntax.contains("is not valid TOML: ") && syntax.contains("line 2"), "{syntax}");
        assert!(!syntax.contains("hunter2"), "{syntax}");
        let missing =
            load::<Settings>("x", DEFAULT, Some(Path::new("/nowhere/at.toml")), &[], std::iter::empty());
        assert!(matches!(missing, Err(SettingsError::Unreadable { .. })));
    }
}
