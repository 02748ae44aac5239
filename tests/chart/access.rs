//! Who gains what from the ClusterRoles that the chart adds to view, edit and admin.

use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use kube::api::{Api, PostParams};
use serde_json::json;
use testbed::bed::poll;
use testbed::control_plane::{ControlPlane, shared};

use super::helm::{Helm, apply, chart, namespace};

#[tokio::test]
async fn viewers_of_the_whole_cluster_see_ecrcredentials_and_editors_write_them_if_told_so() {
    let plane = shared().await.unwrap();
    plane.install(&[serde_saphyr::from_str(super::CRD).unwrap()]).await.unwrap();
    let admin = plane.admin_client().unwrap();
    let home = "chart-access";
    namespace(&admin, home).await;
    let helm = Helm::on(plane, "v3");
    let chart = chart();
    let args = ["install", "eco", &chart.to_string_lossy(), "--namespace", home, "--set", "crds.enabled=false"];
    helm.run(&args).unwrap();
    for (who, role, binding, sees, writes) in [
        ("viewer", "view", "ClusterRoleBinding", true, false),
        ("editor", "edit", "ClusterRoleBinding", true, false),
        ("admin", "admin", "ClusterRoleBinding", true, false),
        // Bound in a namespace alone, as tenants are, nobody gains anything.
        ("tenant", "admin", "RoleBinding", false, false),
    ] {
        let account =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": who, "namespace": home } });
        apply(&admin, &account, false).await.unwrap();
        let mut bound = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": binding, "metadata": { "name": format!("chart-access-{who}") },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": who, "namespace": home }],
        });
        if binding == "RoleBinding" {
            bound["metadata"]["namespace"] = json!(home);
        }
        apply(&admin, &bound, false).await.unwrap();
        may(plane, home, who, sees, writes).await;
    }
    // The right to write is an option: whoever writes an EcrCredential decides where pull secrets go.
    let upgrade = ["upgrade", "eco", &chart.to_string_lossy(), "--namespace", home, "--set", "crds.enabled=false"];
    helm.run(&[&upgrade[..], &["--set", "rbac.aggregate.edit=true"]].concat()).unwrap();
    for (who, sees, writes) in
        [("viewer", true, false), ("editor", true, true), ("admin", true, true), ("tenant", false, false)]
    {
        may(plane, home, who, sees, writes).await;
    }
    helm.run(&["uninstall", "eco", "--namespace", home]).unwrap();
}

/// Waits until a ServiceAccount may do so much and no more: the controller that adds up ClusterRoles needs a moment.
async fn may(plane: &ControlPlane, home: &str, who: &str, sees: bool, writes: bool) {
    let token = plane.service_account_token(home, who, "", 3600).await.unwrap();
    let reviews: Api<SelfSubjectAccessReview> = Api::all(plane.client(&token).unwrap());
    for (verb, allowed) in [("list", sees), ("create", writes), ("delete", writes)] {
        let attributes = json!({ "group": "pullsecrets.dev", "resource": "ecrcredentials", "verb": verb });
        let review: SelfSubjectAccessReview =
            serde_json::from_value(json!({ "spec": { "resourceAttributes": attributes } })).unwrap();
        poll(&format!("{who} should be allowed to {verb}: {allowed}"), async || {
            reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed == allowed
        })
        .await;
    }
}
