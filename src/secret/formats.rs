//! The formats of Secrets, in one table.

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

const USERNAME: &str = "username";
const PASSWORD: &str = "password";

/// What a Secret of one format looks like.
#[derive(Clone, Copy)]
pub struct Form {
    /// The Secret's type.
    pub type_: &'static str,
    /// The labels by which the consumer finds it.
    pub labels: &'static [(&'static str, &'static str)],
    /// The annotations by which the consumer finds it, for the host whose token it holds.
    pub annotations: ByHost,
    /// The keys of its data. It has all of them and no others.
    pub keys: &'static [&'static str],
    /// What its data is made of.
    pub content: Content,
}

/// What the data of a Secret is made of.
#[derive(Clone, Copy)]
pub enum Content {
    /// A docker config with every host, under the only key.
    DockerConfig,
    /// `username` and `password` for one host, after these texts, which are not secret.
    Login(ByHost),
}

/// Texts by key, for a host.
type ByHost = fn(&Host) -> Vec<(&'static str, String)>;

const NOTHING: ByHost = |_| Vec::new();

/// What the kubelet reads as an image pull secret, and with it most other consumers.
const DOCKER_CONFIG_JSON: Form = Form {
    type_: "kubernetes.io/dockerconfigjson",
    labels: &[],
    annotations: NOTHING,
    keys: &[docker_config::DATA_KEY],
    content: Content::DockerConfig,
};

/// What Rancher, Fleet, Crossplane provider-helm and Flux's `HelmRepository` read.
const BASIC_AUTH: Form = Form {
    type_: "kubernetes.io/basic-auth",
    labels: &[],
    annotations: NOTHING,
    keys: &[USERNAME, PASSWORD],
    content: Content::Login(NOTHING),
};

/// The same keys in a type whose keys Kubernetes does not check.
const OPAQUE_BASIC_AUTH: Form = Form { type_: "Opaque", ..BASIC_AUTH };

/// A repository credential template of Argo CD, which Argo CD matches by a prefix of the repository's URL.
const REPO_CREDS: Form = Form { labels: &[("argocd.argoproj.io/secret-type", "repo-creds")], ..OPAQUE_BASIC_AUTH };

/// The form of a format.
pub const fn form(format: OutputFormat) -> Form {
    match format {
        OutputFormat::DockerConfigJson => DOCKER_CONFIG_JSON,
        // Mounted as it is, such as by Skaffold and the Cluster API Helm add-on.
        OutputFormat::DockerConfigFile => Form { type_: "Opaque", keys: &["config.json"], ..DOCKER_CONFIG_JSON },
        OutputFormat::BasicAuth => BASIC_AUTH,
        // For Helm charts in OCI registries, whose URL has no scheme.
        OutputFormat::ArgoCDHelm => Form {
            keys: &["url", "type", "enableOCI", USERNAME, PASSWORD],
            content: Content::Login(|host| {
                vec![("url", host.to_string()), ("type", "helm".to_owned()), ("enableOCI", "true".to_owned())]
            }),
            ..REPO_CREDS
        },
        // For native OCI sources. The slash at the end keeps the URL from longer host names.
        OutputFormat::ArgoCDOCI => Form {
            keys: &["url", "type", USERNAME, PASSWORD],
            content: Content::Login(|host| vec![("url", format!("oci://{host}/")), ("type", "oci".to_owned())]),
            ..REPO_CREDS
        },
        // A credential of the kubernetes-credentials-provider plugin, whose id is the Secret's name.
        OutputFormat::Jenkins => {
            Form { labels: &[("jenkins.io/credentials-type", "usernamePassword")], ..OPAQUE_BASIC_AUTH }
        }
        // For every image of one host, by a regular expression of Go.
        OutputFormat::KargoImage => Form {
            labels: &[("kargo.akuity.io/cred-type", "image")],
            keys: &["repoURL", "repoURLIsRegex", USERNAME, PASSWORD],
            content: Content::Login(|host| {
                // Of the characters that a host may have, the dot alone means something else in a regular expression.
                let pattern = format!("^{}/", host.as_str().replace('.', r"\."));
                vec![("repoURL", pattern), ("repoURLIsRegex", "true".to_owned())]
            }),
            ..OPAQUE_BASIC_AUTH
        },
        // Tekton finds it by its annotation among the Secrets of a ServiceAccount.
        OutputFormat::TektonBasicAuth => {
            Form { annotations: |host| vec![("tekton.dev/docker-0", format!("https://{host}"))], ..BASIC_AUTH }
        }
    }
}

/// The type and the data of a Secret. Its `Debug` output is redacted.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The Secret's type.
    pub type_: &'static str,
    data: BTreeMap<&'static str, SecretString>,
    /// `sha256:` and 64 hexadecimal digits over the data. Tokens are too long to be guessed from it.
    pub hash: String,
    /// A hash over the hosts: Secrets with the same hash differ only in their tokens.
    pub hosts: u64,
    /// The size of the data in bytes; a Secret can hold 1 MiB.
    pub bytes: usize,
}

impl Payload {
    /// A docker config, in a format that holds one.
    pub fn docker_config(form: Form, config: DockerConfig) -> Self {
        let key = form.keys.first().copied().unwrap_or(docker_config::DATA_KEY);
        let DockerConfig { base64, hash, hosts, bytes } = config;
        Self { type_: form.type_, data: BTreeMap::from([(key, base64)]), hash, hosts, bytes }
    }

    /// The token for one host, in a format that holds one; none if it is not a token of ECR.
    pub fn login(form: Form, texts: ByHost, host: &Host, auth: &DockerAuth) -> Option<Self> {
        let decoded = Zeroizing::new(STANDARD.decode(auth.expose()).ok()?);
        let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        let own = texts(host);
        let own = own.iter().map(|(key, text)| (*key, text.as_str()));
        let texts: Vec<(&'static str, &str)> = own.chain([(USERNAME, username), (PASSWORD, password)]).collect();
        let fields = Fields::new("data/v1").list(&texts, |fields, (key, value)| fields.text(key).text(value));
        let hash = format!("sha256:{}", fields.finish());
        let bytes = texts.iter().map(|(_, value)| value.len()).sum();
        let data = texts.iter().map(|(key, value)| (*key, SecretString::from(STANDARD.encode(value.as_bytes()))));
        let hosts = docker_config::hash_of([host.as_str()]);
        Some(Self { type_: form.type_, data: data.collect(), hash, hosts, bytes })
    }

    /// The data: values in base64, as Secrets have them, by key.
    pub fn expose_data(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.data.iter().map(|(key, value)| (*key, value.expose_secret()))
    }

    /// Whether the data has a key.
    pub fn has_key(&self, key: &str) -> bool {
        self.data.contains_key(key)
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
    let mut config = [OutputFormat::DockerConfigJson, OutputFormat::DockerConfigFile].map(form).into_iter();
    if let Some(json) = config.find_map(|form| data.get(*form.keys.first()?)) {
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
            assert_eq!(payload.type_, type_, "{format:?}");
            assert_eq!(form.labels, labels, "{format:?}");
            let found = (form.annotations)(&host());
            assert_eq!(found.iter().map(|(k, v)| (*k, v.as_str())).collect::<Vec<_>>(), annotations, "{format:?}");
            let expected: BTreeMap<String, Zeroizing<Vec<u8>>> =
                expected.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec().into())).collect();
            assert_eq!(data(&payload), expected, "{format:?}");
            assert_eq!(payload.hash, format!("sha256:{hash}"), "{format:?}");
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
            assert_eq!(payload.hosts, docker_config::hash_of([HOST]), "{format:?}");
            assert_eq!(matches!(form.content, Content::Login(_)), format.is_of_one_host(), "{format:?}");
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
        let Content::Login(texts) = form(OutputFormat::KargoImage).content else { panic!("a login") };
        let texts = texts(&Host::parse("registry.example-1.com:5000").unwrap());
        assert!(texts.contains(&("repoURL", r"^registry\.example-1\.com:5000/".to_owned())));
    }
}
