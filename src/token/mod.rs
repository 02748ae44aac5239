//! Authorization tokens: their values and errors, and the validation of the responses of AWS.

mod assume_role;
pub mod cache;
mod chain;
mod dates;
pub mod ecr;
mod errors;
mod from_cluster;
pub mod identity;
mod limiter;
mod provider;
mod sdk;
mod session;
pub mod settings;
mod static_keys;
mod web_identity;

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};

use crate::api::registry::{AccountId, Host};
use crate::api::status::Reason;
use crate::encoding::Fields;
use crate::plan::auth::{Account, KeyMaterial, Keys};
use crate::plan::references::KeysRecord;
use crate::plan::schedule::{LONGEST_LIFE, Life, later, until, whole_seconds};
use crate::plan::scopes::SecretKey;
use crate::plan::{Identity, Service, SpecError, TokenKey};

/// The user name in every ECR token (ECR API Reference, AuthorizationData).
const USER: &str = "AWS";

/// The greatest token that can reach a Secret: its data may have 1 MiB, and base64 makes it a third longer twice.
const MAX_TOKEN_BYTES: usize = 512 * 1024;

/// An authorization token as docker's `auth` field has it: base64 of `AWS:<password>`. Its `Debug` output is redacted.
#[derive(Clone, Debug)]
pub struct DockerAuth(SecretString);

impl DockerAuth {
    /// Checks that a text is base64 of `AWS:` and a password.
    ///
    /// # Errors
    /// [`InvalidToken`], which never quotes the text.
    pub fn parse(text: String) -> Result<Self, InvalidToken> {
        let auth = Self(SecretString::from(text));
        let text = auth.0.expose_secret();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(InvalidToken::TooLarge(text.len()));
        }
        let decoded = Zeroizing::new(STANDARD.decode(text).map_err(|_| InvalidToken::NotBase64)?);
        let decoded = std::str::from_utf8(&decoded).map_err(|_| InvalidToken::NotUtf8)?;
        // The password is opaque and may contain colons.
        let (user, password) = decoded.split_once(':').ok_or(InvalidToken::NoColon)?;
        if user != USER {
            return Err(InvalidToken::WrongUser);
        }
        if password.is_empty() {
            return Err(InvalidToken::EmptyPassword);
        }
        Ok(auth)
    }

    /// The base64 text, for Secrets only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// One authorization token, with the account that `proxyEndpoint` names.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token itself.
    pub auth: DockerAuth,
    /// The account of `proxyEndpoint`; none for ECR Public, or when AWS did not say.
    pub account: Option<AccountId>,
}

/// The validated response of one GetAuthorizationToken call.
#[derive(Clone, Debug)]
pub struct AuthorizationToken {
    /// One token, or one for each registry id sent.
    pub tokens: Vec<Token>,
    /// From the call to the earliest expiry, in whole seconds.
    pub life: Life,
    /// The identity that it was issued to.
    pub identity: Identity,
}

impl AuthorizationToken {
    /// The token for an account's hosts: its own when registry ids were sent, else the only one.
    pub fn token_for(&self, account: Option<&AccountId>) -> Option<&Token> {
        match account {
            Some(account) if self.tokens.len() > 1 => self.tokens.iter().find(|t| t.account.as_ref() == Some(account)),
            _ => self.tokens.first(),
        }
    }

    /// The caller's own account, as the response names it.
    pub fn caller(&self) -> Option<&AccountId> {
        self.tokens.first().and_then(|t| t.account.as_ref())
    }
}

/// One entry of a response as AWS sent it. The token is wrapped at once.
#[derive(Clone, Debug, Default)]
pub struct RawToken {
    /// `authorizationToken`.
    pub token: Option<SecretString>,
    /// `expiresAt`.
    pub expires_at: Option<Timestamp>,
    /// The account in the host of `proxyEndpoint`.
    pub account: Option<AccountId>,
}

/// Validates a response.
///
/// # Errors
/// [`InvalidToken`] if the response is incomplete, cannot be decoded, or expires in less than `min_life`.
pub fn check(
    raw: Vec<RawToken>,
    key: &TokenKey,
    now: Timestamp,
    min_life: Duration,
) -> Result<AuthorizationToken, InvalidToken> {
    let mut tokens = Vec::with_capacity(raw.len());
    let mut expires_at: Option<Timestamp> = None;
    for entry in raw {
        let text = entry.token.ok_or(InvalidToken::Missing("authorizationToken"))?;
        let expiry = entry.expires_at.ok_or(InvalidToken::Missing("expiresAt"))?;
        expires_at = Some(expires_at.map_or(expiry, |old| old.min(expiry)));
        tokens.push(Token { auth: DockerAuth::parse(text.expose_secret().to_owned())?, account: entry.account });
    }
    let expires_at = whole_seconds(expires_at.ok_or(InvalidToken::Empty)?.min(later(now, LONGEST_LIFE)));
    let life = Life { issued_at: whole_seconds(now), expires_at };
    if !life.is_valid(now) {
        return Err(InvalidToken::Expired(expires_at));
    }
    if until(now, expires_at) < min_life {
        return Err(InvalidToken::NearlyExpired(expires_at));
    }
    let mut token = AuthorizationToken { tokens, life, identity: key.identity.clone() };
    if let Service::Private { registry_ids, .. } = &key.service {
        if registry_ids.is_empty() {
            // Without registry ids, the first token is valid for every account.
            token.tokens.truncate(1);
        }
        if token.tokens.iter().any(|token| token.account.is_none()) {
            return Err(InvalidToken::Missing("proxyEndpoint"));
        }
        for account in registry_ids {
            let own = token.tokens.iter().any(|t| t.account.as_ref() == Some(account));
            if !own {
                return Err(InvalidToken::NoTokenFor(account.clone()));
            }
        }
    }
    Ok(token)
}

/// Why a response of AWS is not a usable token. No message quotes the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// `authorizationData` is empty.
    #[error("AWS returned no token")]
    Empty,
    /// A field is missing.
    #[error("AWS returned no {0}")]
    Missing(&'static str),
    /// A token asked for by registry id is not there.
    #[error("AWS returned no token for account {0}: check the account id, or remove requestRegistryIds")]
    NoTokenFor(AccountId),
    /// The token is not base64.
    #[error("the token is not base64")]
    NotBase64,
    /// The token does not decode to text.
    #[error("the token does not decode to UTF-8")]
    NotUtf8,
    /// The token has no colon.
    #[error("the token is not of the form user:password")]
    NoColon,
    /// The token's user is not AWS.
    #[error("the token's user is not AWS")]
    WrongUser,
    /// The token's password is empty.
    #[error("the token's password is empty")]
    EmptyPassword,
    /// The token is too large for a Secret, in bytes.
    #[error("the token has {0} bytes, more than a Secret can hold")]
    TooLarge(usize),
    /// The token has expired.
    #[error("the token expired at {0}: if this repeats, check the clock of this node")]
    Expired(Timestamp),
    /// The token is about to expire.
    #[error("the token expires at {0}, too soon to be used: if this repeats, check the clock of this node")]
    NearlyExpired(Timestamp),
    /// The token would expire before the one held.
    #[error("the token expires at {0}, earlier than the one in use, which is kept")]
    ShorterThanHeld(Timestamp),
}

/// Why a token could not be fetched: a bounded category, and a short message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No AWS credentials were found.
    #[error("no AWS credentials: {0}")]
    NoCredentials(String),
    /// An object that `auth` refers to is missing or incomplete.
    #[error("{0}")]
    IdentityNotFound(String),
    /// An object that `auth` refers to has changed since the watch saw it. The next fetch uses its current state.
    #[error("{0}")]
    IdentityChanged(String),
    /// The API server denied access to an object that the identity needs.
    #[error("{0}")]
    Forbidden(String),
    /// Admission refused the request for an object that the identity needs.
    #[error("{0}")]
    AdmissionRefused(String),
    /// The API server failed, or could not be reached.
    #[error("{0}")]
    Cluster(String),
    /// AWS denied the identity or the call.
    #[error("AWS denied the call: {0}")]
    Denied(Refusal),
    /// AWS rejected a signature: the keys or the time are wrong. The clock is corrected by the response, so the session is
    /// kept.
    #[error("AWS denied the call: {0}")]
    BadSignature(Refusal),
    /// A credential provider returned a session that has expired or is about to.
    #[error(
        "the AWS session expires at {0}, too soon to be used: if this repeats, check the clock of this node and the source of its AWS identity"
    )]
    NearlyOver(Timestamp),
    /// AWS asked to slow down.
    #[error("AWS throttled the call: {0}")]
    Throttled(String),
    /// AWS could not be reached, timed out, or failed.
    #[error("AWS is unavailable: {0}")]
    Unavailable(String),
    /// AWS responded without a usable token.
    #[error(transparent)]
    Invalid(#[from] InvalidToken),
    /// AWS sent a response that cannot be parsed.
    #[error("AWS returned an invalid response: {0}")]
    Unreadable(String),
}

/// A refusal by AWS, with the request id for AWS support and CloudTrail. Refusals that differ only in the request id are equal: a
/// status keeps the first id, and is not written again for each attempt.
#[derive(Clone, Debug)]
pub struct Refusal {
    text: String,
    request_id: Option<String>,
}

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Refusal {}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self { text, request_id: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        self.request_id.as_ref().map_or(Ok(()), |id| write!(f, " (request id {id})"))
    }
}

impl From<TokenError> for SpecError {
    fn from(error: TokenError) -> Self {
        Self { reason: error.reason(), message: error.to_string() }
    }
}

impl TokenError {
    /// Every reason that [`Self::reason`] gives.
    pub const REASONS: [Reason; 11] = [
        Reason::NoCredentials,
        Reason::IdentityNotFound,
        Reason::IdentityChanged,
        Reason::Forbidden,
        Reason::AdmissionRefused,
        Reason::ApiError,
        Reason::AccessDenied,
        Reason::Throttled,
        Reason::AwsUnavailable,
        Reason::ExpiredToken,
        Reason::InvalidToken,
    ];

    /// The reason for conditions, Events and metrics.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoCredentials(_) => Reason::NoCredentials,
            Self::IdentityNotFound(_) => Reason::IdentityNotFound,
            Self::IdentityChanged(_) => Reason::IdentityChanged,
            Self::Forbidden(_) => Reason::Forbidden,
            Self::AdmissionRefused(_) => Reason::AdmissionRefused,
            Self::Cluster(_) => Reason::ApiError,
            Self::Denied(_) | Self::BadSignature(_) => Reason::AccessDenied,
            Self::Throttled(_) => Reason::Throttled,
            Self::Unavailable(_) => Reason::AwsUnavailable,
            Self::NearlyOver(_) | Self::Invalid(InvalidToken::Expired(_) | InvalidToken::NearlyExpired(_)) => {
                Reason::ExpiredToken
            }
            Self::Invalid(_) | Self::Unreadable(_) => Reason::InvalidToken,
        }
    }

    /// The factor by which the wait before the next attempt is longer than after a transient failure. No error is final: new
    /// permissions take seconds to reach every endpoint of AWS.
    pub const fn retry_scale(&self) -> u32 {
        match self {
            Self::Unavailable(_) | Self::Cluster(_) | Self::IdentityChanged(_) => 1,
            Self::Throttled(_)
            | Self::NoCredentials(_)
            | Self::IdentityNotFound(_)
            | Self::Forbidden(_)
            | Self::AdmissionRefused(_) => 3,
            Self::Denied(_) | Self::BadSignature(_) | Self::NearlyOver(_) | Self::Invalid(_) | Self::Unreadable(_) => 5,
        }
    }
}

/// What a fetch has taken from the cluster. It is kept until this is dropped.
pub type Prepared = Option<Box<dyn Send>>;

/// Fetches tokens. The only implementation outside tests talks to AWS.
pub trait TokenSource: Send + Sync + 'static {
    /// Takes from the cluster what the fetch of this key needs. It may take as long as a slow API server does, which does not count
    /// against the timeouts of AWS.
    fn prepare<'a>(&'a self, _key: &'a TokenKey) -> BoxFuture<'a, Result<Prepared, TokenError>> {
        async { Ok(None) }.boxed()
    }

    /// Makes one call for one key, without retries.
    fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>>;

    /// A text that changes when the AWS identity behind `identity` does. It contains nothing secret.
    fn fingerprint(&self, identity: &Identity) -> String;

    /// Ends the session of an identity.
    fn forget(&self, identity: &Identity);
}

/// The credentials that an identity takes from the cluster.
pub trait Cluster: Send + Sync + 'static {
    /// A web identity token of a ServiceAccount, by the TokenRequest API.
    fn web_identity<'a>(&'a self, account: &'a Account) -> BoxFuture<'a, Result<SecretString, TokenError>>;

    /// What is known of a Secret with static keys; none if there is no such Secret.
    fn keys_record<'a>(&'a self, secret: &'a SecretKey) -> BoxFuture<'a, Result<Option<KeysRecord>, TokenError>>;

    /// The static keys in a Secret, if they are still these.
    fn static_keys<'a>(
        &'a self,
        keys: &'a Keys,
        material: &'a KeyMaterial,
    ) -> BoxFuture<'a, Result<StaticKeys, TokenError>>;
}

/// AWS keys, trimmed.
#[derive(Clone, Debug)]
pub struct StaticKeys {
    /// The access key id.
    pub access_key_id: SecretString,
    /// The secret access key.
    pub secret_access_key: SecretString,
    /// The session token of temporary keys.
    pub session_token: Option<SecretString>,
}

/// A SHA-256 over tokens and the identity that fetched them. ECR's tokens are too long to be guessed from it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash(String);

impl TokenHash {
    /// Hashes the logins in the order of their hosts.
    pub fn of(fingerprint: &str, logins: &[(Host, &DockerAuth)]) -> Self {
        let login = |fields: Fields, (host, auth): &(Host, &DockerAuth)| fields.text(host.as_str()).text(auth.expose());
        Self(format!("sha256:{}", Fields::new("token/v1").text(fingerprint).list(logins, login).finish()))
    }

    /// `sha256:` and 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::HostVariant;
    use crate::api::registry::Region;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn encode(text: &[u8]) -> String {
        STANDARD.encode(text)
    }

    fn raw(text: &[u8], expires: i64) -> RawToken {
        RawToken {
            token: Some(SecretString::from(encode(text))),
            expires_at: Timestamp::from_second(expires).ok(),
            account: AccountId::parse("111122223333").ok(),
        }
    }

    fn key(ids: &[&str]) -> TokenKey {
        let registry_ids = ids.iter().map(|id| AccountId::parse(id).unwrap()).collect();
        let region = Region::parse("eu-west-1").unwrap();
        let service = Service::Private { region, endpoint: HostVariant::Standard, registry_ids };
        TokenKey { identity: Identity::operator(), service }
    }

    fn checked(raw: Vec<RawToken>) -> Result<AuthorizationToken, InvalidToken> {
        check(raw, &key(&[]), Timestamp::from_second(1000).unwrap(), Duration::from_secs(60))
    }

    #[test]
    fn every_reason_of_an_error_is_listed() {
        let (text, refusal, at) = (String::new, || Refusal::from(String::new()), Timestamp::UNIX_EPOCH);
        // A new kind does not compile until it has a place here; then one of it belongs below.
        let place = |error: &TokenError| match error {
            TokenError::NoCredentials(_) => 0,
            TokenError::IdentityNotFound(_) => 1,
            TokenError::IdentityChanged(_) => 2,
            TokenError::Forbidden(_) => 3,
            TokenError::AdmissionRefused(_) => 4,
            TokenError::Cluster(_) => 5,
            TokenError::Denied(_) => 6,
            TokenError::BadSignature(_) => 7,
            TokenError::NearlyOver(_) => 8,
            TokenError::Throttled(_) => 9,
            TokenError::Unavailable(_) => 10,
            TokenError::Unreadable(_) => 11,
            TokenError::Invalid(InvalidToken::Expired(_) | InvalidToken::NearlyExpired(_)) => 12,
            TokenError::Invalid(
                InvalidToken::Empty
                | InvalidToken::Missing(_)
                | InvalidToken::NoTokenFor(_)
                | InvalidToken::NotBase64
                | InvalidToken::NotUtf8
                | InvalidToken::NoColon
                | InvalidToken::WrongUser
                | InvalidToken::EmptyPassword
                | InvalidToken::TooLarge(_)
                | InvalidToken::ShorterThanHeld(_),
            ) => 13,
        };
        let errors = [
            TokenError::NoCredentials(text()),
            TokenError::IdentityNotFound(text()),
            TokenError::IdentityChanged(text()),
            TokenError::Forbidden(text()),
            TokenError::AdmissionRefused(text()),
            TokenError::Cluster(text()),
            TokenError::Denied(refusal()),
            TokenError::BadSignature(refusal()),
            TokenError::NearlyOver(at),
            TokenError::Throttled(text()),
            TokenError::Unavailable(text()),
            TokenError::Unreadable(text()),
            TokenError::Invalid(InvalidToken::Expired(at)),
            TokenError::Invalid(InvalidToken::Empty),
        ];
        assert!(errors.iter().map(place).eq(0..errors.len()));
        let reasons: BTreeSet<Reason> = errors.iter().map(TokenError::reason).collect();
        assert_eq!(reasons, TokenError::REASONS.into());
    }

    #[test]
    fn each_malformed_answer_is_refused_by_name() {
        let no_token = RawToken { token: None, ..raw(b"AWS:x", 9000) };
        let no_expiry = RawToken { expires_at: None, ..raw(b"AWS:x", 9000) };
        let no_account = RawToken { account: None, ..raw(b"AWS:x", 9000) };
        let not_base64 = RawToken { token: Some(SecretString::from("AWS:x".to_owned())), ..raw(b"", 9000) };
        let second = |s| Timestamp::from_second(s).unwrap();
        let table = [
            (vec![], InvalidToken::Empty),
            (vec![no_token], InvalidToken::Missing("authorizationToken")),
            (vec![no_expiry], InvalidToken::Missing("expiresAt")),
            (vec![no_account], InvalidToken::Missing("proxyEndpoint")),
            (vec![not_base64], InvalidToken::NotBase64),
            (vec![raw(&[0xff, 0xfe], 9000)], InvalidToken::NotUtf8),
            (vec![raw(b"AWSpassword", 9000)], InvalidToken::NoColon),
            (vec![raw(b"root:password", 9000)], InvalidToken::WrongUser),
            (vec![raw(b"AWS:", 9000)], InvalidToken::EmptyPassword),
            (vec![raw(b"AWS:x", 1000)], InvalidToken::Expired(second(1000))),
            (vec![raw(b"AWS:x", 1059)], InvalidToken::NearlyExpired(second(1059))),
            (vec![raw(b"AWS:x", 9000), raw(b"AWS:y", 500)], InvalidToken::Expired(second(500))),
            (vec![raw(&[b"AWS:".as_slice(), &[b'x'; 1 << 20]].concat(), 9000)], InvalidToken::TooLarge(1_398_108)),
        ];
        for (answer, expected) in table {
            assert_eq!(checked(answer).unwrap_err(), expected);
        }
    }

    #[test]
    fn the_hash_of_a_token_is_the_same_in_every_build() {
        let auths = ["AWS:p", "AWS:q"].map(|text| DockerAuth::parse(encode(text.as_bytes())).unwrap());
        let hosts = ["111122223333.dkr.ecr.eu-west-1.amazonaws.com", "public.ecr.aws"];
        let logins: Vec<_> = hosts.into_iter().map(|host| Host::parse(host).unwrap()).zip(&auths).collect();
        let hash = TokenHash::of("fingerprint", &logins);
        assert_eq!(hash.as_str(), "sha256:b74d43fd57dbe6ab3f1a8e2f4f65b8f7e70e82c3c52a56d4e06a77bf9628d192");
    }

    #[test]
    fn a_password_may_hold_colons_and_the_token_is_kept_verbatim() {
        let token = checked(vec![raw(b"AWS:a:b:c", 9000)]).unwrap();
        assert_eq!(token.tokens[0].auth.expose(), encode(b"AWS:a:b:c"));
    }

    #[test]
    fn a_claim_of_ten_years_is_taken_for_the_twelve_hours_that_it_can_be() {
        let token = checked(vec![raw(b"AWS:x", 10 * 365 * 24 * 3600)]).unwrap();
        assert_eq!(token.life.expires_at.as_second(), 1000 + 12 * 3600);
    }

    #[test]
    fn of_several_tokens_that_nobody_asked_for_the_first_serves_every_account() {
        let other = RawToken { account: AccountId::parse("999999999999").ok(), ..raw(b"AWS:y", 9000) };
        let token = checked(vec![raw(b"AWS:x", 9000), other]).unwrap();
        let account = AccountId::parse("444455556666").unwrap();
        assert_eq!(token.token_for(Some(&account)).unwrap().auth.expose(), encode(b"AWS:x"));
    }

    #[test]
    fn a_registry_id_without_its_token_is_refused() {
        let now = Timestamp::from_second(1000).unwrap();
        let answer = check(vec![raw(b"AWS:x", 9000)], &key(&["111122223333", "444455556666"]), now, Duration::ZERO);
        assert_eq!(answer.unwrap_err(), InvalidToken::NoTokenFor(AccountId::parse("444455556666").unwrap()));
    }

    #[test]
    fn debug_output_shows_nothing_of_a_token() {
        let token = checked(vec![raw(b"AWS:hunter2hunter2", 9000)]).unwrap();
        let secret = || SecretString::from("hunter2");
        let (access_key_id, secret_access_key) = (secret(), secret());
        let keys = StaticKeys { access_key_id, secret_access_key, session_token: Some(secret()) };
        let shown = format!("{token:?} {:?} {keys:?}", raw(b"AWS:hunter2hunter2", 9000));
        assert!(!shown.contains("hunter2") && !shown.contains(&encode(b"AWS:hunter2hunter2")), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = DockerAuth::parse(text);
        }

        #[test]
        fn every_password_survives(password in ".{1,200}") {
            let text = encode(format!("AWS:{password}").as_bytes());
            let auth = DockerAuth::parse(text.clone()).unwrap();
            prop_assert_eq!(auth.expose(), text);
        }
    }
}
