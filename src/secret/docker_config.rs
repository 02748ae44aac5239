//! The bytes of `.dockerconfigjson`: the same entries always give the same bytes.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::include::Included;
use crate::api::LoginFields;
use crate::api::registry::Host;
use crate::encoding::{Digest, Fields};
use crate::token::DockerAuth;

/// The key in the Secret's data, which its type demands.
pub const DATA_KEY: &str = ".dockerconfigjson";

/// Entries by host. Keys are bare hosts: kubelet would strip a scheme, docker and helm would not find the entry.
pub type Entries = BTreeMap<Host, DockerAuth>;

#[derive(Serialize)]
struct Config<'a> {
    auths: BTreeMap<&'a str, ConfigEntry<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ConfigEntry<'a> {
    Auth {
        auth: &'a str,
    },
    /// The same with user name and password as well.
    Login {
        auth: &'a str,
        password: &'a str,
        username: &'a str,
    },
    /// An included entry, unchanged.
    Included(&'a RawValue),
}

/// A rendered docker config. Its `Debug` output is redacted.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    pub(super) base64: SecretString,
    /// `sha256:` and 64 hexadecimal digits over the JSON. Tokens are too long to be guessed from it.
    pub hash: String,
    /// A hash over the hosts: configs with the same hash differ only in their tokens.
    pub hosts: u64,
    /// The size of the JSON in bytes; a Secret can hold 1 MiB.
    pub bytes: usize,
}

impl DockerConfig {
    /// Renders entries as JSON with sorted keys and no spaces.
    ///
    /// # Errors
    /// Only if serde fails, which strings do not make it do.
    pub fn render(entries: &Entries) -> Result<Self, serde_json::Error> {
        Self::render_with(entries, LoginFields::Auth, &Included::default())
    }

    /// Renders entries with these fields, and the included ones.
    ///
    /// # Errors
    /// Only if serde fails, which strings do not make it do.
    pub fn render_with(entries: &Entries, fields: LoginFields, included: &Included) -> Result<Self, serde_json::Error> {
        let decoded: Vec<Zeroizing<Vec<u8>>> = match fields {
            LoginFields::Auth => Vec::new(),
            LoginFields::AuthUsernamePassword => entries.values().map(decoded).collect(),
        };
        let beside = included.beside(entries);
        let hosts = hash_of(entries.keys().map(Host::as_str).chain(beside.keys().copied()));
        let mut auths = BTreeMap::new();
        for (key, entry) in beside {
            auths.insert(key, ConfigEntry::Included(serde_json::from_str(entry.expose_secret())?));
        }
        for (number, (host, auth)) in entries.iter().enumerate() {
            let login = decoded.get(number).and_then(|login| user_and_password(login));
            let auth = auth.expose();
            let entry = match login {
                Some((username, password)) => ConfigEntry::Login { auth, password, username },
                None => ConfigEntry::Auth { auth },
            };
            auths.insert(host.as_str(), entry);
        }
        let json = Zeroizing::new(serde_json::to_vec(&Config { auths })?);
        let hash = format!("sha256:{}", Digest::of(&json));
        Ok(Self { base64: SecretString::from(STANDARD.encode(&*json)), hash, hosts, bytes: json.len() })
    }

    /// The value of the data key, base64 as Secrets have it.
    pub fn expose_base64(&self) -> &str {
        self.base64.expose_secret()
    }
}

/// The size of a config without logins, in bytes.
pub const EMPTY_BYTES: usize = r#"{"auths":{}}"#.len();

/// An upper bound of the size of one entry, with its comma, in bytes.
pub fn entry_bytes(host: &Host, auth: &DockerAuth, fields: LoginFields) -> usize {
    let plain = match fields {
        LoginFields::Auth => 0,
        LoginFields::AuthUsernamePassword => user_and_password(&decoded(auth)).map_or(0, |(username, password)| {
            r#","password":"","username":""#.len() + escaped_bytes(username) + escaped_bytes(password)
        }),
    };
    r#""":{"auth":""},"#.len() + host.as_str().len() + auth.expose().len() + plain
}

fn decoded(auth: &DockerAuth) -> Zeroizing<Vec<u8>> {
    STANDARD.decode(auth.expose()).unwrap_or_default().into()
}

fn user_and_password(login: &[u8]) -> Option<(&str, &str)> {
    std::str::from_utf8(login).ok()?.split_once(':')
}

/// An upper bound of the size of a text in JSON, in bytes.
fn escaped_bytes(text: &str) -> usize {
    let bytes = |byte| match byte {
        b'"' | b'\\' => 2,
        0..=0x1f => r"\u0000".len(),
        _ => 1,
    };
    text.bytes().map(bytes).sum()
}

/// The windows of a short text, to find out whether it quotes secret data. The data may have 1 MiB, so each of its windows is looked up
/// once.
pub struct Quotes<'a>(HashSet<&'a [u8]>);

impl<'a> Quotes<'a> {
    const WINDOW: usize = 16;

    /// Prepares a text.
    pub fn of(text: &'a str) -> Self {
        Self(text.as_bytes().windows(Self::WINDOW).collect())
    }

    /// Whether the text holds any sixteen characters in a row of the data.
    pub fn hold(&self, data: &[u8]) -> bool {
        !self.0.is_empty() && data.windows(Self::WINDOW).any(|window| self.0.contains(window))
    }

    /// Whether the text quotes an entry of a docker config: any string in it, or its decoded form.
    pub fn hold_a_login_of(&self, json: &[u8]) -> bool {
        let Ok(Value::Object(mut config)) = serde_json::from_slice(json) else { return false };
        let Some(Value::Object(auths)) = config.remove("auths") else { return false };
        let texts =
            auths.values().filter_map(Value::as_object).flat_map(|entry| entry.values().filter_map(Value::as_str));
        texts.into_iter().any(|text| {
            let decoded = Zeroizing::new(STANDARD.decode(text).unwrap_or_default());
            self.hold(text.as_bytes()) || self.hold(&decoded)
        })
    }
}

/// A hash over hosts, whatever their order.
pub fn hash_of<'a>(hosts: impl IntoIterator<Item = &'a str>) -> u64 {
    let hosts: BTreeSet<&str> = hosts.into_iter().collect();
    Fields::new("hosts/v1").list(hosts, Fields::text).finish().short()
}

/// Parses the entries in the bytes of a Secret. Hosts and entries that are not valid for ECR are skipped.
pub fn parse(json: &[u8]) -> Entries {
    let login = |(host, entry): (String, Value)| {
        let Value::Object(mut entry) = entry else { return None };
        let Some(Value::String(auth)) = entry.remove("auth") else { return None };
        Some((Host::parse(&host).ok()?, DockerAuth::parse(auth).ok()?))
    };
    let Ok(Value::Object(mut config)) = serde_json::from_slice(json) else { return Entries::new() };
    let Some(Value::Object(auths)) = config.remove("auths") else { return Entries::new() };
    auths.into_iter().filter_map(login).collect()
}

#[cfg(test)]
mod tests {
    use super::super::include::IncludedConfig;
    use super::*;
    use proptest::prelude::*;

    fn auth(password: &str) -> DockerAuth {
        DockerAuth::parse(STANDARD.encode(format!("AWS:{password}"))).unwrap()
    }

    fn entries(hosts: &[(&str, &str)]) -> Entries {
        hosts.iter().map(|(host, password)| (Host::parse(host).unwrap(), auth(password))).collect()
    }

    fn json(config: &DockerConfig) -> String {
        String::from_utf8(STANDARD.decode(config.expose_base64()).unwrap()).unwrap()
    }

    #[test]
    fn the_bytes_are_sorted_and_hold_bare_hosts_and_auth_alone() {
        let config = DockerConfig::render(&entries(&[("public.ecr.aws", "p"), ("a.example", "q")])).unwrap();
        assert_eq!(
            json(&config),
            r#"{"auths":{"a.example":{"auth":"QVdTOnE="},"public.ecr.aws":{"auth":"QVdTOnA="}}}"#
        );
        assert_eq!(config.bytes, json(&config).len());
    }

    #[test]
    fn the_size_is_known_before_it_is_rendered() {
        for hosts in [&[][..], &[("a.example", "p")], &[("a.example", "p"), ("b.example", "a longer one")]] {
            let entries = entries(hosts);
            let expected = entries.iter().map(|(host, auth)| entry_bytes(host, auth, LoginFields::Auth)).sum::<usize>()
                + EMPTY_BYTES;
            let last_comma = usize::from(!entries.is_empty());
            assert_eq!(DockerConfig::render(&entries).unwrap().bytes, expected - last_comma);
        }
    }

    #[test]
    fn a_message_that_quotes_a_login_in_any_form_is_known() {
        let hub = r#"{"auths":{"hub.example":{"username":"somebody","password":"correct horse battery"}}}"#;
        let hub = IncludedConfig::parse("kubernetes.io/dockerconfigjson", hub.as_bytes()).unwrap();
        let included = Included { configs: vec![hub.into()], incomplete: false };
        let logins = entries(&[("a.example", "hunter2hunter2hunter2")]);
        let config = DockerConfig::render_with(&logins, LoginFields::Auth, &included).unwrap();
        let json = json(&config);
        for quote in [auth("hunter2hunter2hunter2").expose(), "hunter2hunter2hunter2", "correct horse battery"] {
            assert!(Quotes::of(&format!("denied: data is {quote}")).hold_a_login_of(json.as_bytes()), "{quote}");
        }
        let harmless = "denied the request: every Secret needs the label team, ask a.example for one";
        assert!(!Quotes::of(harmless).hold_a_login_of(json.as_bytes()));
    }

    #[test]
    fn an_entry_has_the_fields_that_are_asked_for_and_those_of_others_stand_beside_ours() {
        let hub = r#"{"auths":{"hub.example":{"email":"e","auth":"eDp5"},"a.example":{"auth":"eDp5"}}}"#;
        let hub = IncludedConfig::parse("kubernetes.io/dockerconfigjson", hub.as_bytes()).unwrap();
        let included = Included { configs: vec![hub.into()], incomplete: false };
        let logins = entries(&[("a.example", "q:r")]);
        let config = DockerConfig::render_with(&logins, LoginFields::AuthUsernamePassword, &included).unwrap();
        assert_eq!(
            json(&config),
            r#"{"auths":{"a.example":{"auth":"QVdTOnE6cg==","password":"q:r","username":"AWS"},"hub.example":{"auth":"eDp5","email":"e"}}}"#
        );
        assert_eq!(config.hosts, hash_of(["a.example", "hub.example"]));
        assert_eq!(
            parse(json(&config).as_bytes()).into_keys().collect::<Vec<_>>(),
            [Host::parse("a.example").unwrap()]
        );
    }

    #[test]
    fn an_entry_of_another_form_hides_no_other() {
        for odd in ["null", "5", r#"{"auth":null}"#, r#"{"auth":["x"]}"#, "{}"] {
            let json = format!(r#"{{"auths":{{"a.example":{odd},"public.ecr.aws":{{"auth":"QVdTOnA="}}}}}}"#);
            assert_eq!(
                parse(json.as_bytes()).keys().map(Host::as_str).collect::<Vec<_>>(),
                ["public.ecr.aws"],
                "{odd}"
            );
        }
    }

    #[test]
    fn debug_output_shows_nothing_of_a_password() {
        let config = DockerConfig::render(&entries(&[("a.example", "hunter2hunter2")])).unwrap();
        assert!(!format!("{config:?}").contains(config.expose_base64()));
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_read_back(passwords in prop::collection::vec("[ -~]{1,40}", 0..5)) {
            let hosts: Vec<(String, &String)> = passwords.iter().enumerate().map(|(i, p)| (format!("h{i}.example"), p)).collect();
            let pairs: Vec<(&str, &str)> = hosts.iter().map(|(h, p)| (h.as_str(), p.as_str())).collect();
            let before = entries(&pairs);
            let config = DockerConfig::render(&before).unwrap();
            let after = parse(json(&config).as_bytes());
            let again = DockerConfig::render(&after).unwrap();
            prop_assert_eq!(again.hash, config.hash);
            prop_assert_eq!(after.len(), before.len());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
