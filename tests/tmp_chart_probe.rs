//! Probe.
use serde_json::json;
use testbed::bed::{Bed, Launch};
const CRD: &str = include_str!("../crds/ecrcredentials.pullsecrets.dev.yaml");
#[tokio::test]
async fn an_added_registry_whose_token_is_older_is_written() {
    let bed = Bed::with_secret_names("probe", CRD, &["two"]).await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let b = bed.namespace("b", &[]).await.unwrap();
    let operator = bed.operator(Launch::new(env!("CARGO_BIN_EXE_ecr-credential-operator"))).await.unwrap();
    let other = json!({ "registries": [{ "private": {"region": "us-east-1"} }], "namespaces": { "names": [b] } });
    let other = bed.credential("other", other).await.unwrap();
    bed.ready(&other).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let x = json!({ "registries": [{ "private": {} }], "namespaces": { "names": [a] } });
    let x = bed.credential("x", x).await.unwrap();
    bed.ready(&x).await.unwrap();
    bed.change(&x, json!({"spec": {"registries": [{ "private": {} }, {"private": {"region": "us-east-1"}}]}})).await.unwrap();
    let r = bed.logins_until(&a, &["123456789012.dkr.ecr.eu-west-1.amazonaws.com", "123456789012.dkr.ecr.us-east-1.amazonaws.com"]).await;
    let c = bed.credential_until(&x, "any", |_| true).await.unwrap();
    println!("{}", serde_json::to_string_pretty(&c.data["status"]).unwrap());
    println!("{}", operator.tail());
    r.unwrap();
}
