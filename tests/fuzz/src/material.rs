//! What arbitrary bytes are turned into: times, specs, tokens. Mostly of the right form, so that what lies behind the first
//! check is reached, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ecr_credential_operator::api::registry::{AccountId, Region};
use ecr_credential_operator::api::{
    AssumeRole, Auth as AuthSpec, ConflictPolicy, DeletionPolicy, EcrCredentialSpec, HostVariant, KeysRef,
    LabelRequirement, LoginFields, NamespaceSelection, NamespaceSelector, Output, OutputFormat, PrivateRegistry,
    PublicRegistry, Refresh, Registry, SecretTemplate, SelectorOperator, ServiceAccountAuth,
};
use ecr_credential_operator::plan::namespaces::Labels;
use ecr_credential_operator::plan::references::AllowedIdentities;
use ecr_credential_operator::plan::schedule::{Life, whole_seconds};
use ecr_credential_operator::plan::scopes::{AccountScope, SecretKey};
use ecr_credential_operator::plan::{Identity, Limits, Service, TokenSpec};
use ecr_credential_operator::token::{AuthorizationToken, DockerAuth, Token};
use k8s_openapi::jiff::Timestamp;

/// The time around which most happens, in seconds since 1970.
pub const AROUND: i64 = 1_800_000_000;

pub const HOUR: i64 = 3600;

/// One of each partition, then some that are no region or not one of these.
pub const REGIONS: [&str; 14] = [
    "eu-west-1",
    "us-east-1",
    "us-gov-west-1",
    "cn-north-1",
    "eusc-de-east-1",
    "us-iso-east-1",
    "us-isob-east-1",
    "eu-isoe-west-1",
    "us-isof-south-1",
    "ap-southeast-7",
    "mx-central-1",
    "eu-west-1a",
    "EU-WEST-1",
    "",
];

pub const ACCOUNTS: [&str; 6] =
    ["111122223333", "012345678901", "999999999999", "000000000000", "11112222333", "11112222333a"];

/// Names of namespaces.
pub const NAMESPACES: [&str; 8] = ["a", "b", "team-a", "team-b", "kube-system", "default", "ab", "payments"];

const KEYS: [&str; 4] = ["pull", "example.com/team", "stage", "x"];
const VALUES: [&str; 4] = ["ecr", "a", "", "A.b_c-d"];

pub fn second(at: i64) -> Timestamp {
    Timestamp::from_second(at).unwrap_or(if at < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// A time: mostly of the days around one, sometimes any that can be written.
pub fn moment(u: &mut Unstructured<'_>) -> Result<Timestamp> {
    Ok(match u.int_in_range(0..=15)? {
        0 => Timestamp::MIN,
        1 => Timestamp::MAX,
        2 => Timestamp::UNIX_EPOCH,
        3 => second(u.int_in_range(Timestamp::MIN.as_second()..=Timestamp::MAX.as_second())?),
        4 => Timestamp::new(AROUND, u.int_in_range(0..=999_999_999)?).unwrap_or_default(),
        5..=9 => second(AROUND + HOUR / 2 * u.int_in_range(-30..=30)?),
        _ => second(AROUND + u.int_in_range(-100_000..=100_000)?),
    })
}

/// A life in whole seconds, as all are; it may be over before it begins.
pub fn life(u: &mut Unstructured<'_>) -> Result<Life> {
    Ok(Life { issued_at: whole_seconds(moment(u)?), expires_at: whole_seconds(moment(u)?) })
}

/// A life as `token::check` gives it at `now`: in whole seconds, and no longer than twelve hours.
pub fn good_life(u: &mut Unstructured<'_>, now: i64) -> Result<Life> {
    Ok(Life { issued_at: second(now), expires_at: second(now + u.int_in_range(1..=12 * HOUR)?) })
}

/// Some of a list's members, each at most once.
pub fn some<T: Clone>(u: &mut Unstructured<'_>, of: &[T]) -> Result<Vec<T>> {
    let mut chosen = Vec::new();
    let mut mask: u32 = u.arbitrary()?;
    for item in of {
        if mask & 1 == 1 {
            chosen.push(item.clone());
        }
        mask >>= 1;
    }
    Ok(chosen)
}

/// Mostly one of a list, sometimes any short text.
pub fn word(u: &mut Unstructured<'_>, of: &[&str]) -> Result<String> {
    if u.ratio(1, 12)? {
        let text: &str = u.arbitrary()?;
        return Ok(text.chars().take(300).collect());
    }
    Ok((*u.choose(of)?).to_owned())
}

pub fn labels(u: &mut Unstructured<'_>) -> Result<Labels> {
    let keys = some(u, &KEYS)?;
    keys.into_iter().map(|key| Ok((key.to_owned(), (*u.choose(&VALUES)?).to_owned()))).collect()
}

/// A glob of the letters that names have, or a name.
pub fn glob(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(1, 3)? {
        return Ok((*u.choose(&NAMESPACES)?).to_owned());
    }
    let length = u.int_in_range(1..=8)?;
    (0..length).map(|_| Ok(*u.choose(&['*', '?', 'a', 'b', 'e', '-', 't'])?)).collect()
}

pub fn selection(u: &mut Unstructured<'_>) -> Result<NamespaceSelection> {
    let globs = |u: &mut Unstructured<'_>| {
        let number = u.int_in_range(0..=3)?;
        (0..number).map(|_| glob(u)).collect::<Result<Vec<String>>>()
    };
    let names = globs(u)?;
    let selector = u.arbitrary::<bool>()?.then(|| selector(u)).transpose()?;
    Ok(NamespaceSelection { names, selector, exclude: globs(u)? })
}

fn selector(u: &mut Unstructured<'_>) -> Result<NamespaceSelector> {
    use SelectorOperator::{DoesNotExist, Exists, In, NotIn};
    let match_labels = labels(u)?;
    let number = u.int_in_range(0..=2)?;
    let requirement = |u: &mut Unstructured<'_>| {
        Ok(LabelRequirement {
            key: (*u.choose(&KEYS)?).to_owned(),
            operator: *u.choose(&[In, NotIn, Exists, DoesNotExist])?,
            values: some(u, &VALUES)?.into_iter().map(str::to_owned).collect(),
        })
    };
    let match_expressions = (0..number).map(|_| requirement(u)).collect::<Result<_>>()?;
    Ok(NamespaceSelector { match_labels, match_expressions })
}

pub fn template(u: &mut Unstructured<'_>) -> Result<SecretTemplate> {
    let annotations = some(u, &["note", "example.com/note", "pullsecrets.dev/expires-at"])?;
    let annotation = |key: &str| Ok((key.to_owned(), word(u, &["", "a=b", "x\ny"])?));
    let annotations = annotations.into_iter().map(annotation).collect::<Result<_>>()?;
    Ok(SecretTemplate {
        name: (*u.choose(&["pull", "ecr-pull-secret", "other"])?).to_owned(),
        labels: labels(u)?,
        annotations,
        conflict_policy: *u.choose(&[ConflictPolicy::Fail, ConflictPolicy::Adopt])?,
        deletion_policy: *u.choose(&[DeletionPolicy::Delete, DeletionPolicy::Retain])?,
        login_fields: login_fields(u)?,
    })
}

pub fn registry(u: &mut Unstructured<'_>) -> Result<Registry> {
    let auth = u.ratio(1, 4)?.then(|| auth(u)).transpose()?;
    if u.ratio(1, 4)? {
        return Ok(Registry {
            private: None,
            public: Some(PublicRegistry { host_variants: some(u, &PUBLIC_VARIANTS)? }),
            auth,
        });
    }
    let mut account_ids = some(u, &ACCOUNTS[..4])?.into_iter().map(str::to_owned).collect::<Vec<_>>();
    if u.ratio(1, 8)? {
        account_ids.push(word(u, &ACCOUNTS)?);
    }
    if u.ratio(1, 8)? {
        // Enough for several calls.
        account_ids.extend((0..u.int_in_range(0..=30_u8)?).map(|n| format!("{n:012}")));
    }
    let extra = ["vpce-1.dkr.ecr.eu-west-1.vpce.amazonaws.com", "registry.example.com:5000", "a.b:0", "https://a.b"];
    let mut extra_hosts = some(u, &extra[..2])?.into_iter().map(str::to_owned).collect::<Vec<_>>();
    if u.ratio(1, 8)? {
        extra_hosts.push(word(u, &extra)?);
    }
    if u.ratio(1, 8)? {
        let (account, region) = (*u.choose(&ACCOUNTS)?, *u.choose(&REGIONS)?);
        extra_hosts.push(format!("{account}.dkr.ecr.{region}.amazonaws.com"));
    }
    let regions = if u.ratio(1, 2)? { &REGIONS[..2] } else { &REGIONS[..] };
    let region = u.ratio(7, 8)?.then(|| word(u, regions)).transpose()?;
    let private = PrivateRegistry {
        region,
        account_ids,
        host_variants: some(u, &HostVariant::ALL)?,
        api_endpoint: *u.choose(&HostVariant::ALL)?,
        extra_hosts,
        request_registry_ids: u.arbitrary()?,
    };
    Ok(Registry { private: Some(private), public: None, auth })
}

fn role(u: &mut Unstructured<'_>) -> Result<String> {
    let partition = u.choose(&["aws", "aws-cn", "aws-us-gov", "aws-eusc", "aws-iso", "aws-iso-b"])?;
    let role = format!("arn:{partition}:iam::111122223333:role/pull");
    word(u, &[&role, "arn:aws:iam::111122223333:role/team/pull"])
}

fn auth(u: &mut Unstructured<'_>) -> Result<AuthSpec> {
    let service_account = u.ratio(1, 3)?.then(|| service_account(u)).transpose()?;
    let secret_ref = u.ratio(1, 4)?.then(|| keys(u)).transpose()?;
    let steps = u.int_in_range(0..=2)?;
    let step = |u: &mut Unstructured<'_>| {
        Ok(AssumeRole {
            role_arn: role(u)?,
            external_id: None,
            session_name: u.ratio(1, 4)?.then(|| word(u, &["me"])).transpose()?,
            duration_seconds: u.ratio(1, 4)?.then(|| u.arbitrary()).transpose()?,
            tags: BTreeMap::new(),
            transitive_tag_keys: Vec::new(),
            source_identity: None,
            session_policy: u.ratio(1, 4)?.then(|| word(u, &["{}", "{\"a\":[1e999]}", "[]"])).transpose()?,
        })
    };
    let assume_roles = (0..steps).map(|_| step(u)).collect::<Result<_>>()?;
    Ok(AuthSpec { service_account, secret_ref, assume_roles })
}

fn service_account(u: &mut Unstructured<'_>) -> Result<ServiceAccountAuth> {
    let each = u.arbitrary::<bool>()?;
    let name = |u: &mut Unstructured<'_>, names: &[&str], is: bool| is.then(|| word(u, names)).transpose();
    Ok(ServiceAccountAuth {
        namespace: name(u, &NAMESPACES, !each)?,
        name: name(u, &["puller"], !each)?,
        from_target_namespace: name(u, &["puller"], each)?,
        role_arn: u.arbitrary::<bool>()?.then(|| role(u)).transpose()?,
        audiences: Vec::new(),
    })
}

fn keys(u: &mut Unstructured<'_>) -> Result<KeysRef> {
    Ok(KeysRef {
        namespace: "a".to_owned(),
        name: word(u, &["keys"])?,
        access_key_id_key: "id".to_owned(),
        secret_access_key_key: "key".to_owned(),
        session_token_key: None,
    })
}

pub fn spec(u: &mut Unstructured<'_>) -> Result<EcrCredentialSpec> {
    let number = u.int_in_range(1..=4)?;
    let registries = (0..number).map(|_| registry(u)).collect::<Result<_>>()?;
    let ages =
        ["6h", "90m", "1m", "12h", "1h30m", "0s", "-1h", "99999h99999m", "1h-5m", "1e30h", "9999999999999999999h"];
    Ok(EcrCredentialSpec {
        registries,
        auth: u.ratio(1, 4)?.then(|| auth(u)).transpose()?,
        secret: template(u)?,
        namespaces: if u.ratio(1, 8)? { selection(u)? } else { everywhere() },
        outputs: (0..u.int_in_range(0..=2)?).map(|number| output(u, number)).collect::<Result<_>>()?,
        include: Vec::new(),
        attach_to: None,
        refresh: Refresh {
            at_percent: u.arbitrary()?,
            max_age: if u.ratio(1, 4)? { word(u, &ages)? } else { "6h".to_owned() },
        },
        suspend: false,
    })
}

const PUBLIC_VARIANTS: [HostVariant; 3] = [HostVariant::Standard, HostVariant::DualStack, HostVariant::Fips];

fn login_fields(u: &mut Unstructured<'_>) -> Result<LoginFields> {
    Ok(*u.choose(&[LoginFields::Auth, LoginFields::Auth, LoginFields::AuthUsernamePassword])?)
}

pub fn output(u: &mut Unstructured<'_>, number: u8) -> Result<Output> {
    let account = *u.choose(&ACCOUNTS)?;
    let own = format!("{account}.dkr.ecr.eu-west-1.amazonaws.com");
    let host = word(u, &[own.as_str(), "public.ecr.aws", "ecr-public.aws.com", "https://a.b"])?;
    Ok(Output {
        name: if u.ratio(1, 16)? { "pull".to_owned() } else { format!("out-{number}") },
        format: *u.choose(&OutputFormat::ALL)?,
        host: u.ratio(7, 8)?.then_some(host),
        namespaces: u.ratio(1, 8)?.then(|| selection(u)).transpose()?,
        labels: labels(u)?,
        annotations: Default::default(),
        login_fields: login_fields(u)?,
    })
}

fn everywhere() -> NamespaceSelection {
    NamespaceSelection { names: vec!["*".to_owned()], selector: None, exclude: Vec::new() }
}

pub fn limits(u: &mut Unstructured<'_>) -> Result<Limits> {
    let puller = |namespace: Option<&str>| AccountScope { namespace: namespace.map(Into::into), name: "puller".into() };
    let accounts = some(u, &[puller(None), puller(Some("a")), puller(Some("team-a"))])?;
    let keys = some(u, &[SecretKey { namespace: "a".into(), name: "keys".into() }])?;
    let names: BTreeSet<Arc<str>> = BTreeSet::from(["pull".into(), "ecr-pull-secret".into()]);
    Ok(Limits {
        region: Region::parse(u.choose(&REGIONS)?).ok(),
        secret_names: u.ratio(1, 8)?.then_some(names),
        outputs: None,
        includes: BTreeSet::new(),
        namespaces: None,
        identities: AllowedIdentities { accounts: accounts.into_iter().collect(), keys: keys.into_iter().collect() },
        attach_pods: false,
        attach_service_accounts: BTreeSet::new(),
        fixed_api: u.ratio(1, 8)?,
    })
}

pub fn login(password: &str) -> DockerAuth {
    DockerAuth::parse(STANDARD.encode(format!("AWS:{password}"))).expect("a password")
}

pub fn account(id: &str) -> AccountId {
    AccountId::parse(id).expect("twelve digits")
}

/// What AWS grants for a need: a password that says for whom it is and when it was issued.
pub fn grant(need: &TokenSpec, life: Life, caller: Option<&AccountId>) -> Arc<AuthorizationToken> {
    let token = |account: Option<AccountId>| {
        let whose = account.as_ref().map_or("anyone", AccountId::as_str);
        let auth = login(&format!("{whose}/{}/{}", need.service.region(), life.issued_at));
        Token { auth, account }
    };
    let tokens = match &need.service {
        Service::Private { registry_ids, .. } if !registry_ids.is_empty() => {
            registry_ids.iter().map(|id| token(Some(id.clone()))).collect()
        }
        Service::Private { .. } => vec![token(caller.cloned())],
        Service::Public => vec![token(None)],
    };
    Arc::new(AuthorizationToken { tokens, life, identity: Identity::operator() })
}
