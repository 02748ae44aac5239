//! Included docker configs, such as those of Docker Hub, whose entries are merged into ours.

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::SecretString;
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
}

impl IncludedConfig {
    /// Reads the docker config of a Secret of this type.
    ///
    /// # Errors
    /// [`IncludeError`], which never quotes the data.
    pub fn parse(type_: &str, json: &[u8]) -> Result<Self, IncludeError> {
        #[derive(Deserialize)]
        struct Config {
            auths: BTreeMap<String, Map<String, Value>>,
        }
        if type_ != TYPE {
            return Err(IncludeError::Type(type_.chars().take(100).collect()));
        }
        if json.len() > LARGEST {
            return Err(IncludeError::TooLarge(json.len()));
        }
        let config: Config = serde_json::from_slice(json).map_err(|_| IncludeError::Invalid)?;
        // With sorted keys, so that the same entries are the same bytes.
        let text = |entry: Map<String, Value>| serde_json::to_string(&entry).map_err(|_| IncludeError::Invalid);
        let entries: Vec<(String, String)> =
            config.auths.into_iter().map(|(host, entry)| Ok((host, text(entry)?))).collect::<Result<_, _>>()?;
        let digest =
            Fields::new("include/v1").list(&entries, |fields, (host, entry)| fields.text(host).text(entry)).finish();
        let entries = entries.into_iter().map(|(host, entry)| (host, SecretString::from(entry))).collect();
        Ok(Self { entries, digest })
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

/// The host of a key of `auths`, which may have a scheme and a path.
fn host_of(key: &str) -> &str {
    let rest = ["https://", "http://"].iter().find_map(|scheme| key.strip_prefix(scheme)).unwrap_or(key);
    rest.split('/').next().unwrap_or_default()
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
        let first = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"b25l"},"ghcr.io":{"auth":"b25l"},"public.ecr.aws":{"auth":"b25l"}}}"#;
        let second = r#"{"auths":{"ghcr.io":{"auth":"dHdv"},"quay.io":{"username":"u","password":"p"},"https://Public.ECR.aws/v2/x":{"auth":"dHdv"}}}"#;
        let included = Included { configs: vec![config(first), config(second)], incomplete: false };
        let found: Vec<(&str, &str)> =
            included.beside(&ours(&["public.ecr.aws"])).into_iter().map(|(k, v)| (k, v.expose_secret())).collect();
        let expected = [
            ("ghcr.io", r#"{"auth":"b25l"}"#),
            ("https://index.docker.io/v1/", r#"{"auth":"b25l"}"#),
            ("quay.io", r#"{"password":"p","username":"u"}"#),
        ];
        assert_eq!(found, expected);
        assert!(!format!("{included:?}").contains("b25l"), "Debug shows nothing");
    }

    #[test]
    fn what_is_no_docker_config_is_refused_without_quoting_it() {
        let huge = format!(r#"{{"auths":{{"x.example":{{"auth":"{}"}}}}}}"#, "x".repeat(LARGEST));
        let deep = format!(r#"{{"auths":{{"x.example":{}1{}}}}}"#, r#"{"a":"#.repeat(200), "}".repeat(200));
        let table = [
            (TYPE, "", IncludeError::Invalid),
            (TYPE, "{}", IncludeError::Invalid),
            (TYPE, "hunter2hunter2", IncludeError::Invalid),
            (TYPE, r#"{"auths":{"x.example":"hunter2hunter2"}}"#, IncludeError::Invalid),
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
    fn the_same_entries_have_the_same_digest_in_every_build() {
        let digest = |json: &str| config(json).digest();
        let one = digest(r#"{"auths":{"a":{"auth":"eA==","email":"e"}}}"#);
        assert_eq!(one, digest(r#"{ "auths" : {"a": {"email":"e", "auth":"eA=="}}, "credsStore": "x" }"#));
        assert_ne!(one, digest(r#"{"auths":{"a":{"auth":"eQ==","email":"e"}}}"#));
        let all = Included { configs: vec![config(r#"{"auths":{"a":{"auth":"eA=="}}}"#)], incomplete: false };
        assert_eq!(all.digest().unwrap().short(), 8_626_203_595_521_443_187, "pinned");
        assert_eq!(Included::default().digest(), None);
    }
}
