//! A stand-in for the operator uses what the bed lends it, on a real API server and against the strict AWS: what is right is
//! clean, and what is wrong is found.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Config, ResourceExt};
use serde_json::{Value, json};
use testbed::aws::{Permissions, Service};
use testbed::bed::identities::{ROLE_ARN, STS};
use testbed::bed::{AllowedIdentities, Bed, Tenant};
use testbed::recorder::Invariant;

/// Enough of the EcrCredential's definition for the judge.
const CRD: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ecrcredentials.pullsecrets.dev}
spec:
  group: pullsecrets.dev
  scope: Cluster
  names: {plural: ecrcredentials, singular: ecrcredential, kind: EcrCredential}
  versions:
    - name: v1alpha1
      served: true
      storage: true
      subresources: {status: {}}
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

#[tokio::test]
async fn two_tenants_with_their_own_tokens_are_clean() -> Result<()> {
    let run = Run::start("clean").await?;
    let (a, b) =
        (run.bed.tenant("a", "111111111111", "puller").await?, run.bed.tenant("b", "222222222222", "puller").await?);
    let uid = run.credential(&[&a, &b]).await?;
    for tenant in [&a, &b] {
        let auth = run.login_of(tenant).await?;
        assert!(run.bed.aws.token_of(&auth).is_some_and(|token| token.is_of(&tenant.role)));
        run.write(tenant, &uid, &auth).await?;
    }
    let granted = run.bed.proxy.log().granted_tokens();
    assert_eq!(granted.iter().map(|token| &token.namespace).collect::<Vec<_>>(), [&a.namespace, &b.namespace]);
    assert!(granted.iter().all(|token| token.audiences == [STS] && token.expires.is_some()));
    run.bed.finish().await
}

#[tokio::test]
async fn anothers_login_and_a_token_for_the_api_server_and_a_leak_are_found() -> Result<()> {
    let run = Run::start("wrong").await?;
    let (a, b) =
        (run.bed.tenant("a", "111111111111", "puller").await?, run.bed.tenant("b", "222222222222", "puller").await?);
    let uid = run.credential(&[&a, &b]).await?;
    let (of_a, of_b) = (run.login_of(&a).await?, run.login_of(&b).await?);
    run.write(&a, &uid, &of_b).await?;
    // It does not help to put it right afterwards.
    run.write(&a, &uid, &of_a).await?;
    run.write(&b, &uid, &of_b).await?;
    let violations = run.bed.recorder.judge().await?;
    let found: BTreeSet<_> = violations.into_iter().map(|violation| (violation.invariant, violation.about)).collect();
    let secret = format!("{}/{}", a.namespace, run.bed.secret);
    assert_eq!(found, [(Invariant::I17Tenancy, secret)].into());

    let token = run.web_identity(&a.namespace, "puller", &[]).await?;
    run.bed.recorder.search_text("a log line", format!("got {token}"));
    let found: BTreeSet<_> = run.bed.recorder.judge().await?.into_iter().map(|violation| violation.invariant).collect();
    assert_eq!(found, [Invariant::I1Scope, Invariant::I11Secrecy, Invariant::I17Tenancy].into());
    Ok(())
}

#[tokio::test]
async fn what_is_lent_can_be_used_and_nothing_else() -> Result<()> {
    let run = Run::start("lent").await?;
    let (ops, other) = (run.bed.namespace("ops", &[]).await?, run.bed.namespace("other", &[]).await?);
    for namespace in [&ops, &other] {
        for name in ["one", "each"] {
            run.bed.service_account(namespace, name, &[]).await?;
        }
    }
    let lent = AllowedIdentities {
        service_accounts: vec![format!("{ops}/one"), "*/each".to_owned()],
        secrets: vec![format!("{ops}/keys")],
        attach: vec![],
    };
    run.bed.lend(&lent).await?;
    run.bed.lend(&lent).await.context("a second time")?;
    for (namespace, name, allowed) in [
        (&ops, "one", true),
        (&ops, "each", true),
        (&other, "each", true),
        (&other, "one", false),
        (&ops, "default", false),
    ] {
        assert_eq!(run.web_identity(namespace, name, &[STS]).await.is_ok(), allowed, "the token of {namespace}/{name}");
        let accounts: Api<ServiceAccount> = Api::namespaced(run.operator.clone(), namespace);
        let by_name = ListParams::default().fields(&format!("metadata.name={name}"));
        assert_eq!(accounts.list_metadata(&by_name).await.is_ok(), allowed, "a list of {namespace}/{name}");
        assert!(accounts.list_metadata(&ListParams::default()).await.is_err(), "a list of all in {namespace}");
    }
    run.bed.aws.create_user("arn:aws:iam::111111111111:user/puller", Permissions::pull());
    let (first, second) = (run.bed.aws.create_access_key("arn:aws:iam::111111111111:user/puller")?, "  padded-value\n");
    run.bed.keys_secret(&ops, "keys", &first).await?;
    let uid = run.bed.secrets(&ops).get("keys").await?.uid();
    run.bed.keys_secret_of(&ops, "keys", &[("AWS_ACCESS_KEY_ID", second)]).await?;
    let secrets: Api<Secret> = Api::namespaced(run.operator.clone(), &ops);
    let secret = secrets.get("keys").await?;
    assert_eq!(secret.uid(), uid);
    let data: Vec<_> = secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect();
    assert_eq!(data, [("AWS_ACCESS_KEY_ID".to_owned(), second.into())], "nothing of the old one is left");
    assert!(secrets.get("other").await.is_err());
    for leak in [first.secret.as_str(), "padded-value"] {
        run.bed.recorder.search_text("a log line", leak);
        let found = run.bed.recorder.judge().await?;
        assert!(found.iter().any(|violation| violation.invariant == Invariant::I11Secrecy), "{found:?}");
    }
    Ok(())
}

/// A bed, and a client that has the operator's rights and goes through its proxy.
struct Run {
    bed: Bed,
    operator: Client,
}

impl Run {
    async fn start(test: &str) -> Result<Run> {
        let bed = Bed::new(test, CRD).await?;
        let mut config = Config::new(bed.proxy.url().parse()?);
        config.auth_info.token = Some(bed.plane.service_account_token(&bed.home, "operator", "", 3600).await?.into());
        let run = Run { operator: Client::try_from(config)?, bed };
        Ok(run)
    }

    /// An EcrCredential by which each namespace's own `puller` fetches that namespace's token; returns its uid.
    async fn credential(&self, tenants: &[&Tenant]) -> Result<String> {
        self.bed.recorder.allow_tokens_of(None, "puller");
        self.bed
            .lend(&AllowedIdentities { service_accounts: vec!["*/puller".to_owned()], secrets: vec![], attach: vec![] })
            .await?;
        let spec = json!({
            "registries": [{ "private": { "accountIds": ["123456789012"] } }],
            "auth": { "serviceAccount": { "fromTargetNamespace": "puller" } },
            "namespaces": { "names": tenants.iter().map(|tenant| &tenant.namespace).collect::<Vec<_>>() },
        });
        let name = self.bed.credential("x", spec).await?;
        self.bed.credentials().get(&name).await?.uid().context("a uid")
    }

    async fn web_identity(&self, namespace: &str, name: &str, audiences: &[&str]) -> Result<String> {
        let request: TokenRequest = serde_json::from_value(json!({ "spec": { "audiences": audiences } }))?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.operator.clone(), namespace);
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await?;
        answer.status.and_then(|status| status.token).context("a token")
    }

    /// A tenant's login, by the role that its ServiceAccount names.
    async fn login_of(&self, tenant: &Tenant) -> Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.operator.clone(), &tenant.namespace);
        let found = accounts.list_metadata(&ListParams::default().fields("metadata.name=puller")).await?;
        let role = found.items.first().context("puller")?.annotations()[ROLE_ARN].clone();
        let token = self.web_identity(&tenant.namespace, "puller", &[STS]).await?;
        let config = aws_config::defaults(BehaviorVersion::latest()).region(Region::from_static("eu-west-1"));
        let config = config.no_credentials().endpoint_url(self.bed.aws.endpoint(Service::Sts)).load().await;
        let call = aws_sdk_sts::Client::new(&config).assume_role_with_web_identity().role_arn(role);
        let answer = call.role_session_name("operator").web_identity_token(token).send().await?;
        let keys = answer.credentials.context("credentials")?;
        let keys = Credentials::new(keys.access_key_id, keys.secret_access_key, Some(keys.session_token), None, "sts");
        let config = config.into_builder().endpoint_url(self.bed.aws.endpoint(Service::Ecr));
        let config = config.credentials_provider(SharedCredentialsProvider::new(keys)).build();
        let answer = aws_sdk_ecr::Client::new(&config).get_authorization_token().send().await?;
        answer.authorization_data()[0].authorization_token().map(str::to_owned).context("a token")
    }

    /// Writes a Secret as the operator would.
    async fn write(&self, tenant: &Tenant, uid: &str, auth: &str) -> Result<()> {
        let name = self.bed.name("x");
        let config = json!({ "auths": { "123456789012.dkr.ecr.eu-west-1.amazonaws.com": { "auth": auth } } });
        let expires = Timestamp::now() + Duration::from_secs(12 * 3600);
        let secret: Value = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self.bed.secret,
                "labels": {
                    "app.kubernetes.io/managed-by": "ecr-credential-operator",
                    "pullsecrets.dev/credential": name,
                    "pullsecrets.dev/credential-uid": uid,
                },
                "annotations": { "pullsecrets.dev/expires-at": expires.to_string() },
                "ownerReferences": [{
                    "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": name, "uid": uid, "controller": true,
                }],
            },
            "type": "kubernetes.io/dockerconfigjson",
            "data": { ".dockerconfigjson": BASE64_STANDARD.encode(config.to_string()) },
        });
        let secrets: Api<Secret> = Api::namespaced(self.operator.clone(), &tenant.namespace);
        let params = PatchParams::apply("ecr-credential-operator").force();
        secrets.patch(&self.bed.secret, &params, &Patch::Apply(secret)).await?;
        Ok(())
    }
}
