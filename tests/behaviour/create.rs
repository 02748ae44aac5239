//! From an EcrCredential to Secrets in every target namespace.

use serde_json::json;
use testbed::aws::Service;

use super::{OWN, PUBLIC, bed, operator};

#[tokio::test]
async fn an_ecrcredential_becomes_one_secret_in_each_target() {
    let bed = bed("create").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[(&bed.prefix, "yes")]).await.unwrap();
    let other = bed.namespace("other", &[]).await.unwrap();
    let operator = operator(&bed).await;
    let spec = json!({
        "registries": [{ "private": {} }, { "public": {} }],
        // Labels are seen by all tests of this control plane: only this test's namespaces may match.
        "namespaces": { "names": [a], "selector": { "matchLabels": { &bed.prefix: "yes" } }, "exclude": ["kube-*"] },
    });
    let name = bed.credential("x", spec).await.unwrap();
    for namespace in [&a, &b] {
        bed.logins_until(namespace, &[OWN, PUBLIC]).await.unwrap();
    }
    bed.ready(&name).await.unwrap();
    assert!(bed.secret(&other).await.unwrap().is_none());
    assert_eq!(bed.aws.calls(Service::Ecr).len(), 1);
    assert_eq!(bed.aws.calls(Service::EcrPublic).len(), 1);
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 2);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
