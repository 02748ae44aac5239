//! Web identity tokens: whose signature counts, and what STS says about a bad one.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;
use serde::Deserialize;

use super::error::ApiError;

/// Where a provider's keys come from: asked at every token, so that a rotation is seen at once.
pub type JwksSource = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<String>> + Send + Sync>;

/// The OpenID Connect providers that the stand-in's accounts trust, by issuer.
#[derive(Default)]
pub(super) struct Providers {
    by_issuer: Mutex<BTreeMap<String, JwksSource>>,
}

/// The claims that a trust policy may look at, after the signature was found good.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    pub(super) sub: String,
    pub(super) aud: Audience,
    pub(super) exp: i64,
    #[serde(default)]
    pub(super) nbf: Option<i64>,
    #[serde(default, rename = "https://aws.amazon.com/source_identity")]
    pub(super) source_identity: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    pub(super) fn all(&self) -> &[String] {
        match self {
            Audience::One(one) => std::slice::from_ref(one),
            Audience::Many(many) => many,
        }
    }
}

impl Providers {
    pub(super) fn set(&self, issuer: &str, source: JwksSource) {
        self.by_issuer.lock().insert(issuer.to_owned(), source);
    }

    /// The claims of a token whose issuer is known, whose signature is that of one of its keys, and whose time has come and not gone.
    pub(super) async fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, ApiError> {
        let unverified: Claims = jsonwebtoken::dangerous::insecure_decode(token)
            .map_err(|error| invalid(format!("The ID Token provided is not a valid JWT. ({error})")))?
            .claims;
        let source = self.by_issuer.lock().get(&unverified.iss).cloned();
        let source = source.ok_or_else(|| {
            invalid(format!("No OpenIDConnect provider found in your account for {}", unverified.iss))
        })?;
        let jwks = source().await.map_err(|error| {
            ApiError::bad(
                "IDPCommunicationError",
                format!("Couldn't retrieve verification key from your identity provider: {error:#}"),
            )
        })?;
        let claims = check_signature(token, &jwks)?;
        check_times(&claims, now)?;
        Ok(claims)
    }
}

fn check_signature(token: &str, jwks: &str) -> Result<Claims, ApiError> {
    let header = jsonwebtoken::decode_header(token).map_err(|error| invalid(error.to_string()))?;
    if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256) {
        return Err(invalid(format!("The ID Token's algorithm {:?} is not supported", header.alg)));
    }
    let keys: JwkSet =
        serde_json::from_str(jwks).map_err(|error| invalid(format!("The provider's keys cannot be read: {error}")))?;
    let kid = header.kid.unwrap_or_default();
    let key = keys.find(&kid).ok_or_else(|| {
        invalid("Couldn't retrieve verification key from your identity provider, please reference AssumeRoleWithWebIdentity documentation for requirements")
    })?;
    let key = DecodingKey::from_jwk(key).map_err(|error| invalid(error.to_string()))?;
    let mut validation = Validation::new(header.alg);
    // Times are judged by the stand-in's clock and the audience by the trust policy.
    (validation.validate_exp, validation.validate_aud) = (false, false);
    let decoded = jsonwebtoken::decode(token, &key, &validation);
    decoded.map(|data| data.claims).map_err(|error| invalid(format!("The ID Token's signature is not valid: {error}")))
}

fn check_times(claims: &Claims, now: Timestamp) -> Result<(), ApiError> {
    let now = now.as_second();
    if claims.exp <= now {
        let message =
            format!("Token expired: current date/time {now} must be before the expiration date/time {}", claims.exp);
        return Err(ApiError::bad("ExpiredTokenException", message));
    }
    match claims.nbf {
        Some(nbf) if nbf > now => Err(invalid("The ID Token is not yet valid")),
        _ => Ok(()),
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::bad("InvalidIdentityToken", message)
}
