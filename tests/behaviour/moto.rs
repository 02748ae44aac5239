//! The operator against moto, an imitation of AWS by other hands, whose tokens all expired in 2015.

use std::time::Duration;

use serde_json::json;
use testbed::bed::{Bed, Launch};
use testbed::moto::Moto;

use super::demand::*;
use super::{bed, launch};

#[tokio::test]
async fn motos_expired_token_is_refused_by_name_with_static_keys() {
    let moto = Moto::start().await.unwrap();
    let bed = bed("moto-keys").await;
    let launch = to_moto(&moto)
        .env("AWS_ROLE_ARN", "")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", "")
        .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
    bed.recorder.canary("the AWS key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY").unwrap();
    refuses(bed, &moto, launch).await;
}

#[tokio::test]
async fn motos_expired_token_is_refused_by_name_with_a_web_identity() {
    let moto = Moto::start().await.unwrap();
    let bed = bed("moto-irsa").await;
    refuses(bed, &moto, to_moto(&moto)).await;
    assert!(moto.log().contains("POST / HTTP/1.1"));
}

fn to_moto(moto: &Moto) -> Launch {
    launch().env("AWS_ENDPOINT_URL_STS", moto.endpoint()).env("AWS_ENDPOINT_URL_ECR", moto.endpoint())
}

async fn refuses(bed: Bed, moto: &Moto, launch: Launch) {
    let a = bed.namespace("a", &[]).await.unwrap();
    let operator = bed.operator(launch).await.unwrap();
    let name = bed.credential("x", spec(json!([{ "private": {} }]), &[&a])).await.unwrap();
    let object = bed.condition_until(&name, "Ready", "False", "ExpiredToken").await.unwrap();
    assert!(message(&object, "Ready").contains("2015-"), "{}", message(&object, "Ready"));
    let before = requests(moto);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let during = requests(moto) - before;
    assert!((1..=8).contains(&during), "{during} requests in 5 s");
    assert!(bed.secret(&a).await.unwrap().is_none());
    assert_eq!(bed.proxy.log().writes_to_secrets().len(), 0);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

fn requests(moto: &Moto) -> usize {
    moto.log().lines().filter(|line| line.contains("POST / ")).count()
}
