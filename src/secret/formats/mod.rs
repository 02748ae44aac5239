//! The formats of Secrets. Each is a value in a file of its own, and one line of [`form`].

mod argocd_helm;
mod argocd_oci;
mod basic_auth;
mod docker_config_file;
mod docker_config_json;
mod jenkins;
mod kargo_image;
mod tekton_basic_auth;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use super::docker_config::{self, DockerConfig, Entries, Quotes};
use crate::api::OutputFormat;
use crate::api::registry::Host;
use crate::encoding::Fields;
use crate::token::DockerAuth;

/// The type of a Secret whose keys Kubernetes does not check.
const OPAQUE: &str = "Opaque";

/// The type of a Secret with `username` and `password`.
const BASIC_AUTH: &str = "kubernetes.io/basic-auth";

const USERNAME: &str = "username";
const PASSWORD: &str = "password";

/// What a Secret of one format looks like.
pub struct Form {
    /// The Secret's type.
    pub type_: &'static str,
    /// The labels by which the consumer finds it.
    pub labels: &'static [(&'static str, &'static str)],
    /// The annotations by which the consumer finds it, for the host whose token it holds.
    pub annotations: fn(&Host) -> Vec<(&'static str, String)>,
    /// The keys of its data. It has all of them and no others.
    pub keys: &'static [&'static str],
    /// Its data.
    pub content: Content,
}

/// What the data of a Secret is made of.
pub enum Content {
    /// A docker config with every host, under the only key.
    DockerConfig,
    /// The user name and token for one host, as texts by key.
    Login(fn(&Login<'_>) -> Vec<(&'static str, Text)>),
}

/// A text that may be a secret.
pub type Text = Zeroizing<String>;

/// The user name and token for one host.
pub struct Login<'a> {
    /// The host.
    pub host: &'a Host,
    /// The user name.
    pub username: &'a str,
    /// The password.
    pub password: &'a str,
}

/// The user name and the password under the keys that most consumers read.
fn plain(login: &Login<'_>) -> Vec<(&'static str, Text)> {
    vec![(USERNAME, text(login.username)), (PASSWORD, text(login.password))]
}

fn text(text: impl Into<String>) -> Text {
    Zeroizing::new(text.into())
}

fn no_annotations(_: &Host) -> Vec<(&'static str, String)> {
    Vec::new()
}

/// The form of a format.
pub const fn form(format: OutputFormat) -> &'static Form {
    match format {
        OutputFormat::DockerConfigJson => &docker_config_json::FORM,
        OutputFormat::DockerConfigFile => &docker_config_file::FORM,
        OutputFormat::BasicAuth => &basic_auth::FORM,
        OutputFormat::ArgoCDHelm => &argocd_helm::FORM,
        OutputFormat::ArgoCDOCI => &argocd_oci::FORM,
        OutputFormat::Jenkins => &jenkins::FORM,
        OutputFormat::KargoImage => &kargo_image::FORM,
        OutputFormat::TektonBasicAuth => &tekton_basic_auth::FORM,
    }
}

impl Form {
    /// Whether a Secret of this format holds all hosts, so that it may have none.
    pub const fn holds_every_host(&self) -> bool {
        matches!(self.content, Content::DockerConfig)
    }
}

/// The type and the data of a Secret. Its `Debug` output is redacted.
#[derive(Clone, Debug)]
pub struct Payload {
    type_: &'static str,
    data: BTreeMap<&'static str, SecretString>,
    hash: String,
    hosts: u64,
    bytes: usize,
}

impl Payload {
    /// A docker config, in a format that holds one.
    pub fn docker_config(form: &'static Form, config: DockerConfig) -> Self {
        let key = form.keys.first().copied().unwrap_or(docker_config::DATA_KEY);
        let DockerConfig { base64, hash, hosts, bytes } = config;
        Self { type_: form.type_, data: BTreeMap::from([(key, base64)]), hash, hosts, bytes }
    }

    /// The token for one host, in a format that holds one; none if it is not a token of ECR.
    pub fn login(
        form: &'static Form,
        texts: fn(&Login<'_>) -> Vec<(&'static str, Text)>,
        host: &Host,
        auth: &DockerAuth,
    ) -> Option<Self> {
        let decoded = Zeroizing::new(STANDARD.decode(auth.expose()).ok()?);
        let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        let texts = texts(&Login { host, username, password });
        let fields = Fields::new("data/v1").list(&texts, |fields, (key, value)| fields.text(key).text(value));
        let hash = format!("sha256:{}", fields.finish());
        let bytes = texts.iter().map(|(_, value)| value.len()).sum();
        let data = texts.iter().map(|(key, value)| (*key, SecretString::from(STANDARD.encode(value.as_bytes()))));
        let hosts = docker_config::hash_of([host.as_str()]);
        Some(Self { type_: form.type_, data: data.collect(), hash, hosts, bytes })
    }

    /// The Secret's type.
    pub const fn type_(&self) -> &'static str {
        self.type_
    }

    /// The data: values in base64, as Secrets have them, by key.
    pub fn expose_data(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.data.iter().map(|(key, value)| (*key, value.expose_secret()))
    }

    /// Whether the data has a key.
    pub fn has_key(&self, key: &str) -> bool {
        self.data.contains_key(key)
    }

    /// `sha256:` and 64 hexadecimal digits over the data. Tokens are too long to be guessed from it.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// A hash over the hosts: Secrets with the same hash differ only in their tokens.
    pub const fn hosts(&self) -> u64 {
        self.hosts
    }

    /// The size of the data in bytes; a Secret can hold 1 MiB.
    pub const fn size(&self) -> usize {
        self.bytes
    }

    /// Whether a text quotes sixteen consecutive characters of the secret data.
    pub fn is_quoted_in(&self, text: &str) -> bool {
        let quotes = Quotes::of(text);
        // The other values are not secret: the host, and the kind of the Secret.
        let secret = |key: &str| !matches!(key, USERNAME | "url" | "repoURL" | "repoURLIsRegex" | "type" | "enableOCI");
        self.expose_data().filter(|(key, _)| secret(key)).any(|(key, base64)| {
            let value = Zeroizing::new(STANDARD.decode(base64).unwrap_or_default());
            let login = if key == PASSWORD { quotes.hold(&value) } else { quotes.hold_a_login_of(&value) };
            login || quotes.hold(base64.as_bytes())
        })
    }
}

/// Parses the tokens in the data of a Secret of any format. `host` is the host of a format that holds one. Values that are not tokens
/// of ECR are skipped.
pub fn parse(data: &BTreeMap<String, Zeroizing<Vec<u8>>>, host: Option<&Host>) -> Entries {
    let config = [docker_config_json::FORM.keys, docker_config_file::FORM.keys].concat();
    if let Some(json) = config.iter().find_map(|key| data.get(*key)) {
        return docker_config::parse(json);
    }
    let login = || {
        let value = |key: &str| std::str::from_utf8(data.get(key)?).ok();
        let login = Zeroizing::new(format!("{}:{}", value(USERNAME)?, value(PASSWORD)?));
        Some((host?.clone(), DockerAuth::parse(STANDARD.encode(login.as_bytes())).ok()?))
    };
    login().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const HOST: &str = "111122223333.dkr.ecr.eu-west-1.amazonaws.com";
    const LOGIN: &str = "hunter2hunter2hunter2";

    fn host() -> Host {
        Host::parse(HOST).unwrap()
    }

    fn auth() -> DockerAuth {
        DockerAuth::parse(STANDARD.encode(format!("AWS:{LOGIN}"))).unwrap()
    }

    fn payload(format: OutputFormat) -> Payload {
        let form = form(format);
        match form.content {
            Content::DockerConfig => {
                let entries = Entries::from([(host(), auth())]);
                Payload::docker_config(form, DockerConfig::render(&entries).unwrap())
            }
            Content::Login(texts) => Payload::login(form, texts, &host(), &auth()).unwrap(),
        }
    }

    fn data(payload: &Payload) -> BTreeMap<String, Zeroizing<Vec<u8>>> {
        payload.expose_data().map(|(key, value)| (key.to_owned(), STANDARD.decode(value).unwrap().into())).collect()
    }

    /// The consumers read these very bytes, and the next build must find them as it would write them itself.
    #[test]
    fn each_format_gives_the_same_secret_in_every_build() {
        const CONFIG: &str = r#"{"auths":{"111122223333.dkr.ecr.eu-west-1.amazonaws.com":{"auth":"QVdTOmh1bnRlcjJodW50ZXIyaHVudGVyMg=="}}}"#;
        let login = [("username", "AWS"), ("password", LOGIN)];
        let with = |more: &[(&'static str, &'static str)]| [&login[..], more].concat();
        let repo_creds = ("argocd.argoproj.io/secret-type", "repo-creds");
        let tekton = ("tekton.dev/docker-0", "https://111122223333.dkr.ecr.eu-west-1.amazonaws.com");
        type Pairs = Vec<(&'static str, &'static str)>;
        let table: [(OutputFormat, &str, Pairs, Pairs, Pairs, &str); 8] = [
            (
                OutputFormat::DockerConfigJson,
                "kubernetes.io/dockerconfigjson",
                vec![],
                vec![],
                vec![(".dockerconfigjson", CONFIG)],
                "2c0f60eb31e4a4a260ea39d05d813dba39996d32dece38a6d9ab0d4c8a81792f",
            ),
            (
                OutputFormat::DockerConfigFile,
                "Opaque",
                vec![],
                vec![],
                vec![("config.json", CONFIG)],
                "2c0f60eb31e4a4a260ea39d05d813dba39996d32dece38a6d9ab0d4c8a81792f",
            ),
            (
                OutputFormat::BasicAuth,
                "kubernetes.io/basic-auth",
                vec![],
                vec![],
                with(&[]),
                "62f65d845417d6c5346ab3c38cf401661c1bb300844995b353c350bef97b59d2",
            ),
            (
                OutputFormat::ArgoCDHelm,
                "Opaque",
                vec![repo_creds],
                vec![],
                with(&[("url", HOST), ("type", "helm"), ("enableOCI", "true")]),
                "5c29f5bc1ca9353468d9e55c74dbf5421788ebd1a030258fc53a5ad67c273dc9",
            ),
            (
                OutputFormat::ArgoCDOCI,
                "Opaque",
                vec![repo_creds],
                vec![],
                with(&[("url", "oci://111122223333.dkr.ecr.eu-west-1.amazonaws.com/"), ("type", "oci")]),
                "b0bbfdc820f294e39b7593013292c456463a0005f7ef26575777a2154e5f4c41",
            ),
            (
                OutputFormat::Jenkins,
                "Opaque",
                vec![("jenkins.io/credentials-type", "usernamePassword")],
                vec![],
                with(&[]),
                "62f65d845417d6c5346ab3c38cf401661c1bb300844995b353c350bef97b59d2",
            ),
            (
                OutputFormat::KargoImage,
                "Opaque",
                vec![("kargo.akuity.io/cred-type", "image")],
                vec![],
                with(&[
                    ("repoURL", r"^111122223333\.dkr\.ecr\.eu-west-1\.amazonaws\.com/"),
                    ("repoURLIsRegex", "true"),
                ]),
                "afe3e6cad04afdc3fb5174bae510fd88fd20b7b624e1182036021cd6ba58a8db",
            ),
            (
                OutputFormat::TektonBasicAuth,
                "kubernetes.io/basic-auth",
                vec![],
                vec![tekton],
                with(&[]),
                "62f65d845417d6c5346ab3c38cf401661c1bb300844995b353c350bef97b59d2",
            ),
        ];
        assert_eq!(table.iter().map(|row| row.0).collect::<Vec<_>>(), OutputFormat::ALL);
        for (format, type_, labels, annotations, expected, hash) in table {
            let (form, payload) = (form(format), payload(format));
            assert_eq!(payload.type_(), type_, "{format:?}");
            assert_eq!(form.labels, labels, "{format:?}");
            let found = (form.annotations)(&host());
            assert_eq!(found.iter().map(|(k, v)| (*k, v.as_str())).collect::<Vec<_>>(), annotations, "{format:?}");
            let expected: BTreeMap<String, Zeroizing<Vec<u8>>> =
                expected.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec().into())).collect();
            assert_eq!(data(&payload), expected, "{format:?}");
            assert_eq!(payload.hash(), format!("sha256:{hash}"), "{format:?}");
        }
    }

    #[test]
    fn each_format_has_the_keys_that_it_names_and_is_read_back() {
        for format in OutputFormat::ALL {
            let (form, payload) = (form(format), payload(format));
            let keys: BTreeSet<&str> = payload.expose_data().map(|(key, _)| key).collect();
            assert_eq!(keys, form.keys.iter().copied().collect(), "{format:?}");
            let entries = parse(&data(&payload), Some(&host()));
            assert_eq!(entries.len(), 1, "{format:?}");
            assert_eq!(entries[&host()].expose(), auth().expose(), "{format:?}");
            assert_eq!(payload.hosts(), docker_config::hash_of([HOST]), "{format:?}");
            assert_eq!(form.holds_every_host(), !crate::plan::outputs::is_of_one_host(format), "{format:?}");
            assert_eq!(OutputFormat::parse(format.as_str()), Some(format));
            assert_eq!(serde_json::to_value(format).unwrap(), format.as_str());
        }
    }

    #[test]
    fn a_message_that_quotes_a_password_is_known_in_every_format_and_one_that_names_the_host_is_shown() {
        for format in OutputFormat::ALL {
            let payload = payload(format);
            assert!(payload.is_quoted_in(&format!("denied: {LOGIN}")), "{format:?}");
            for (key, value) in payload.expose_data().filter(|(key, _)| ["password", "config.json"].contains(key)) {
                assert!(payload.is_quoted_in(&format!("denied: {key} is {value}")), "{format:?}");
            }
            assert!(!payload.is_quoted_in(&format!("denied: no Secret for https://{HOST}/ here")), "{format:?}");
            assert!(!format!("{payload:?}").contains(LOGIN));
        }
    }

    #[test]
    fn a_host_with_a_port_is_escaped_where_it_is_a_regular_expression() {
        let Content::Login(texts) = kargo_image::FORM.content else { panic!("a login") };
        let host = Host::parse("registry.example-1.com:5000").unwrap();
        let texts = texts(&Login { host: &host, username: "AWS", password: "p" });
        assert!(texts.contains(&("repoURL", text(r"^registry\.example-1\.com:5000/"))));
    }
}
