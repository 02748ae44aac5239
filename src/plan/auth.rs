//! `spec.auth` as validated values, and how it resolves to an AWS identity.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::SpecError;
use super::namespaces::NamespaceUid;
use super::references::{KeysRecord, References};
use super::scopes::{AccountScope, Reference, SecretKey};
use crate::api::arn::RoleArn;
use crate::api::registry::Region;
use crate::api::status::Reason;
use crate::api::{self, AssumeRole, KeysRef, ServiceAccountAuth};
use crate::encoding::{Digest, Fields};

/// The name of sessions whose spec gives none, as CloudTrail shows it.
pub const SESSION_NAME: &str = "ecr-credential-operator";

/// The audience of web identity tokens for STS, in every partition.
const STS_AUDIENCE: &str = "sts.amazonaws.com";

/// `auth` of a spec, validated. Its references are not resolved yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthPlan {
    base: Base,
    roles: Arc<[RoleStep]>,
    /// The region whose STS is called; none if no role is assumed.
    sts: Option<Region>,
    /// Why it cannot resolve to an identity, whatever its references are.
    refused: Option<SpecError>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Base {
    Operator,
    /// Without a namespace, the ServiceAccount of this name in each target namespace.
    Account {
        of: AccountScope,
        role: Option<RoleArn>,
        audiences: Vec<String>,
    },
    Keys(Keys),
    /// An `auth` that is no identity at all, and why.
    Invalid(SpecError),
}

/// Static keys in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keys {
    /// The Secret.
    pub secret: SecretKey,
    /// The key of its data with the access key id.
    pub access_key_id: String,
    /// The key of its data with the secret access key.
    pub secret_access_key: String,
    /// The key of its data with the session token, if there is to be one.
    pub session_token: Option<String>,
}

/// Digests that identify static keys. AWS generates keys at random, so they cannot be guessed from a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyMaterial {
    access_key_id: Digest,
    whole: Digest,
}

/// Which fields of an identity a digest covers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All fields.
    Whole,
    /// The fields that decide what its tokens may do.
    Principal,
}

/// One call of STS AssumeRole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleStep {
    /// The role.
    pub role: RoleArn,
    /// The external id.
    pub external_id: Option<String>,
    /// The session's name.
    pub session_name: String,
    /// The session's length in seconds.
    pub seconds: Option<i32>,
    /// Session tags.
    pub tags: BTreeMap<String, String>,
    /// The keys of the tags that pass to the next session in the chain.
    pub transitive_tag_keys: Vec<String>,
    /// The source identity.
    pub source_identity: Option<String>,
    /// The session policy.
    pub policy: Option<String>,
}

/// A resolved AWS identity. Equal identities share sessions and tokens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(Arc<Parts>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Parts {
    base: IdentitySource,
    roles: Arc<[RoleStep]>,
    sts: Option<Region>,
}

/// The credentials that an identity starts from, before any role is assumed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdentitySource {
    /// The operator's own identity.
    Operator,
    /// A ServiceAccount's web identity.
    Account(Account),
    /// Static keys.
    Keys {
        /// The Secret that holds them.
        keys: Keys,
        /// Their digests: rotated keys are a different identity.
        material: KeyMaterial,
    },
    /// The unknown identity behind a token that was recovered while `auth` did not resolve. Nothing is fetched with it.
    Unresolved,
}

/// A ServiceAccount with the role that its token is exchanged for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid: a recreated ServiceAccount is a different identity.
    pub uid: Arc<str>,
    /// The uid of the target namespace, if each has its own ServiceAccount. The deletion of a ServiceAccount may be observed
    /// after its namespace was recreated, and a token of the old namespace must not be used in the new one.
    pub namespace_uid: NamespaceUid,
    /// The role.
    pub role: RoleArn,
    /// The audiences of its token.
    pub audiences: Vec<String>,
}

impl Identity {
    /// The operator's own.
    pub fn operator() -> Self {
        Self(Arc::new(Parts { base: IdentitySource::Operator, roles: Arc::new([]), sts: None }))
    }

    /// The unknown identity behind a token that was recovered while `auth` did not resolve.
    pub fn unresolved() -> Self {
        Self(Arc::new(Parts { base: IdentitySource::Unresolved, roles: Arc::new([]), sts: None }))
    }

    /// Whether the identity is unknown.
    pub fn is_unresolved(&self) -> bool {
        self.0.base == IdentitySource::Unresolved
    }

    /// The credentials that it starts from.
    pub fn source(&self) -> &IdentitySource {
        &self.0.base
    }

    /// The roles to assume, in order.
    pub fn roles(&self) -> &[RoleStep] {
        &self.0.roles
    }

    /// The region whose STS is called; none if no role is assumed.
    pub fn sts_region(&self) -> Option<&Region> {
        self.0.sts.as_ref()
    }

    /// Whether it is the operator's own, without any role assumed from it.
    pub fn is_operators_own(&self) -> bool {
        self.0.base == IdentitySource::Operator && self.0.roles.is_empty()
    }

    /// A bounded value for metric labels and logs.
    pub fn kind(&self) -> &'static str {
        match (&self.0.base, self.0.roles.is_empty()) {
            (IdentitySource::Operator, true) => "operator",
            (IdentitySource::Operator, false) => "operator_role",
            (IdentitySource::Account(_), true) => "service_account",
            (IdentitySource::Account(_), false) => "service_account_role",
            (IdentitySource::Keys { .. }, true) => "secret",
            (IdentitySource::Keys { .. }, false) => "secret_role",
            (IdentitySource::Unresolved, _) => "former",
        }
    }

    /// A digest over all fields. An external id could be guessed from it, so it is published only together with a token, and
    /// only where its readers can read the spec as well.
    pub fn digest(&self) -> Digest {
        self.encode("identity/v1", Extent::Whole)
    }

    /// A digest over the fields that decide what its tokens may do, for annotations that tenants can read. External ids are
    /// left out: they only decide whether a role may be assumed, and could be guessed from the digest.
    pub fn principal(&self) -> Digest {
        self.encode("principal/v1", Extent::Principal)
    }

    fn encode(&self, name: &'static str, extent: Extent) -> Digest {
        let Parts { base, roles, sts } = &*self.0;
        let fields = base.encode(Fields::new(name), extent);
        let fields = fields.list(roles.iter(), |fields, step| step.encode(fields, extent));
        fields.optional(sts.as_ref().map(Region::as_str)).finish()
    }
}

impl IdentitySource {
    fn encode(&self, fields: Fields, extent: Extent) -> Fields {
        match self {
            Self::Operator => fields.text("operator"),
            Self::Account(Account { namespace, name, uid, namespace_uid, role, audiences }) => {
                let fields = fields.text("account").text(namespace).text(name).text(uid);
                namespace_uid.encode(fields).text(role.as_str()).texts(audiences)
            }
            Self::Keys { keys, material } => keys.encode(fields.text("keys")).digest(match extent {
                Extent::Whole => material.whole,
                // Not secret, and enough to distinguish the keys.
                Extent::Principal => material.access_key_id,
            }),
            Self::Unresolved => fields.text("former"),
        }
    }
}

impl Keys {
    /// The digests of the keys, from the record of their Secret.
    ///
    /// # Errors
    /// The Secret lacks one of them.
    pub fn material(&self, found: &KeysRecord) -> Result<KeyMaterial, SpecError> {
        let digest = |key: &str| {
            let lacks = || format!("Secret {} has no text under the key {key:?}", self.secret);
            let error = || SpecError { reason: Reason::IdentityNotFound, message: lacks() };
            found.texts.get(key).copied().ok_or_else(error)
        };
        let access_key_id = digest(&self.access_key_id)?;
        let fields = Fields::new("keys/v1").digest(access_key_id).digest(digest(&self.secret_access_key)?);
        let session_token = self.session_token.as_deref().map(digest).transpose()?;
        let whole = fields.list(session_token, Fields::digest).finish();
        Ok(KeyMaterial { access_key_id, whole })
    }

    fn encode(&self, fields: Fields) -> Fields {
        let Self { secret: SecretKey { namespace, name }, access_key_id, secret_access_key, session_token } = self;
        let fields = fields.text(namespace).text(name).text(access_key_id).text(secret_access_key);
        fields.optional(session_token.as_deref())
    }
}

impl RoleStep {
    fn encode(&self, fields: Fields, extent: Extent) -> Fields {
        let Self { role, external_id, session_name, seconds, tags, transitive_tag_keys, source_identity, policy } =
            self;
        let external_id = external_id.as_deref().filter(|_| extent == Extent::Whole);
        let fields = fields.text(role.as_str()).optional(external_id).text(session_name);
        let fields = fields.list(seconds, |fields, seconds| fields.number(i64::from(*seconds)));
        let fields = fields.map(tags).texts(transitive_tag_keys);
        fields.optional(source_identity.as_deref()).optional(policy.as_deref())
    }
}

/// For people: the source, then the roles.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.base {
            IdentitySource::Operator => f.write_str("the operator's own identity")?,
            IdentitySource::Account(account) => write!(f, "ServiceAccount {}/{}", account.namespace, account.name)?,
            IdentitySource::Keys { keys, .. } => write!(f, "the keys in Secret {}", keys.secret)?,
            IdentitySource::Unresolved => f.write_str("a former identity")?,
        }
        let first = match &self.0.base {
            IdentitySource::Account(account) => Some(&account.role),
            _ => None,
        };
        for role in first.into_iter().chain(self.0.roles.iter().map(|step| &step.role)) {
            write!(f, " → {role}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AuthPlan {
    /// The operator's own identity.
    pub fn operator() -> Self {
        Self { base: Base::Operator, roles: Arc::new([]), sts: None, refused: None }
    }

    /// An `auth` that is no identity at all: a registry that uses it is not refreshed, and the others are.
    pub fn invalid(why: SpecError) -> Self {
        Self { base: Base::Invalid(why), ..Self::operator() }
    }

    /// The same `auth`, refused: a registry that uses it is not refreshed, and the others are.
    pub fn refused(self, why: SpecError) -> Self {
        Self { refused: Some(why), ..self }
    }

    /// Why it is refused, if that is known without its references.
    pub fn refusal(&self) -> Option<&SpecError> {
        let invalid = || if let Base::Invalid(why) = &self.base { Some(why) } else { None };
        self.refused.as_ref().or_else(invalid)
    }

    /// Validates `auth` for the tokens of one region. `own` is the operator's region, whose STS is called if it is in the same
    /// partition.
    ///
    /// # Errors
    /// A [`SpecError`] that says what to change.
    pub fn parse(spec: Option<&api::Auth>, region: &Region, own: Option<&Region>) -> Result<Self, SpecError> {
        let Some(spec) = spec.filter(|auth| !auth.is_operators_own()) else { return Ok(Self::operator()) };
        let base = match (&spec.service_account, &spec.secret_ref) {
            (Some(_), Some(_)) => {
                return Err(SpecError::invalid("auth takes serviceAccount or secretRef, not both"));
            }
            (Some(account), None) => account_base(account, region)?,
            (None, Some(keys)) => Base::Keys(keys_of(keys)),
            (None, None) => Base::Operator,
        };
        let roles: Vec<RoleStep> =
            spec.assume_roles.iter().map(|role| role_step(role, region)).collect::<Result<_, _>>()?;
        let near = own.filter(|own| own.partition_name() == region.partition_name());
        Ok(Self { base, roles: roles.into(), sts: Some(near.unwrap_or(region).clone()), refused: None })
    }

    /// A digest over all fields, whether or not they are allowed. As with [`Identity::digest`], an external id could be
    /// guessed from it alone.
    pub fn digest(&self) -> Digest {
        let fields = Fields::new("auth/v1");
        let fields = match &self.base {
            Base::Operator => fields.text("operator"),
            Base::Account { of: AccountScope { namespace, name }, role, audiences } => {
                let fields = match namespace {
                    Some(namespace) => fields.text("account").text(namespace),
                    None => fields.text("account of each target"),
                };
                fields.text(name).optional(role.as_ref().map(RoleArn::as_str)).texts(audiences)
            }
            Base::Keys(keys) => keys.encode(fields.text("keys")),
            Base::Invalid(_) => fields.text("invalid"),
        };
        let fields = fields.list(self.roles.iter(), |fields, step| step.encode(fields, Extent::Whole));
        fields.optional(self.sts.as_ref().map(Region::as_str)).finish()
    }

    /// Whether each target namespace has an identity of its own. A refusal applies to all namespaces.
    pub fn is_each_targets(&self) -> bool {
        self.refused.is_none() && matches!(self.base, Base::Account { of: AccountScope { namespace: None, .. }, .. })
    }

    /// The ServiceAccounts or the Secret that it refers to.
    pub fn reference(&self) -> Option<Reference> {
        match &self.base {
            Base::Operator | Base::Invalid(_) => None,
            Base::Account { of, .. } => Some(Reference::Account(of.clone())),
            Base::Keys(keys) => Some(Reference::Keys(keys.secret.clone())),
        }
    }

    /// The ServiceAccount or Secret that it refers to; in this target namespace, if each has its own.
    pub fn reference_in(&self, target: Option<&str>) -> Option<Reference> {
        Some(match self.reference()? {
            Reference::Account(AccountScope { namespace, name }) => {
                Reference::Account(AccountScope { namespace: namespace.or_else(|| target.map(Into::into)), name })
            }
            keys => keys,
        })
    }

    /// Resolves the identity; in this target namespace, if each has its own.
    ///
    /// # Errors
    /// A reference is missing or not allowed. The message says what to do.
    pub fn resolve(
        &self,
        target: Option<(&str, NamespaceUid)>,
        references: &References,
    ) -> Result<Identity, SpecError> {
        if let Some(why) = &self.refused {
            return Err(why.clone());
        }
        let base = match &self.base {
            Base::Operator => IdentitySource::Operator,
            Base::Invalid(why) => return Err(why.clone()),
            Base::Account { of, role, audiences } => {
                let (namespace, namespace_uid) = match &of.namespace {
                    Some(namespace) => (namespace.clone(), NamespaceUid::default()),
                    None => target.map(|(namespace, uid)| (namespace.into(), uid)).unwrap_or_default(),
                };
                let account = self.account(namespace, &of.name, role.as_ref(), audiences, references)?;
                IdentitySource::Account(Account { namespace_uid, ..account })
            }
            Base::Keys(keys) => {
                let found = references.keys(&keys.secret)?;
                IdentitySource::Keys { keys: keys.clone(), material: keys.material(found)? }
            }
        };
        Ok(Identity(Arc::new(Parts { base, roles: self.roles.clone(), sts: self.sts.clone() })))
    }

    fn account(
        &self,
        namespace: Arc<str>,
        name: &Arc<str>,
        role: Option<&RoleArn>,
        audiences: &[String],
        references: &References,
    ) -> Result<Account, SpecError> {
        let found = references.account(&namespace, name)?;
        let lacks = |message: String| SpecError { reason: Reason::IdentityNotFound, message };
        let role = match (role, &found.role) {
            (Some(role), _) => role.clone(),
            (None, Some(text)) => RoleArn::parse(text).map_err(|e| {
                lacks(format!(
                    "the annotation eks.amazonaws.com/role-arn of ServiceAccount {namespace}/{name} is wrong: {e}"
                ))
            })?,
            (None, None) => {
                return Err(lacks(format!(
                    "ServiceAccount {namespace}/{name} has no annotation eks.amazonaws.com/role-arn: annotate it, or set serviceAccount.roleArn"
                )));
            }
        };
        if let Some(region) = self.sts.as_ref().filter(|region| !role.is_in_partition_of(region)) {
            return Err(lacks(other_partition(&role, region)));
        }
        let audiences = match (audiences, &found.audience) {
            ([], Some(audience)) => vec![audience.clone()],
            ([], None) => vec![STS_AUDIENCE.to_owned()],
            (given, _) => given.to_vec(),
        };
        let namespace_uid = NamespaceUid::default();
        Ok(Account { namespace, name: name.clone(), uid: found.uid.clone(), namespace_uid, role, audiences })
    }
}

fn account_base(account: &ServiceAccountAuth, region: &Region) -> Result<Base, SpecError> {
    let of = match (&account.from_target_namespace, &account.namespace, &account.name) {
        (Some(name), None, None) => AccountScope { namespace: None, name: name.as_str().into() },
        (None, Some(namespace), Some(name)) => {
            AccountScope { namespace: Some(namespace.as_str().into()), name: name.as_str().into() }
        }
        _ => {
            let message = "auth.serviceAccount takes either namespace and name, or fromTargetNamespace alone";
            return Err(SpecError::invalid(message));
        }
    };
    let role = account.role_arn.as_deref().map(|text| role_of(text, region)).transpose()?;
    Ok(Base::Account { of, role, audiences: account.audiences.clone() })
}

fn keys_of(keys: &KeysRef) -> Keys {
    Keys {
        secret: SecretKey::new(keys.name.as_str(), keys.namespace.as_str()),
        access_key_id: keys.access_key_id_key.clone(),
        secret_access_key: keys.secret_access_key_key.clone(),
        session_token: keys.session_token_key.clone(),
    }
}

fn role_step(step: &AssumeRole, region: &Region) -> Result<RoleStep, SpecError> {
    if step.session_policy.as_deref().is_some_and(|text| serde_json::from_str::<serde_json::Map<_, _>>(text).is_err()) {
        return Err(SpecError::invalid(format!("the sessionPolicy for {} is not a JSON object", step.role_arn)));
    }
    Ok(RoleStep {
        role: role_of(&step.role_arn, region)?,
        external_id: step.external_id.clone(),
        session_name: step.session_name.clone().unwrap_or_else(|| SESSION_NAME.to_owned()),
        seconds: step.duration_seconds,
        tags: step.tags.clone(),
        transitive_tag_keys: step.transitive_tag_keys.clone(),
        source_identity: step.source_identity.clone(),
        policy: step.session_policy.clone(),
    })
}

fn role_of(text: &str, region: &Region) -> Result<RoleArn, SpecError> {
    let role = RoleArn::parse(text).map_err(SpecError::invalid)?;
    if role.is_in_partition_of(region) { Ok(role) } else { Err(SpecError::invalid(other_partition(&role, region))) }
}

fn other_partition(role: &RoleArn, region: &Region) -> String {
    format!(
        "role {role} is in the partition {} and region {region} in {}: no identity reaches from one to the other",
        role.partition(),
        region.partition_name()
    )
}

#[cfg(test)]
mod tests {
    use super::super::references::{AccountRecord, AllowedIdentities, KeysRecord};
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    fn parsed(auth: Value) -> AuthPlan {
        let region = Region::parse("eu-west-1").unwrap();
        let auth: Option<api::Auth> = serde_json::from_value(auth).unwrap();
        AuthPlan::parse(auth.as_ref(), &region, None).unwrap()
    }

    fn references() -> References {
        let scope = SecretKey { namespace: "ops".into(), name: "keys".into() };
        let accounts = BTreeSet::from([AccountScope { namespace: None, name: "puller".into() }]);
        let mut references = References::new(AllowedIdentities { accounts, keys: BTreeSet::from([scope.clone()]) });
        let account = AccountRecord {
            uid: "uid-of-the-account".into(),
            created: Timestamp::UNIX_EPOCH,
            role: Some("arn:aws:iam::111122223333:role/account".to_owned()),
            audience: None,
        };
        references.set_account("ops", "puller", Some(account));
        let texts =
            [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "B"), ("id", "C"), ("key", "D"), ("token", "E")];
        references.set_keys(&scope, Some(KeysRecord::of(texts)));
        references
    }

    fn identity(auth: &AuthPlan) -> Identity {
        let namespace_uid = NamespaceUid::of("uid-of-the-namespace", Timestamp::from_second(1_767_225_600).ok());
        auth.resolve(Some(("ops", namespace_uid)), &references()).unwrap()
    }

    /// What stands in statuses and annotations: with other values, an upgrade fetches and writes everything anew.
    #[test]
    fn the_digests_of_identities_are_the_same_in_every_build() {
        let role = |n: u8| format!("arn:aws:iam::111122223333:role/{n}");
        let account = json!({ "namespace": "ops", "name": "puller" });
        let full = json!([
            { "roleArn": role(1), "externalId": "x-1", "sessionName": "hop", "durationSeconds": 900, "tags": { "a": "b", "c": "" },
              "transitiveTagKeys": ["a"], "sourceIdentity": "me", "sessionPolicy": "{}" },
            { "roleArn": role(2) },
        ]);
        let table = [
            (
                "the operator's own",
                json!(null),
                "ef6c48a9194c5b0ce1fa843869118e803c5d49be30e9d86f46da78dbf9cb90ad",
                "5bbad3a38c467075dbca807c7dec1329310b6a4b39c4b6669a9d090b03bad66a",
                "53c0bfbb387540439091068093924fc8403c2501992426e7adc38a432a7568d5",
            ),
            (
                "its role",
                json!({ "assumeRoles": [{ "roleArn": role(1) }] }),
                "d9be64ac8f13cf0d132b771e8969c7a21dfc4c1f78b9142268700f01ef7b9693",
                "5cb1c9bacf0056badacca0a256b4faa55d973db146ed7aa7a7fbffed4e9bdcf1",
                "ab0d01539196e35e2a45edaf6c7d06073e43f38189e0ae9fceed6a66bf874f15",
            ),
            (
                "a chain with every field",
                json!({ "assumeRoles": full }),
                "4b5f7f271bf94c83ad02d8ea831f51c4600f8acc8e544935e497067e5d0b573f",
                "a5fcc04066b3c9c1e0824a4a9e43edd092d93c55f3002fe0f5a2b887214bea8b",
                "3dc95ac7dea8ec3a2e878ca25240a49c1305d74426f1960ec6f845461acbed68",
            ),
            (
                "an account",
                json!({ "serviceAccount": account }),
                "2ce2cde121867fd005b2d30cdbc14e2856b0aab0fbed0bd4e22164eead5fd2dd",
                "69b94e5d3b7c586ca1270099a8a89bb4ac2e06768b0490c9fe55f67cf00e8f8d",
                "9d1f272fa212eab9b6b0df424824e84918df3fe0d23733dfc0e57382c054706c",
            ),
            (
                "an account with role and audiences",
                json!({ "serviceAccount": { "namespace": "ops", "name": "puller", "roleArn": role(3), "audiences": ["a", "b"] } }),
                "61de4623be2b63cd43fcb1410aeef67a99820a6165eb5d119a1145f85d959872",
                "644f8f0c3e621d70077b7b1758a5f72fad36f15c500002b95735c5aec7b3708c",
                "d1b831e1173443d6f2f3688030f4d9be390c6fd4f6621b543c142448f427586d",
            ),
            (
                "each target's account",
                json!({ "serviceAccount": { "fromTargetNamespace": "puller" }, "assumeRoles": [{ "roleArn": role(1) }] }),
                "47047276344d795eae362af788b2f61195913439602e91ef7c4a9af412fe9333",
                "ae0e65c96c852921e5715259399a4b8797f0351e4b37edc0ca3e9ab7d155faee",
                "622a723b37fae0a73e64e0cccf6c2d6a92b95a83d9c147cfedaa1baa4098d4a4",
            ),
            (
                "keys",
                json!({ "secretRef": { "namespace": "ops", "name": "keys" } }),
                "fe663ce45320a6b736cf01afd3cf02c68a633b16568eb4a7c8d989856f55e09b",
                "e52417091bf05935f40613d580228aa227b1f988e1e0a3213b9bce200a9e4dcc",
                "cb9009acfd9fbc07a8774c79c8465609758ed5e238644ff58271d31048c7b5aa",
            ),
            (
                "temporary keys under other names",
                json!({ "secretRef": { "namespace": "ops", "name": "keys", "accessKeyIdKey": "id", "secretAccessKeyKey": "key", "sessionTokenKey": "token" } }),
                "cdb23da6d1d7a0ae580848bef7e35fadad6e14d74ea692560a11fa43dfc7eb2c",
                "45deb0bddce87df9f8c2a4a76b1644f1490188af49b6d90fc4e372e2ba7a2f9c",
                "8c522f35372afa2e7cfe4ce3be34da294b700cf5301e318a1d139fe030f6fc1b",
            ),
        ];
        for (name, auth, whole, principal, said) in table {
            let auth = parsed(auth);
            let identity = identity(&auth);
            let seen = [identity.digest(), identity.principal(), auth.digest()].map(|digest| digest.to_string());
            assert_eq!(seen, [whole, principal, said], "{name}");
        }
    }

    #[test]
    fn whichever_of_the_keys_is_replaced_is_another_identity() {
        let names = ["id", "secret", "session"].map(str::to_owned);
        let [access_key_id, secret_access_key, session_token] = names.clone();
        let (secret, session_token) = (SecretKey::new("keys", "ops"), Some(session_token));
        let keys = Keys { secret, access_key_id, secret_access_key, session_token };
        let material = |replaced: &str| {
            let text = |name: &str| if name == replaced { "new" } else { "old" };
            keys.material(&KeysRecord::of(names.iter().map(|name| (name.as_str(), text(name))))).unwrap()
        };
        assert_eq!(material("another"), material("another"));
        for name in &names {
            assert_ne!(material(name), material("another"), "{name}");
        }
    }

    #[test]
    fn every_field_makes_another_identity_and_an_external_id_is_not_told_by_the_principal() {
        let with = |field: &str, value: Value| {
            let mut step = json!({ "roleArn": "arn:aws:iam::111122223333:role/1" });
            step[field] = value;
            identity(&parsed(json!({ "assumeRoles": [step] })))
        };
        let plain = with("sessionName", json!(SESSION_NAME));
        for (field, value) in [
            ("roleArn", json!("arn:aws:iam::111122223333:role/2")),
            ("sessionName", json!("other")),
            ("durationSeconds", json!(900)),
            ("tags", json!({ "a": "b" })),
            ("sourceIdentity", json!("me")),
            ("sessionPolicy", json!("{}")),
        ] {
            let other = with(field, value);
            assert_ne!(other.digest(), plain.digest(), "{field}");
            assert_ne!(other.principal(), plain.principal(), "{field}");
        }
        let other = with("externalId", json!("x-1"));
        assert_ne!(other.digest(), plain.digest());
        assert_eq!(other.principal(), plain.principal());
    }
}
