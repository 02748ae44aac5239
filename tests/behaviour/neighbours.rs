//! What a tenant does to its own Secret hurts nobody else (I18).

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::look::{quiet, spec, writes_in};
use super::{OWN, bed, operator};

#[tokio::test]
async fn a_secret_that_a_tenant_has_sealed_and_pinned_costs_a_few_writes_and_holds_up_nobody() {
    let bed = bed("sealed").await;
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let _operator = operator(&bed).await;
    let name = bed.credential("x", spec(json!({ "names": [a, b] }))).await.unwrap();
    bed.ready(&name).await.unwrap();
    // Whoever may edit Secrets in one namespace can do this.
    let mark = bed.proxy.log().mark();
    let sealed = json!({ "immutable": true, "metadata": { "finalizers": ["example.com/pinned"] } });
    let secrets: Api<Secret> = bed.secrets(&a);
    secrets.patch(&bed.secret, &PatchParams::default(), &Patch::Merge(&sealed)).await.unwrap();
    // A refresh must reach the other namespace, and the status must not say that all is well.
    let before = bed.logins_until(&b, &[OWN]).await.unwrap();
    bed.request_refresh(&name, "now").await.unwrap();
    let newer = |secret: Option<&Secret>| secret.is_some_and(|secret| secret.data != before.data);
    bed.secret_until(&b, "the other namespace is refreshed", newer).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "NamespacesFailed").await.unwrap();
    quiet(&bed).await;
    let writes: Vec<String> = writes_in(&bed, mark, &a).iter().map(|write| write.summary()).collect();
    // Those that are refused are tried again after 0.2, 0.4, 0.8, 1.6 and then 2 s.
    assert!((1..=20).contains(&writes.len()), "{writes:#?}");
    let unpin = json!({ "metadata": { "finalizers": null } });
    secrets.patch(&bed.secret, &PatchParams::default(), &Patch::Merge(&unpin)).await.unwrap();
    bed.ready(&name).await.unwrap();
    bed.finish().await.unwrap();
}
