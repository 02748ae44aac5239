//! A certificate authority for AWS's host names, which only who is told of it trusts.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub(super) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    by_host: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

impl Authority {
    pub(super) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "testbed-aws-ca");
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { pem, issuer: Issuer::new(params, key), by_host: Mutex::default() })
    }

    /// The authority's own certificate.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// How a server of this name speaks TLS, with a certificate for this name alone.
    pub(super) fn server(&self, host: &str) -> Result<Arc<ServerConfig>> {
        if let Some(server) = self.by_host.lock().get(host) {
            return Ok(server.clone());
        }
        let server = Arc::new(self.make_server(host).with_context(|| format!("making a certificate for {host}"))?);
        self.by_host.lock().insert(host.to_owned(), server.clone());
        Ok(server)
    }

    fn make_server(&self, host: &str) -> Result<ServerConfig> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([host.to_owned()])?.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)?;
        // The faults of the stand-in are made for HTTP/1.1.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}
