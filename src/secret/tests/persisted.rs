//! What stands in a Secret for the next process to read, pinned by literal values.

use super::*;

/// A spec whose one registry is fetched through this role.
fn through(step: serde_json::Value) -> EcrCredentialSpec {
    spec(serde_json::json!({
        "registries": [{ "private": { "region": "eu-west-1", "accountIds": ["111122223333"] } }],
        "auth": { "assumeRoles": [step] },
        "namespaces": { "names": ["a"] },
    }))
}

/// The annotations of the Secret that a spec leads to, with a token that the identity of the spec fetched.
fn annotations(spec: &EcrCredentialSpec) -> BTreeMap<String, String> {
    let plan = planned(spec);
    let token_spec = &plan.registries[0].token_specs[0];
    let identity = token_spec.auth.resolve(None, &crate::plan::references::References::default()).unwrap();
    let token = token("password", Some("111122223333"), NOW, NOW + HOUR);
    let fetched = Arc::new(AuthorizationToken { identity, ..(*token).clone() });
    let published = Published::from([(token_spec.clone(), fetched)]);
    let desired = build(spec, &published).unwrap();
    desired.metadata.annotations.unwrap()
}

#[test]
fn a_secret_does_not_help_to_guess_an_external_id() {
    const ROLE: &str = "arn:aws:iam::111122223333:role/pull";
    let plain = annotations(&through(serde_json::json!({ "roleArn": ROLE })));
    let with_id = annotations(&through(serde_json::json!({ "roleArn": ROLE, "externalId": "guess-me" })));
    assert_eq!(with_id, plain);
    let other_role = annotations(&through(serde_json::json!({ "roleArn": "arn:aws:iam::111122223333:role/other" })));
    assert_ne!(other_role[IDENTITY_HASH], plain[IDENTITY_HASH], "another role is another identity");
}

/// The next build must find the Secret as it would write it itself, or it writes all of them anew.
#[test]
fn the_same_tokens_give_the_same_secret_in_every_build() {
    let mut spec = two_registries();
    spec.secret.labels.insert("team".to_owned(), "a".to_owned());
    spec.secret.annotations.insert("note".to_owned(), "b".to_owned());
    let desired = build(&spec, &published(&spec, NOW + 2 * HOUR, Some(NOW + HOUR))).unwrap();
    let expected = serde_json::json!({
        "labels": {
            "app.kubernetes.io/managed-by": "ecr-credential-operator",
            "pullsecrets.dev/credential": "platform",
            "pullsecrets.dev/credential-uid": "me",
            "team": "a",
        },
        "annotations": {
            "note": "b",
            "pullsecrets.dev/content-hash": "sha256:c17055d76002a0d04d6de1672a728932350ef6e9d9e57ebe01d5ea0498e80704",
            "pullsecrets.dev/expires-at": "1970-01-12T14:46:40Z",
            "pullsecrets.dev/hosts-hash": "c1fb167c3907ecb5",
            "pullsecrets.dev/identity-hash": "3f2b851252e335b9",
            "pullsecrets.dev/refreshed-at": "1970-01-12T07:46:40Z",
        },
        "ownerReferences": [{
            "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": "platform", "uid": "me", "controller": true,
        }],
    });
    assert_eq!(serde_json::to_value(&desired.metadata).unwrap(), expected);
    let json = value(&desired, ".dockerconfigjson");
    let data = r#"{"auths":{"111122223333.dkr.ecr.eu-west-1.amazonaws.com":{"auth":"QVdTOnA="},"public.ecr.aws":{"auth":"QVdTOnE="}}}"#;
    assert_eq!(String::from_utf8(json).unwrap(), data);
    assert_eq!(FIELD_MANAGER, "ecr-credential-operator", "the fields of Secrets are known as ours by this name");
}

#[test]
fn the_identities_of_a_secret_have_no_order() {
    let spec = two_registries();
    let mut all = published(&spec, NOW + HOUR, Some(NOW + HOUR));
    let role = planned(&through(serde_json::json!({ "roleArn": "arn:aws:iam::111122223333:role/pull" })));
    let other =
        role.registries[0].token_specs[0].auth.resolve(None, &crate::plan::references::References::default()).unwrap();
    let hashes: std::collections::BTreeSet<u64> = (0..2)
        .map(|turn| {
            for (number, token) in all.values_mut().enumerate() {
                let identity = if number == turn { other.clone() } else { Identity::operator() };
                *token = Arc::new(AuthorizationToken { identity, ..(**token).clone() });
            }
            let token_specs: Vec<TokenSpec> = all.keys().cloned().collect();
            identity_hash(&all, &token_specs.iter().collect::<Vec<_>>(), &Included::default())
        })
        .collect();
    assert_eq!(hashes.len(), 1);
}
