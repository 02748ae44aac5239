//! An OpenID Connect issuer for tests that run without a cluster: ServiceAccount tokens, signed for real.

use anyhow::{Context, Result};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};

/// A key pair under an issuer's name; two of the same name have different keys.
pub struct Issuer {
    /// The `iss` claim.
    pub url: String,
    key_id: String,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Issuer {
    /// One with an ECDSA key.
    pub fn new(url: &str) -> Result<Self> {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .context("making the issuer's key")?;
        Ok(Issuer::of(url, Algorithm::ES256, EncodingKey::from_ec_der(pkcs8.as_ref())))
    }

    /// One with an RSA key, as Amazon EKS and most clusters have; slower to make.
    pub fn with_rsa_key(url: &str) -> Result<Self> {
        let key = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).context("making the issuer's key")?;
        let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).context("encoding the issuer's key")?;
        let text = BASE64.encode(pkcs8.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        Ok(Issuer::of(url, Algorithm::RS256, EncodingKey::from_rsa_pem(pem.as_bytes())?))
    }

    fn of(url: &str, algorithm: Algorithm, key: EncodingKey) -> Self {
        Issuer { url: url.to_owned(), key_id: super::credentials::upper_id(12), algorithm, key }
    }

    /// The public keys, as `/openid/v1/jwks` serves them.
    pub fn jwks(&self) -> Result<String> {
        let mut key = Jwk::from_encoding_key(&self.key, self.algorithm).context("making the issuer's JWKS")?;
        key.common.key_id = Some(self.key_id.clone());
        Ok(serde_json::to_string(&JwkSet { keys: vec![key] })?)
    }

    /// A token for a subject such as `system:serviceaccount:NAMESPACE:NAME`, good for `life` from now.
    pub fn token(&self, subject: &str, audience: &str, life: SignedDuration) -> Result<String> {
        self.token_at(Timestamp::now(), subject, audience, life)
    }

    /// The same, issued at `now`; with a negative `life` it is expired from the start.
    pub fn token_at(&self, now: Timestamp, subject: &str, audience: &str, life: SignedDuration) -> Result<String> {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.key_id.clone());
        let issued = now.as_second();
        let claims = serde_json::json!({
            "iss": self.url,
            "sub": subject,
            "aud": [audience],
            "iat": issued,
            "exp": issued + life.as_secs(),
            "jti": super::credentials::upper_id(20),
        });
        jsonwebtoken::encode(&header, &claims, &self.key).context("signing a web identity token")
    }
}
