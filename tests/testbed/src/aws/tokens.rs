//! The registry passwords that the stand-in has issued, and which of them a registry would accept now.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rand::distr::{Alphanumeric, SampleString};

use super::{Credential, Service};

/// Every password holds this, then 16 letters of its own, so that a leak can be found by eye.
pub const CANARY: &str = "CANARY";

/// One issued authorization token.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub service: Service,
    /// The `authorizationToken` as it was sent: base64 of `AWS:<password>` unless a fault made it something else.
    pub auth: String,
    pub password: String,
    /// The caller's ARN.
    pub principal: String,
    /// The caller's role, if it has one.
    pub role: Option<String>,
    /// The name of the caller's session, if it is one.
    pub session_name: Option<String>,
    /// The tags of the caller's session, those that it inherited among them.
    pub tags: BTreeMap<String, String>,
    pub source_identity: Option<String>,
    /// The caller's account.
    pub account: String,
    pub region: String,
    /// The registry it was asked for: the caller's account, or one of `registryIds`; none for ECR Public.
    pub registry: Option<String>,
    pub issued: Timestamp,
    /// The expiry that was claimed.
    pub expires: Timestamp,
    /// When a registry stops to accept it: the claimed expiry, but never later than the real life of a token.
    pub accepted_until: Timestamp,
    pub revoked: bool,
}

/// What is wrong with the text of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum TokenForm {
    #[default]
    Good,
    NoColon,
    SeveralColons,
    NotBase64,
    NotUtf8,
    OtherUser,
    EmptyPassword,
    /// A good one of about this many bytes.
    Sized(usize),
}

/// Whom and what a token is for.
pub(super) struct Request<'a> {
    pub(super) service: Service,
    pub(super) caller: &'a Credential,
    pub(super) region: &'a str,
    pub(super) registry: Option<String>,
    pub(super) form: TokenForm,
    /// The password's size in bytes.
    pub(super) size: usize,
    pub(super) now: Timestamp,
    /// How long it is accepted.
    pub(super) life: SignedDuration,
    /// How long it says it is.
    pub(super) claimed_life: SignedDuration,
}

#[derive(Default)]
pub(super) struct Tokens {
    issued: Mutex<Issued>,
}

#[derive(Default)]
struct Issued {
    all: Vec<IssuedToken>,
    by_auth: HashMap<String, usize>,
}

impl Tokens {
    pub(super) fn issue(&self, request: Request<'_>) -> IssuedToken {
        let expires = request.now + request.claimed_life;
        let size = if let TokenForm::Sized(size) = request.form { size } else { request.size };
        let principal = &request.caller.principal;
        let (auth, password) = encode(request.form, new_password(size, expires));
        let token = IssuedToken {
            service: request.service,
            auth,
            password,
            principal: principal.arn.clone(),
            role: principal.role.clone(),
            session_name: principal.session_name.clone(),
            tags: request.caller.tags.clone(),
            source_identity: request.caller.source_identity.clone(),
            account: principal.account.clone(),
            region: request.region.to_owned(),
            registry: request.registry,
            issued: request.now,
            expires,
            accepted_until: expires.min(request.now + request.life),
            revoked: false,
        };
        let mut issued = self.issued.lock();
        let index = issued.all.len();
        issued.by_auth.insert(token.auth.clone(), index);
        issued.all.push(token.clone());
        token
    }

    pub(super) fn all(&self) -> Vec<IssuedToken> {
        self.issued.lock().all.clone()
    }

    /// The token of a docker `auth` value, which is also what follows `Basic ` in a registry's request.
    pub(super) fn find(&self, auth: &str) -> Option<IssuedToken> {
        let issued = self.issued.lock();
        issued.by_auth.get(auth).map(|index| issued.all[*index].clone())
    }

    pub(super) fn revoke(&self, matching: impl Fn(&IssuedToken) -> bool) {
        self.issued.lock().all.iter_mut().filter(|token| matching(token)).for_each(|token| token.revoked = true);
    }
}

impl IssuedToken {
    /// Whether it was issued to this role, or to this user or session by its own ARN.
    pub fn is_of(&self, arn: &str) -> bool {
        self.role.as_deref() == Some(arn) || self.principal == arn
    }

    /// Whether a registry accepts it at `now`.
    pub fn is_accepted(&self, now: Timestamp) -> bool {
        let well_formed = self.auth == BASE64.encode(format!("AWS:{}", self.password)) && !self.password.is_empty();
        well_formed && !self.revoked && now < self.accepted_until
    }
}

/// A password that looks like a real one: base64 of a JSON object with an opaque payload and a data key.
fn new_password(size: usize, expires: Timestamp) -> String {
    let canary = format!("{CANARY}{}", Alphanumeric.sample_string(&mut rand::rng(), 16));
    let blob = |filler: usize| {
        let payload = Alphanumeric.sample_string(&mut rand::rng(), filler);
        let expiration = expires.as_second();
        let datakey = format!("AQEBAHh{}", canary.chars().rev().collect::<String>());
        format!(
            r#"{{"payload":"{canary}{payload}","datakey":"{datakey}","version":"2","type":"DATA_KEY","expiration":{expiration}}}"#
        )
    };
    let frame = blob(0).len();
    // Four characters of base64 for every three bytes.
    BASE64.encode(blob((size / 4 * 3).saturating_sub(frame)))
}

/// The text sent as `authorizationToken`, and the password in it.
fn encode(form: TokenForm, password: String) -> (String, String) {
    let whole = |text: String| BASE64.encode(text);
    match form {
        TokenForm::Good | TokenForm::Sized(_) => (whole(format!("AWS:{password}")), password),
        TokenForm::NoColon => (whole(format!("AWS{password}")), password),
        TokenForm::SeveralColons => {
            let password = format!("a:b::{password}:");
            (whole(format!("AWS:{password}")), password)
        }
        TokenForm::NotBase64 => (format!("%%{}%%", whole(format!("AWS:{password}"))), password),
        TokenForm::NotUtf8 => (BASE64.encode([b"AWS:\xff\xfe", password.as_bytes()].concat()), password),
        TokenForm::OtherUser => (whole(format!("admin:{password}")), password),
        TokenForm::EmptyPassword => (whole("AWS:".to_owned()), String::new()),
    }
}
