//! An upgrade and a downgrade with fresh Secrets: another build of the operator and of the CRD takes over, and nobody notices (I22).
//! `make test-upgrade` builds the operator of an earlier commit and names it in `OLD_OPERATOR`, and its CRD in `OLD_CRD`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::json;
use testbed::bed::{Bed, Launch, Operator};
use testbed::control_plane::{ControlPlane, Options};

use super::demand::*;
use super::look::{quiet, version};
use super::{CRD, OWN, PUBLIC};

fn old(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run make test-upgrade"))
}

async fn install(bed: &Bed, crd: &str) {
    let crd: CustomResourceDefinition = serde_saphyr::from_str(crd).unwrap();
    bed.plane.install(&[crd]).await.unwrap();
}

async fn start(bed: &Bed, launch: Launch) -> Operator {
    let operator = bed.operator(launch.service_account("*/puller")).await.unwrap();
    page_until(&operator, "/metrics", |_, text| text.contains("credentials{state=\"ready\"} 2\n")).await;
    quiet(bed).await;
    operator
}

#[tokio::test]
#[ignore = "needs the operator of an earlier commit: make test-upgrade"]
async fn another_build_takes_over_without_a_write_or_a_call_and_so_does_the_first_one_again() {
    let old_crd = std::fs::read_to_string(old("OLD_CRD")).unwrap();
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let bed = Bed::on(plane, "upgrade", &old_crd).await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let tenant = bed.tenant("tenant", "222222222222", "puller").await.unwrap();
    let before = || Launch::new(old("OLD_OPERATOR"));
    let first = bed.operator(before().service_account("*/puller")).await.unwrap();
    let shared = bed.credential("shared", spec(json!([{ "private": {} }, { "public": {} }]), &[&a])).await.unwrap();
    let mut each = spec(json!([{ "private": {} }]), &[&tenant.namespace]);
    each["auth"] = json!({ "serviceAccount": { "fromTargetNamespace": "puller" } });
    let each = bed.credential("each", each).await.unwrap();
    bed.ready(&shared).await.unwrap();
    bed.ready(&each).await.unwrap();
    bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
    quiet(&bed).await;
    let mut running = first;
    let steps = [
        ("the new CRD", None, CRD),
        ("the new operator", Some(super::launch()), CRD),
        ("the old operator again", Some(before()), CRD),
        ("the old CRD again", None, &*old_crd),
        ("both anew", Some(super::launch()), CRD),
    ];
    for (step, (what, launch, crd)) in steps.into_iter().enumerate() {
        let (calls, mark) = (bed.aws.mark(), bed.proxy.log().mark());
        let mut versions = Vec::new();
        for namespace in [&a, &tenant.namespace] {
            versions.push(version(&bed.secret(namespace).await.unwrap().unwrap()));
        }
        install(&bed, crd).await;
        if let Some(launch) = launch {
            running.stop().await.unwrap();
            running = start(&bed, launch).await;
        }
        quiet(&bed).await;
        let writes = bed.proxy.log().writes_to_secrets_since(mark);
        assert!(writes.is_empty(), "{what}: {writes:?}");
        assert_eq!(bed.aws.calls_since(calls).len(), 0, "{what}");
        for (namespace, before) in [&a, &tenant.namespace].into_iter().zip(&versions) {
            assert_eq!(version(&bed.secret(namespace).await.unwrap().unwrap()), *before, "{what}: {namespace}");
        }
        // Whoever runs now can refresh, and the next one takes over what that has written.
        let value = step.to_string();
        demand(&bed, &shared, &value).await;
        served(&bed, &shared, &value).await;
        bed.ready(&shared).await.unwrap();
        bed.logins_until(&a, &[OWN, PUBLIC]).await.unwrap();
        quiet(&bed).await;
    }
    running.stop().await.unwrap();
    let found = bed.judge().await.unwrap();
    assert!(found.is_empty(), "{found:#?}");
    let plane = bed.plane;
    plane.stop_controller_manager();
    plane.stop_api_server();
}
