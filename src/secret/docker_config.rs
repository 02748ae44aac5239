//! The bytes of `.dockerconfigjson`: the same entries always give the same bytes.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde::Serialize;
use serde_json::Value;

use crate::api::registry::Host;
use crate::encoding::{Digest, Fields};
use crate::token::Auth;

/// The key in the Secret's data, which its type demands.
pub const DATA_KEY: &str = ".dockerconfigjson";

/// Logins by host. Keys are bare hosts: kubelet would strip a scheme, docker and helm would not find it.
pub type Entries = BTreeMap<Host, Auth>;

#[derive(Serialize)]
struct Config<'a> {
    auths: BTreeMap<&'a str, Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    auth: &'a str,
}

/// A rendered docker config. Its `Debug` shows nothing of it.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    base64: SecretString,
    hash: String,
    hosts: u64,
    bytes: usize,
}

impl DockerConfig {
    /// Renders entries as JSON with sorted keys and no spaces.
    ///
    /// # Errors
    /// Only if serde fails, which strings do not make it do.
    pub fn render(entries: &Entries) -> Result<Self, serde_json::Error> {
        let hosts = hash_of(entries.keys().map(Host::as_str));
        let auths = entries.iter().map(|(host, auth)| (host.as_str(), Entry { auth: auth.expose() })).collect();
        let json = Zeroizing::new(serde_json::to_vec(&Config { auths })?);
        let hash = format!("sha256:{}", Digest::of(&json));
        Ok(Self { base64: SecretString::from(STANDARD.encode(&*json)), hash, hosts, bytes: json.len() })
    }

    /// The value of the data key, base64 as Secrets have it.
    pub fn expose_base64(&self) -> &str {
        self.base64.expose_secret()
    }

    /// `sha256:` and 64 hexadecimal digits over the JSON. The passwords are far too long to be guessed back from it.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// A hash over the hosts alone: two with the same differ in their passwords at most.
    pub const fn hosts(&self) -> u64 {
        self.hosts
    }

    /// Whether a text holds any sixteen characters in a row of the data or of a login in it.
    pub fn is_quoted_in(&self, text: &str) -> bool {
        const WINDOW: usize = 16;
        // The text is short and the data may have a MiB: each place of the data is looked up once.
        let windows: HashSet<&[u8]> = text.as_bytes().windows(WINDOW).collect();
        let holds = |data: &[u8]| !windows.is_empty() && data.windows(WINDOW).any(|window| windows.contains(window));
        if holds(self.expose_base64().as_bytes()) {
            return true;
        }
        let json = Zeroizing::new(STANDARD.decode(self.expose_base64()).unwrap_or_default());
        parse(&json).values().any(|auth| {
            let password = Zeroizing::new(STANDARD.decode(auth.expose()).unwrap_or_default());
            holds(auth.expose().as_bytes()) || holds(&password)
        })
    }

    /// The size of the JSON in bytes; a Secret can hold 1 MiB.
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes, which never happens.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// The size of a config without logins, in bytes.
pub const EMPTY_BYTES: usize = r#"{"auths":{}}"#.len();

/// What a login adds to that, with the comma before the next.
pub fn entry_bytes(host: &Host, auth: &Auth) -> usize {
    r#""":{"auth":""},"#.len() + host.as_str().len() + auth.expose().len()
}

/// A hash over hosts, whatever their order.
pub fn hash_of<'a>(hosts: impl IntoIterator<Item = &'a str>) -> u64 {
    let hosts: BTreeSet<&str> = hosts.into_iter().collect();
    Fields::new("hosts/v1").list(hosts, Fields::text).finish().short()
}

/// Reads the logins back from the bytes of a Secret; hosts and logins that are not ours by form are left out, and hide none of
/// the others.
pub fn parse(json: &[u8]) -> Entries {
    let login = |(host, entry): (String, Value)| {
        let Value::Object(mut entry) = entry else { return None };
        let Some(Value::String(auth)) = entry.remove("auth") else { return None };
        Some((Host::parse(&host).ok()?, Auth::parse(auth).ok()?))
    };
    let Ok(Value::Object(mut config)) = serde_json::from_slice(json) else { return Entries::new() };
    let Some(Value::Object(auths)) = config.remove("auths") else { return Entries::new() };
    auths.into_iter().filter_map(login).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn auth(password: &str) -> Auth {
        Auth::parse(STANDARD.encode(format!("AWS:{password}"))).unwrap()
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
        assert_eq!(config.len(), json(&config).len());
    }

    #[test]
    fn the_size_is_known_before_it_is_rendered() {
        for hosts in [&[][..], &[("a.example", "p")], &[("a.example", "p"), ("b.example", "a longer one")]] {
            let entries = entries(hosts);
            let expected = entries.iter().map(|(host, auth)| entry_bytes(host, auth)).sum::<usize>() + EMPTY_BYTES;
            let last_comma = usize::from(!entries.is_empty());
            assert_eq!(DockerConfig::render(&entries).unwrap().len(), expected - last_comma);
        }
    }

    #[test]
    fn a_message_that_quotes_a_login_in_any_form_is_known() {
        let config = DockerConfig::render(&entries(&[("a.example", "hunter2hunter2hunter2")])).unwrap();
        let base64 = config.expose_base64();
        for quote in [base64.get(20..40).unwrap(), auth("hunter2hunter2hunter2").expose(), "hunter2hunter2hunter2"] {
            assert!(config.is_quoted_in(&format!("denied: data is {quote}")), "{quote}");
        }
        assert!(!config.is_quoted_in("denied the request: every Secret needs the label team, ask a.example for one"));
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
            prop_assert_eq!(again.hash(), config.hash());
            prop_assert_eq!(after.len(), before.len());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
