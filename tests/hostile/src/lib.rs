//! Odd objects of every kind that the operator reads: each part of an ordinary object replaced by each odd value, as JSON text.
#![allow(clippy::expect_used, reason = "a test ends with the first thing that goes wrong")]

use serde_json::{Value, json};

/// Stands in an object where an odd value is to be. Some odd values, such as half a surrogate pair, cannot be a [`Value`].
const MARK: &str = "HERE-STANDS-AN-ODD-VALUE";

/// A kind of object that the operator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Secret's metadata.
    Secret,
    /// A namespace's metadata.
    Namespace,
    /// A ServiceAccount.
    ServiceAccount,
    /// An `EcrCredential`.
    EcrCredential,
    /// The operator's Lease.
    Lease,
}

/// An odd value.
#[derive(Clone, Debug)]
pub struct Odd {
    /// What is odd about it.
    pub what: &'static str,
    /// It, as JSON.
    pub json: String,
}

/// An object with an odd value somewhere.
#[derive(Clone, Debug)]
pub struct OddObject {
    /// Where which value is.
    pub what: String,
    /// It, as JSON.
    pub json: String,
}

/// So many levels, as an array or as an object.
pub fn nested(levels: usize, as_objects: bool) -> String {
    let (open, close) = if as_objects { (r#"{"f:a":"#, "}") } else { ("[", "]") };
    format!("{}{{}}{}", open.repeat(levels), close.repeat(levels))
}

/// Every kind of odd value.
pub fn values() -> Vec<Odd> {
    let plain = [
        ("null", "null"),
        ("true", "true"),
        ("a negative number", "-1"),
        ("zero", "0"),
        ("a fraction", "1.5"),
        ("a number that no type holds", "1e999"),
        ("a whole number that no type holds", "340282366920938463463374607431768211456"),
        ("an empty text", r#""""#),
        ("a text", r#""x""#),
        ("a text with escapes", r#""\u0000\n\"é""#),
        ("half a surrogate pair", r#""\ud800""#),
        ("the year 9999", r#""9999-12-31T23:59:59Z""#),
        ("the year 0", r#""0000-01-01T00:00:00Z""#),
        ("a time before any", r#""-999999-01-01T00:00:00Z""#),
        ("a leap second", r#""2016-12-31T23:59:60Z""#),
        ("an empty list", "[]"),
        ("a list of odd items", r#"[null, {}, [], 1, "x", {"name": 5, "uid": [], "manager": {}}]"#),
        ("an empty object", "{}"),
        ("an object with odd keys", r#"{"": {"": {}}, "f:": 1, ".": [], "\ud800": null, "k:{\"uid\":\"u\"}": {}}"#),
        ("a key twice", r#"{"name": "a", "name": "b", "f:data": {}, "f:data": 1}"#),
    ];
    let mut values: Vec<Odd> = plain.map(|(what, json)| Odd { what, json: json.to_owned() }).into();
    let mut add = |what, json| values.push(Odd { what, json });
    add("lists 130 deep", nested(130, false));
    add("objects 130 deep", nested(130, true));
    add("lists 10,000 deep", nested(10_000, false));
    add("objects 10,000 deep", nested(10_000, true));
    add("a huge text", format!("{:?}", "x".repeat(20_000)));
    add("a huge list", format!("[{}]", vec![r#"{"manager":"x","operation":"Apply","uid":"u"}"#; 500].join(",")));
    let keys: Vec<String> = (0..1000).map(|number| format!(r#""f:{number}":{{}}"#)).collect();
    add("a huge object", format!("{{{}}}", keys.join(",")));
    values
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Secret, Self::Namespace, Self::ServiceAccount, Self::EcrCredential, Self::Lease];

    /// An ordinary object as the API server sends it.
    pub fn ordinary(self, namespace: &str, name: &str) -> Value {
        let mut object = json!({ "apiVersion": self.api_version(), "kind": self.api_name() });
        object["metadata"] = metadata(namespace, name);
        match self {
            Self::Secret => object["metadata"]["ownerReferences"] = owner(),
            Self::Namespace => {
                object["metadata"]["namespace"].take();
                object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
            }
            Self::ServiceAccount => {
                object["metadata"]["annotations"] = json!({
                    "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/x", "pullsecrets.dev/attached": "pull",
                });
                object["secrets"] = json!([{ "name": "token" }]);
                object["imagePullSecrets"] = json!([{ "name": "theirs" }, { "name": "pull" }]);
            }
            Self::EcrCredential => credential(&mut object),
            Self::Lease => {
                object["spec"] = json!({
                    "holderIdentity": "somebody", "leaseDurationSeconds": 15, "leaseTransitions": 3,
                    "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:10.000000Z",
                });
            }
        }
        object
    }

    /// The JSON pointers of all parts of an ordinary object.
    pub fn parts(self) -> Vec<String> {
        paths(&self.ordinary("a", "x"))
    }

    /// An ordinary object with other values, as JSON, for some of its parts.
    pub fn with(self, namespace: &str, name: &str, values: &[(&str, &str)]) -> String {
        with(self.ordinary(namespace, name), values)
    }

    /// An ordinary object as a client creates it: without the fields that the API server sets, one of which makes it refuse all.
    pub fn to_create(self, namespace: &str, name: &str) -> Value {
        let mut object = self.ordinary(namespace, name);
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for field in ["uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"] {
                metadata.remove(field);
            }
        }
        object
    }

    /// Every part of an ordinary object replaced by every odd value.
    pub fn odd(self, namespace: &str, name: &str) -> Vec<OddObject> {
        let values = values();
        let odd = |part: &String, value: &Odd| OddObject {
            what: format!("{self:?}: {} at {part:?}", value.what),
            json: self.with(namespace, name, &[(part, &value.json)]),
        };
        self.parts().iter().flat_map(|part| values.iter().map(move |value| odd(part, value))).collect()
    }

    /// The API version.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Secret | Self::Namespace | Self::ServiceAccount => "v1",
            Self::EcrCredential => "pullsecrets.dev/v1alpha1",
            Self::Lease => "coordination.k8s.io/v1",
        }
    }

    /// The kind's name in the API.
    pub const fn api_name(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::EcrCredential => "EcrCredential",
            Self::Lease => "Lease",
        }
    }
}

/// Numbers by chance, the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The numbers of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of so many.
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let below = (mixed ^ (mixed >> 31)).checked_rem(count as u64).expect("there is one");
        usize::try_from(below).expect("it is below a usize")
    }

    /// An object with odd values for one to three of its parts, the names and the kind apart: others would be created.
    pub fn odd(&mut self, object: &Value) -> OddObject {
        let parts: Vec<String> = paths(object).into_iter().filter(|part| !IDENTITY.contains(&part.as_str())).collect();
        let values = values();
        let count = 1 + self.below(3);
        let chosen: Vec<(&String, &Odd)> =
            (0..count).map(|_| (&parts[self.below(parts.len())], &values[self.below(values.len())])).collect();
        let what: Vec<String> = chosen.iter().map(|(part, value)| format!("{} at {part:?}", value.what)).collect();
        let values: Vec<(&str, &str)> = chosen.iter().map(|(part, value)| (part.as_str(), &*value.json)).collect();
        OddObject { what: what.join(", "), json: with(object.clone(), &values) }
    }
}

/// What says which object it is.
const IDENTITY: [&str; 6] = ["", "/apiVersion", "/kind", "/metadata", "/metadata/name", "/metadata/namespace"];

/// An object with other values, as JSON, for some of its parts.
fn with(mut object: Value, values: &[(&str, &str)]) -> String {
    let mut put = Vec::new();
    for (number, (part, json)) in values.iter().enumerate() {
        let mark = format!("{MARK}-{number}-");
        // A part of one that was replaced before is none any more.
        if let Some(place) = object.pointer_mut(part) {
            *place = json!(mark);
            put.push((format!("{mark:?}"), *json));
        }
    }
    put.into_iter().fold(object.to_string(), |text, (mark, json)| text.replacen(&mark, json, 1))
}

/// A page of a list.
pub fn page(kind: Kind, items: &[&str]) -> String {
    format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{{"resourceVersion":"9","continue":""}},"items":[{}]}}"#,
        kind.api_name(),
        kind.api_version(),
        items.join(",")
    )
}

/// A line of a watch.
pub fn line(event: &str, object: &str) -> String {
    format!(r#"{{"type":"{event}","object":{object}}}"#)
}

fn metadata(namespace: &str, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": namespace,
        "uid": "s",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": { "app.kubernetes.io/managed-by": "ecr-credential-operator", "pullsecrets.dev/credential-uid": "u" },
        "annotations": { "pullsecrets.dev/expires-at": "2026-01-01T12:00:00Z" },
        "finalizers": ["example.com/hold"],
        "managedFields": [{
            "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "ecr-credential-operator", "operation": "Apply",
            "time": "2026-01-01T00:00:00Z",
            "fieldsV1": {
                "f:data": { "f:.dockerconfigjson": {} },
                "f:metadata": {
                    "f:annotations": { "f:pullsecrets.dev/expires-at": {} },
                    "f:labels": { "f:app.kubernetes.io/managed-by": {}, "f:pullsecrets.dev/credential-uid": {} },
                    "f:ownerReferences": { "k:{\"uid\":\"u\"}": {} },
                },
                "f:type": {},
            },
        }],
    })
}

fn owner() -> Value {
    json!([{ "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": "x", "uid": "u", "controller": true }])
}

fn credential(object: &mut Value) {
    object["metadata"]["namespace"].take();
    object["spec"] = json!({
        "registries": [{ "private": { "region": "eu-west-1", "accountIds": ["123456789012"], "hostVariants": ["Standard"] } }],
        "auth": { "serviceAccount": { "namespace": "a", "name": "puller" } },
        "namespaces": {
            "names": ["a", "b"],
            "selector": { "matchLabels": { "pull": "ecr" }, "matchExpressions": [{ "key": "x", "operator": "Exists" }] },
            "exclude": ["kube-*"],
        },
        "secret": { "name": "pull", "labels": { "a": "b" }, "conflictPolicy": "Fail" },
        "refresh": { "atPercent": 50, "maxAge": "6h" },
        "suspend": false,
    });
    object["status"] = json!({
        "observedGeneration": 2,
        "expiresAt": "2026-01-01T12:00:00Z",
        "namespaces": { "selected": 2, "synced": 2, "failed": 0, "summary": "2/2" },
        "registries": [{ "hosts": ["x"], "issuedAt": "2026-01-01T00:00:00Z", "expiresAt": "2026-01-01T12:00:00Z", "tokenHash": "h" }],
        "conditions": [{ "type": "Ready", "status": "True", "reason": "Synced", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
    });
}

/// The JSON pointers of all parts of a value, itself included.
fn paths(value: &Value) -> Vec<String> {
    let mut found = vec![String::new()];
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(members) => {
            members.iter().map(|(key, part)| (key.replace('~', "~0").replace('/', "~1"), part)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(number, part)| (number.to_string(), part)).collect(),
        _ => Vec::new(),
    };
    for (key, part) in parts {
        found.extend(paths(part).into_iter().map(|below| format!("/{key}{below}")));
    }
    found
}
