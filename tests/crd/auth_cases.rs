//! The table of what is refused in an `auth`, which is the same for all registries and for one.

use serde_json::{Value, json};

use super::cases::{Case, case};

/// A role whose ARN is right.
pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/pull";

/// Where an `auth` may stand, and how the API server calls that place.
pub(crate) const PLACES: [(&str, &str); 2] =
    [("spec/auth", "spec.auth"), ("spec/registries/0/auth", "spec.registries[0].auth")];

/// Every case, in each place.
pub(crate) fn auth_cases() -> Vec<Case> {
    let all: Vec<(Value, String)> = [bases(), service_account(), secret_ref(), roles()].concat();
    let there = |(path, field): (&'static str, &str)| {
        let cases = all.iter().map(|(auth, says)| case(path, auth.clone(), &says.replace('~', field)));
        cases.collect::<Vec<Case>>()
    };
    PLACES.into_iter().flat_map(there).collect()
}

fn bases() -> Vec<(Value, String)> {
    let role = json!({ "roleArn": ROLE });
    let named = json!({ "namespace": "a", "name": "b" });
    vec![
        (
            json!({ "serviceAccount": named, "secretRef": named }),
            "~: Invalid value: auth takes serviceAccount or secretRef, not both: assumeRoles can follow either"
                .to_owned(),
        ),
        (json!({ "assumeRoles": vec![role; 6] }), "~.assumeRoles: Too many: 6: must have at most 5 items".to_owned()),
    ]
}

fn service_account() -> Vec<(Value, String)> {
    let mut cases = vec![];
    let mut add = |account: Value, says: &str| {
        cases.push((json!({ "serviceAccount": account }), says.replace('#', "~.serviceAccount")));
    };
    let shape = "#: Invalid value: serviceAccount takes either namespace and name, or fromTargetNamespace alone";
    for account in [
        json!({}),
        json!({ "namespace": "a" }),
        json!({ "name": "b" }),
        json!({ "namespace": "a", "name": "b", "fromTargetNamespace": "c" }),
        json!({ "name": "b", "fromTargetNamespace": "c" }),
        json!({ "namespace": null, "name": null, "fromTargetNamespace": null }),
        json!({ "roleArn": ROLE }),
    ] {
        add(account, shape);
    }
    for text in wrong_namespaces() {
        let says = "#.namespace: Invalid value: namespace must be the name of a namespace";
        add(json!({ "namespace": text, "name": "b" }), says);
    }
    for text in wrong_names() {
        let says = "#.name: Invalid value: name must be the name of a ServiceAccount";
        add(json!({ "namespace": "a", "name": text }), says);
        let says = "#.fromTargetNamespace: Invalid value: fromTargetNamespace must be the name of a ServiceAccount";
        add(json!({ "fromTargetNamespace": text }), says);
    }
    let long = |length: usize| "a".repeat(length + 1);
    add(json!({ "namespace": long(63), "name": "b" }), "#.namespace: Too long: may not be more than 63 bytes");
    add(json!({ "namespace": "a", "name": long(253) }), "#.name: Too long: may not be more than 253 bytes");
    let says = "#.fromTargetNamespace: Too long: may not be more than 253 bytes";
    add(json!({ "fromTargetNamespace": long(253) }), says);
    for (arn, says) in wrong_roles() {
        add(json!({ "fromTargetNamespace": "c", "roleArn": arn }), &format!("#.roleArn: {says}"));
    }
    for (audiences, says) in [
        (json!(["a", "b", "c", "d", "e"]), ": Too many: 5: must have at most 4 items"),
        (json!([long(256)]), "[0]: Too long: may not be more than 256 bytes"),
        (json!(["a", "a"]), "[1]: Duplicate value: \"a\""),
        (json!([""]), "[0]: Invalid value: an audience must not be empty: sts.amazonaws.com"),
    ] {
        add(json!({ "fromTargetNamespace": "c", "audiences": audiences }), &format!("#.audiences{says}"));
    }
    cases
}

fn secret_ref() -> Vec<(Value, String)> {
    let mut cases = vec![];
    let mut add = |keys: Value, says: &str| {
        cases.push((json!({ "secretRef": keys }), says.replace('#', "~.secretRef")));
    };
    add(json!({ "name": "b" }), "#.namespace: Required value");
    add(json!({ "namespace": "a" }), "#.name: Required value");
    let long = |length: usize| "a".repeat(length + 1);
    add(json!({ "namespace": long(63), "name": "b" }), "#.namespace: Too long: may not be more than 63 bytes");
    add(json!({ "namespace": "a", "name": long(253) }), "#.name: Too long: may not be more than 253 bytes");
    for text in wrong_namespaces() {
        let says = "#.namespace: Invalid value: namespace must be the name of a namespace";
        add(json!({ "namespace": text, "name": "b" }), says);
    }
    for text in wrong_names() {
        add(json!({ "namespace": "a", "name": text }), "#.name: Invalid value: name must be the name of a Secret");
    }
    for field in ["accessKeyIdKey", "secretAccessKeyKey", "sessionTokenKey"] {
        let says = format!("#.{field}: Too long: may not be more than 253 bytes");
        add(json!({ "namespace": "a", "name": "b", field: long(253) }), &says);
        for text in ["", "a b", "a/b", "ä"] {
            let says = format!("#.{field}: Invalid value: {field} must be a key of a Secret's data");
            add(json!({ "namespace": "a", "name": "b", field: text }), &says);
        }
    }
    cases
}

fn roles() -> Vec<(Value, String)> {
    let mut cases = vec![];
    let mut add = |mut role: Value, says: &str| {
        if role.get("roleArn").is_none() {
            role["roleArn"] = json!(ROLE);
        }
        cases.push((json!({ "assumeRoles": [role] }), says.replace('#', "~.assumeRoles[0]")));
    };
    for (arn, says) in wrong_roles() {
        add(json!({ "roleArn": arn }), &format!("#.roleArn: {says}"));
    }
    let texts = [
        ("externalId", 1224, "externalId has 2 to 1224 letters, digits and characters of _+=,.@:/-"),
        ("sessionName", 64, "sessionName has 2 to 64 letters, digits and characters of _+=,.@-"),
        ("sourceIdentity", 64, "sourceIdentity has 2 to 64 letters, digits and characters of _+=,.@-"),
    ];
    for (field, length, message) in texts {
        let says = format!("#.{field}: Too long: may not be more than {length} bytes");
        add(json!({ field: "a".repeat(length + 1) }), &says);
        for text in ["", "a", "a b", "a*b"] {
            add(json!({ field: text }), &format!("#.{field}: Invalid value: {message}"));
        }
    }
    let bound = "#.durationSeconds: Invalid value: #.durationSeconds in body should be";
    add(json!({ "durationSeconds": 899 }), &format!("{bound} greater than or equal to 900"));
    add(json!({ "durationSeconds": 43_201 }), &format!("{bound} less than or equal to 43200"));
    let says = "#.sessionPolicy: Too long: may not be more than 2048 bytes";
    add(json!({ "sessionPolicy": format!("{{{}}}", " ".repeat(2047)) }), says);
    for text in ["", "[]", "{", "arn:aws:iam::aws:policy/ReadOnlyAccess"] {
        let says = "#.sessionPolicy: Invalid value: sessionPolicy must be an IAM policy as a JSON object";
        add(json!({ "sessionPolicy": text }), says);
    }
    tags(&mut add);
    cases.push((json!({ "assumeRoles": [{}] }), "~.assumeRoles[0].roleArn: Required value".to_owned()));
    cases
}

fn tags(add: &mut impl FnMut(Value, &str)) {
    let many: serde_json::Map<String, Value> = (0..51).map(|n| (format!("k{n}"), json!("x"))).collect();
    let keys: Vec<&String> = many.keys().collect();
    add(json!({ "tags": many }), "#.tags: Too many: 51: must have at most 50 items");
    add(json!({ "tags": { "k0": "x".repeat(257) } }), "#.tags.k0: Too long: may not be more than 256 bytes");
    for key in ["", "a*b", "a\tb", &"k".repeat(129)] {
        let says = "each tag key has 1 to 128 letters, digits, spaces and characters of _.:/=+@-";
        add(json!({ "tags": { key: "x" } }), &format!("#.tags: Invalid value: {says}"));
    }
    add(json!({ "transitiveTagKeys": keys }), "#.transitiveTagKeys: Too many: 51: must have at most 50 items");
    let long = json!({ "transitiveTagKeys": ["k".repeat(129)] });
    add(long, "#.transitiveTagKeys[0]: Too long: may not be more than 128 bytes");
    let twice = json!({ "tags": { "a": "x" }, "transitiveTagKeys": ["a", "a"] });
    add(twice, "#.transitiveTagKeys[1]: Duplicate value: \"a\"");
    for role in
        [json!({ "transitiveTagKeys": ["a"] }), json!({ "tags": { "b": "x" }, "transitiveTagKeys": ["b", "a"] })]
    {
        add(role, "#: Invalid value: transitiveTagKeys names a tag that is not in tags");
    }
}

fn wrong_namespaces() -> [&'static str; 5] {
    ["", "Team", "team_a", "-team", "a.b"]
}

fn wrong_names() -> [&'static str; 6] {
    ["", "Puller", "pull_er", "puller-", "a..b", "a/b"]
}

fn wrong_roles() -> Vec<(String, &'static str)> {
    let form = "Invalid value: roleArn must be the ARN of an IAM role such as arn:aws:iam::111122223333:role/pull";
    let wrong = [
        "",
        "pull",
        "arn:aws:iam::111122223333:user/pull",
        "arn:aws:iam::11112222333:role/pull",
        "arn:aws:sts::111122223333:assumed-role/pull/x",
        "arn:aws:iam::111122223333:role/",
        "arn:aws:iam::111122223333:role/a/",
        "arn:aws:iam::111122223333:role/a b",
    ];
    let mut cases: Vec<(String, &str)> = wrong.map(|arn| (arn.to_owned(), form)).to_vec();
    cases.push((format!("{ROLE}{}", "x".repeat(2048)), "Too long: may not be more than 2048 bytes"));
    cases
}
