//! Included docker configs, such as those of Docker Hub, whose entries are merged into ours.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::api::registry::Host;
use crate::encoding::{Digest, Fields};

/// The largest docker config that is included, in bytes: our own entries must fit into the Secret as well.
pub const LARGEST: usize = 256 * 1024;

/// The type that an included Secret must have.
const TYPE: &str = "kubernetes.io/dockerconfigjson";

/// The entries of a docker config, by host as it is written there. Its `Debug` output is redacted.
#[derive(Clone, Debug)]
pub struct IncludedConfig {
    /// Each entry as JSON.
    entries: BTreeMap<String, SecretString>,
    digest: Digest,
}

/// Why a Secret cannot be included.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncludeError {
    /// Another type.
    #[error("its type is {0:?} instead of kubernetes.io/dockerconfigjson")]
    Type(String),
    /// Too many bytes.
    #[error("its docker config has {0} bytes, and at most 262144 are allowed")]
    TooLarge(usize),
    /// No docker config.
    #[error("its .dockerconfigjson is not a docker config with auths")]
    Invalid,
    /// This operator writes it: entries that were once included would be read back and stay forever.
    #[error(
        "an EcrCredential writes it: include the Secrets that this EcrCredential includes, or add its registries to spec.registries"
    )]
    Ours,
    /// An entry that consumers refuse. With it, the kubelet would use nothing of a pull secret.
    #[error("the entry of {0:?} in its docker config is invalid: {1}")]
    Entry(String, &'static str),
}

impl IncludeError {
    fn entry(key: &str, why: &'static str) -> Self {
        // What precedes an at sign may be a password.
        let host = host_of(key.rsplit('@').next().unwrap_or_default());
        Self::Entry(host.chars().take(100).collect(), why)
    }
}

/// The members of an entry that consumers read as strings, in upper case: Go ignores the case of names.
const STRINGS: [&str; 7] = ["USERNAME", "PASSWORD", "EMAIL", "AUTH", "SERVERADDRESS", "IDENTITYTOKEN", "REGISTRYTOKEN"];

impl IncludedConfig {
    /// Reads the docker config of a Secret of this type.
    ///
    /// # Errors
    /// [`IncludeError`], which never quotes the data.
    pub fn parse(type_: &str, json: &[u8]) -> Result<Self, IncludeError> {
        #[derive(Deserialize)]
        struct Config {
            auths: BTreeMap<String, Value>,
        }
        if type_ != TYPE {
            return Err(IncludeError::Type(type_.chars().take(100).collect()));
        }
        if json.len() > LARGEST {
            return Err(IncludeError::TooLarge(json.len()));
        }
        let config: Config = serde_json::from_slice(json).map_err(|_| IncludeError::Invalid)?;
        // With sorted keys, so that the same entries are the same bytes.
        let text = |key: &str, entry: Value| {
            let Value::Object(entry) = entry else { return Err(IncludeError::entry(key, "make it an object")) };
            check(&entry).map_err(|why| IncludeError::entry(key, why))?;
            serde_json::to_string(&entry).map_err(|_| IncludeError::Invalid)
        };
        let entries = config.auths.into_iter().map(|(key, entry)| text(&key, entry).map(|entry| (key, entry)));
        let entries: Vec<(String, String)> = entries.collect::<Result<_, _>>()?;
        Ok(Self::of(entries))
    }

    /// No entries.
    pub fn empty() -> Self {
        Self::of(Vec::new())
    }

    fn of(entries: Vec<(String, String)>) -> Self {
        let digest =
            Fields::new("include/v1").list(&entries, |fields, (host, entry)| fields.text(host).text(entry)).finish();
        let entries = entries.into_iter().map(|(host, entry)| (host, SecretString::from(entry))).collect();
        Self { entries, digest }
    }

    /// A digest over its entries.
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

/// The docker configs that are merged into ours, in order.
#[derive(Clone, Debug, Default)]
pub struct Included {
    /// Those that were read.
    pub configs: Vec<Arc<IncludedConfig>>,
    /// Whether one could not be read. An existing Secret may have its entries.
    pub incomplete: bool,
}

impl Included {
    /// The included entries beside ours: our hosts win, then the earlier include.
    pub fn beside<T>(&self, ours: &BTreeMap<Host, T>) -> BTreeMap<&str, &SecretString> {
        let mut all = BTreeMap::new();
        let is_ours = |key: &str| ours.keys().any(|host| host.as_str().eq_ignore_ascii_case(host_of(key)));
        let entries = self.configs.iter().flat_map(|config| &config.entries);
        for (key, entry) in entries.filter(|(key, _)| !is_ours(key)) {
            all.entry(key.as_str()).or_insert(entry);
        }
        all
    }

    /// A digest over all of them; none where there are none.
    pub fn digest(&self) -> Option<Digest> {
        let fields = || Fields::new("included/v1").list(&self.configs, |fields, config| fields.digest(config.digest));
        (!self.configs.is_empty()).then(|| fields().finish())
    }
}

/// Whether consumers can read an entry, as the kubelet does (`DockerConfigEntry.UnmarshalJSON`).
fn check(entry: &Map<String, Value>) -> Result<(), &'static str> {
    for (name, value) in entry {
        let name = name.to_uppercase();
        match value {
            Value::String(auth) if name == "AUTH" && !auth.is_empty() => {
                let decoded = decode(auth).ok_or("set auth to the base64 encoding of user:password")?;
                if !decoded.contains(&b':') {
                    return Err("its auth has no colon: set auth to the base64 encoding of user:password");
                }
            }
            Value::String(_) | Value::Null => {}
            _ if STRINGS.contains(&&*name) => {
                return Err("make its username, password, email, auth and tokens strings");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Decodes `auth` as the kubelet does: padding is canonical or absent, and line breaks are ignored.
fn decode(auth: &str) -> Option<Zeroizing<Vec<u8>>> {
    let auth = Zeroizing::new(auth.replace(['\r', '\n'], ""));
    let padding = match auth.ends_with('=') {
        true => DecodePaddingMode::RequireCanonical,
        false => DecodePaddingMode::RequireNone,
    };
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true).with_decode_padding_mode(padding);
    GeneralPurpose::new(&STANDARD, config).decode(auth.as_bytes()).ok().map(Zeroizing::new)
}

/// The host of a key of `auths`, which the kubelet parses as a URL: with a scheme, a user, an empty port, a path, a query or a fragment.
fn host_of(key: &str) -> &str {
    let rest = ["https://", "http://"].iter().find_map(|scheme| key.strip_prefix(scheme)).unwrap_or(key);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    host.strip_suffix(':').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::docker_config::Entries;
    use crate::token::DockerAuth;
    use secrecy::ExposeSecret;

    fn config(json: &str) -> Arc<IncludedConfig> {
        Arc::new(IncludedConfig::parse(TYPE, json.as_bytes()).unwrap())
    }

    fn ours(hosts: &[&str]) -> Entries {
        let auth = DockerAuth::parse("QVdTOnA=".to_owned()).unwrap();
        hosts.iter().map(|host| (Host::parse(host).unwrap(), auth.clone())).collect()
    }

    #[test]
    fn our_hosts_win_and_then_the_earlier_entry() {
        let first = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"eDpvbmU="},"ghcr.io":{"auth":"eDpvbmU="},"public.ecr.aws":{"auth":"eDpvbmU="}}}"#;
        let second = r#"{"auths":{"ghcr.io":{"auth":"eDp0d28="},"quay.io":{"username":"u","password":"p"},"https://Public.ECR.aws/v2/x":{"auth":"eDp0d28="}}}"#;
        let included = Included { configs: vec![config(first), config(second)], incomplete: false };
        let found: Vec<(&str, &str)> =
            included.beside(&ours(&["public.ecr.aws"])).into_iter().map(|(k, v)| (k, v.expose_secret())).collect();
        let expected = [
            ("ghcr.io", r#"{"auth":"eDpvbmU="}"#),
            ("https://index.docker.io/v1/", r#"{"auth":"eDpvbmU="}"#),
            ("quay.io", r#"{"password":"p","username":"u"}"#),
        ];
        assert_eq!(found, expected);
        assert!(!format!("{included:?}").contains("eDpvbmU"), "Debug shows nothing");
    }

    #[test]
    fn what_is_no_docker_config_is_refused_without_quoting_it() {
        let huge = format!(r#"{{"auths":{{"x.example":{{"auth":"{}"}}}}}}"#, "x".repeat(LARGEST));
        let deep = format!(r#"{{"auths":{{"x.example":{}1{}}}}}"#, r#"{"a":"#.repeat(200), "}".repeat(200));
        let table = [
            (TYPE, "", IncludeError::Invalid),
            (TYPE, "{}", IncludeError::Invalid),
            (TYPE, "hunter2hunter2", IncludeError::Invalid),
            (
                TYPE,
                r#"{"auths":{"x.example":"hunter2hunter2"}}"#,
                IncludeError::entry("x.example", "make it an object"),
            ),
            (TYPE, r#"{"auths":[]}"#, IncludeError::Invalid),
            (TYPE, deep.as_str(), IncludeError::Invalid),
            (TYPE, huge.as_str(), IncludeError::TooLarge(huge.len())),
            ("Opaque", r#"{"auths":{}}"#, IncludeError::Type("Opaque".to_owned())),
        ];
        for (type_, json, expected) in table {
            let error = IncludedConfig::parse(type_, json.as_bytes()).unwrap_err();
            assert_eq!(error, expected);
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn an_entry_that_the_kubelet_refuses_is_named_and_refused() {
        let refused = [
            "null",
            "[]",
            r#"{"auth":5}"#,
            r#"{"AUTH":5}"#,
            r#"{"pa\u017f\u017fword":["hunter2"]}"#,
            r#"{"username":true}"#,
            r#"{"email":{}}"#,
            r#"{"identitytoken":1}"#,
            r#"{"auth":"hunter2 not base64!"}"#,
            r#"{"auth":"bm9jb2xvbg=="}"#,
            r#"{"auth":"eDp5eg="}"#,
            r#"{"auth":"eDp5eg== "}"#,
            r#"{"auth":"eDp5eg\u003d","Auth":"eDp5"}"#,
            r#"{"auth":"\n"}"#,
        ];
        for entry in refused {
            let json = format!(r#"{{"auths":{{"a.example":{{}},"https://user:hunter2@ghcr.io/x":{entry}}}}}"#);
            let error = IncludedConfig::parse(TYPE, json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(r#"the entry of "ghcr.io""#), "{entry}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let accepted = [
            "{}",
            r#"{"auth":null,"username":null}"#,
            r#"{"auth":""}"#,
            r#"{"auth":"eDp5"}"#,
            r#"{"auth":"eDp5eg=="}"#,
            r#"{"auth":"eDp5eg"}"#,
            r#"{"auth":"eDp5\r\neg==\n"}"#,
            r#"{"auth":"eDp5eh=="}"#,
            r#"{"Username":"u","password":"p","other":[1]}"#,
        ];
        for entry in accepted {
            let json = format!(r#"{{"auths":{{"ghcr.io":{entry}}}}}"#);
            assert!(IncludedConfig::parse(TYPE, json.as_bytes()).is_ok(), "{entry}");
        }
    }

    #[test]
    fn no_key_of_our_host_gets_past_ours() {
        for key in [
            "a.example",
            "x@A.example",
            "x:y@a.example",
            "https://x@a.example/v2/",
            "a.example?q",
            "a.example#f",
            "a.example:",
        ] {
            let included = Included {
                configs: vec![config(&format!(r#"{{"auths":{{"{key}":{{"auth":"eDp5"}}}}}}"#))],
                incomplete: false,
            };
            assert!(included.beside(&ours(&["a.example"])).is_empty(), "{key}");
            assert_eq!(included.beside(&ours(&["b.example"])).len(), 1, "{key}");
        }
    }

    #[test]
    fn the_same_entries_have_the_same_digest_in_every_build() {
        let digest = |json: &str| config(json).digest();
        let one = digest(r#"{"auths":{"a":{"auth":"eDp5","email":"e"}}}"#);
        assert_eq!(one, digest(r#"{ "auths" : {"a": {"email":"e", "auth":"eDp5"}}, "credsStore": "x" }"#));
        assert_ne!(one, digest(r#"{"auths":{"a":{"auth":"eTp6","email":"e"}}}"#));
        let all = Included { configs: vec![config(r#"{"auths":{"a":{"auth":"eDp5"}}}"#)], incomplete: false };
        assert_eq!(all.digest().unwrap().short(), 8_678_130_715_801_630_591, "pinned");
        assert_eq!(Included::default().digest(), None);
    }
}
