//! IAM as far as the stand-in knows it: roles, whom they trust, and what they may do.

use std::collections::BTreeMap;
use std::time::Duration;

/// An IAM role.
#[derive(Clone, Debug)]
pub struct Role {
    /// `arn:aws:iam::123456789012:role/pull`.
    pub arn: String,
    pub trust: Vec<Trust>,
    pub permissions: Permissions,
    /// The role's `MaxSessionDuration`; IAM's default is one hour.
    pub max_session: Duration,
}

impl Role {
    /// A role that may fetch tokens of both registries and assume other roles, and that trusts nobody yet.
    pub fn new(arn: &str) -> Self {
        Role {
            arn: arn.to_owned(),
            trust: Vec::new(),
            permissions: Permissions::pull(),
            max_session: Duration::from_secs(3600),
        }
    }

    /// Adds whom it trusts.
    #[must_use]
    pub fn trusting(mut self, trust: impl Into<Trust>) -> Self {
        self.trust.push(trust.into());
        self
    }

    #[must_use]
    pub fn with_permissions(mut self, permissions: Permissions) -> Self {
        self.permissions = permissions;
        self
    }

    #[must_use]
    pub fn with_max_session(mut self, longest: Duration) -> Self {
        self.max_session = longest;
        self
    }
}

/// One statement of a role's trust policy.
#[derive(Clone, Debug)]
pub enum Trust {
    WebIdentity(WebIdentityTrust),
    Principal(PrincipalTrust),
}

/// A statement that allows `sts:AssumeRoleWithWebIdentity` under `StringLike` conditions on `sub` and `aud`.
#[derive(Clone, Debug)]
pub struct WebIdentityTrust {
    pub issuer: String,
    pub subject: String,
    pub audience: String,
}

/// A statement that allows `sts:AssumeRole` to one principal.
#[derive(Clone, Debug)]
pub struct PrincipalTrust {
    /// A role, a user, or `arn:aws:iam::123456789012:root` for a whole account.
    pub arn: String,
    /// The condition on `sts:ExternalId`.
    pub external_id: Option<String>,
    /// Conditions on `aws:RequestTag/KEY` and inherited tags.
    pub required_tags: BTreeMap<String, String>,
    /// The condition on `sts:SourceIdentity`.
    pub required_source_identity: Option<String>,
    /// Whether `sts:TagSession` is among the actions.
    pub tag_session: bool,
    /// Whether `sts:SetSourceIdentity` is among the actions.
    pub set_source_identity: bool,
}

impl Trust {
    /// `subject` may hold `*`, as under `StringLike`.
    pub fn web_identity(issuer: &str, subject: &str, audience: &str) -> Self {
        let (issuer, subject, audience) = (issuer.to_owned(), subject.to_owned(), audience.to_owned());
        Trust::WebIdentity(WebIdentityTrust { issuer, subject, audience })
    }

    /// Allows `sts:AssumeRole` alone: session tags and a source identity must be allowed on top, as in IAM.
    pub fn principal(arn: &str) -> PrincipalTrust {
        PrincipalTrust {
            arn: arn.to_owned(),
            external_id: None,
            required_tags: BTreeMap::new(),
            required_source_identity: None,
            tag_session: false,
            set_source_identity: false,
        }
    }
}

impl PrincipalTrust {
    #[must_use]
    pub fn external_id(mut self, id: &str) -> Self {
        self.external_id = Some(id.to_owned());
        self
    }

    #[must_use]
    pub fn allow_tags(mut self) -> Self {
        self.tag_session = true;
        self
    }

    #[must_use]
    pub fn require_tag(mut self, key: &str, value: &str) -> Self {
        self.required_tags.insert(key.to_owned(), value.to_owned());
        self.allow_tags()
    }

    #[must_use]
    pub fn allow_source_identity(mut self) -> Self {
        self.set_source_identity = true;
        self
    }

    #[must_use]
    pub fn require_source_identity(mut self, identity: &str) -> Self {
        self.required_source_identity = Some(identity.to_owned());
        self.allow_source_identity()
    }
}

impl From<PrincipalTrust> for Trust {
    fn from(trust: PrincipalTrust) -> Self {
        Trust::Principal(trust)
    }
}

/// What a role or user may do, by action name; every statement is on `Resource: "*"`.
#[derive(Clone, Debug, Default)]
pub struct Permissions {
    allowed: Vec<String>,
    denied: Vec<String>,
}

/// Why an action is refused, in IAM's words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    NotAllowed,
    Denied,
}

impl Permissions {
    pub fn none() -> Self {
        Permissions::default()
    }

    /// Both registries' tokens, and assuming other roles.
    pub fn pull() -> Self {
        let actions = [
            "ecr:GetAuthorizationToken",
            "ecr-public:GetAuthorizationToken",
            "sts:GetServiceBearerToken",
            "sts:AssumeRole",
            "sts:TagSession",
            "sts:SetSourceIdentity",
        ];
        actions.into_iter().fold(Permissions::none(), Permissions::allow)
    }

    #[must_use]
    pub fn allow(mut self, action: &str) -> Self {
        self.allowed.push(action.to_owned());
        self
    }

    /// Takes one action away again.
    #[must_use]
    pub fn without(mut self, action: &str) -> Self {
        self.allowed.retain(|allowed| allowed != action);
        self
    }

    /// An explicit deny, which wins over every allow.
    #[must_use]
    pub fn deny(mut self, action: &str) -> Self {
        self.denied.push(action.to_owned());
        self
    }

    pub fn check(&self, action: &str) -> Result<(), Refusal> {
        let matches = |patterns: &[String]| patterns.iter().any(|pattern| string_like(pattern, action));
        match (matches(&self.denied), matches(&self.allowed)) {
            (true, _) => Err(Refusal::Denied),
            (false, true) => Ok(()),
            (false, false) => Err(Refusal::NotAllowed),
        }
    }
}

/// IAM's `StringLike`: `*` is any run of characters, `?` one.
pub(super) fn string_like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}
