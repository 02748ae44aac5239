//! An `EcrCredential` as the API server sends it: one that cannot be read, such as one of a newer version, is told apart.

use kube::core::ObjectMeta;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{DEFAULT_SECRET_NAME, EcrCredential, EcrCredentialStatus, NamespaceSelection, NamespaceSelector};
use crate::lenient::{Extract, Items, Object, Observed, lenient, read};

/// The longest part of an error that is told of: it quotes the object.
const LONGEST_ERROR: usize = 200;

/// An `EcrCredential` as an [`Api`](kube::Api) returns it.
pub type ObservedCredential = Observed<EcrCredential, Reading>;

/// The object, or what can be read of it.
#[derive(Clone, Debug)]
pub struct Reading(pub Result<Box<EcrCredential>, Box<Unreadable>>);

/// An `EcrCredential` whose spec cannot be read.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Why it cannot be read.
    pub error: String,
    /// Which Secret it wants, and where, as far as that can be read.
    pub wanted: Wanted,
    /// What was last said of it.
    pub status: Option<EcrCredentialStatus>,
}

/// Which Secret an `EcrCredential` wants, and where.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The Secret's name.
    pub secret_name: Option<String>,
    /// The namespaces.
    pub namespaces: Option<NamespaceSelection>,
    /// The outputs, by name, each with its namespaces.
    pub outputs: Vec<(String, Option<NamespaceSelection>)>,
}

impl Extract for Reading {
    const METADATA_ONLY: bool = false;

    fn extract(object: &RawValue) -> (ObjectMeta, Self) {
        let object = Object::of(object);
        let metadata = object.head();
        // The operator alone writes the status. Without it, tokens are fetched anew, which is better than to stop.
        let status = object.status.and_then(read);
        let spec = match object.spec.map(|raw| serde_json::from_str(raw.get())) {
            Some(Ok(spec)) => Ok(spec),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it has no spec".to_owned()),
        };
        let head = metadata.clone();
        let reading = match spec {
            Ok(spec) => Ok(Box::new(EcrCredential { metadata, spec, status })),
            Err(error) => {
                let error = error.chars().take(LONGEST_ERROR).collect();
                let wanted = object.spec.map(Wanted::read).unwrap_or_default();
                Err(Box::new(Unreadable { metadata, error, wanted, status }))
            }
        };
        (head, Self(reading))
    }
}

impl Wanted {
    fn read(spec: &RawValue) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Spec {
            secret: Secret,
            #[serde(deserialize_with = "lenient")]
            namespaces: Option<Namespaces>,
            outputs: Items<Output>,
        }
        #[derive(Deserialize)]
        struct Output {
            name: String,
            #[serde(default, deserialize_with = "lenient")]
            namespaces: Option<Namespaces>,
        }
        /// A name that is there and cannot be read is not the default.
        #[derive(Deserialize)]
        #[serde(default)]
        struct Secret {
            #[serde(deserialize_with = "lenient")]
            name: Option<String>,
        }
        impl Default for Secret {
            fn default() -> Self {
                Self { name: Some(DEFAULT_SECRET_NAME.to_owned()) }
            }
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Namespaces {
            names: Items<String>,
            #[serde(deserialize_with = "lenient")]
            selector: Option<NamespaceSelector>,
            exclude: Items<String>,
        }
        impl From<Namespaces> for NamespaceSelection {
            fn from(Namespaces { names: Items(names), selector, exclude: Items(exclude) }: Namespaces) -> Self {
                Self { names, selector, exclude }
            }
        }
        let Some(Spec { secret, namespaces, outputs: Items(outputs) }) = read(spec) else { return Self::default() };
        let namespaces: Option<NamespaceSelection> = namespaces.map(Into::into);
        let of_output = |namespaces: Option<Namespaces>| namespaces.map(Into::into);
        let outputs = outputs.into_iter().map(|o| (o.name, of_output(o.namespaces).or_else(|| namespaces.clone())));
        Self { secret_name: secret.name, outputs: outputs.collect(), namespaces }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn observe(object: &Value) -> ObservedCredential {
        serde_json::from_str(&object.to_string()).unwrap()
    }

    fn unreadable(spec: &Value) -> Unreadable {
        let object = json!({ "metadata": { "name": "x", "uid": "u", "generation": 3 }, "spec": spec });
        *observe(&object).content.0.unwrap_err()
    }

    #[test]
    fn one_that_cannot_be_read_says_what_it_wants_as_far_as_possible() {
        let names = |unreadable: &Unreadable| unreadable.wanted.namespaces.clone().map(|namespaces| namespaces.names);
        let table = [
            (
                json!({ "registries": 1, "namespaces": { "names": ["a", 2, "b"] } }),
                Some("ecr-pull-secret"),
                Some(vec!["a", "b"]),
            ),
            (
                json!({ "secret": { "name": "pull", "format": 7 }, "registries": [{ "oci": { "host": "x" }, "private": 1 }],
                    "namespaces": { "names": ["a"], "selector": [], "topology": { "zone": "z" } } }),
                Some("pull"),
                Some(vec!["a"]),
            ),
            (json!({ "secret": { "name": 5 }, "namespaces": 7 }), None, None),
            (json!({ "registries": [], "namespaces": {} , "suspend": "no" }), Some("ecr-pull-secret"), Some(vec![])),
            (json!(null), None, None),
            (json!("x"), None, None),
        ];
        for (spec, secret_name, namespaces) in table {
            let found = unreadable(&spec);
            assert_eq!(found.wanted.secret_name.as_deref(), secret_name, "{spec}");
            assert_eq!(names(&found), namespaces.map(|all| all.into_iter().map(str::to_owned).collect()), "{spec}");
            assert_eq!((found.metadata.name.as_deref(), found.metadata.generation), (Some("x"), Some(3)), "{spec}");
            assert!(!found.error.is_empty());
        }
    }

    #[test]
    fn the_outputs_of_one_that_cannot_be_read_are_known_as_far_as_possible() {
        let found = unreadable(&json!({ "registries": 1, "namespaces": { "names": ["a"] }, "outputs": [
            { "name": "x", "format": "Newer" }, 5, { "format": "Jenkins" }, { "name": "y", "namespaces": { "names": ["b"] } },
        ] }));
        let outputs = found.wanted.outputs.into_iter().map(|(name, namespaces)| (name, namespaces.unwrap().names));
        let expected = [("x", "a"), ("y", "b")].map(|(name, namespace)| (name.to_owned(), vec![namespace.to_owned()]));
        assert_eq!(outputs.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_error_of_a_huge_one_is_short() {
        let found = unreadable(&json!({ "registries": "x".repeat(100_000), "namespaces": {} }));
        assert!(found.error.len() <= 4 * LONGEST_ERROR, "{}", found.error.len());
    }

    #[test]
    fn odd_metadata_and_an_odd_status_do_not_make_it_unreadable() {
        let object = json!({
            "metadata": {
                "name": "x", "uid": "u", "resourceVersion": "7", "creationTimestamp": "9999-12-31T23:59:59Z",
                "managedFields": [{ "time": "9999-12-31T23:59:59Z", "fieldsV1": 1 }], "annotations": { "a": "b", "c": 1 },
            },
            "spec": { "registries": [{ "private": {} }], "namespaces": { "names": ["a"] } },
            "status": { "conditions": [{ "lastTransitionTime": "9999-12-31T23:59:59Z" }] },
        });
        let read = observe(&object).content.0.unwrap();
        assert_eq!(read.status, None);
        assert_eq!((read.metadata.creation_timestamp.as_ref(), read.spec.registries.len()), (None, 1));
        assert_eq!(read.metadata.annotations.unwrap().into_iter().collect::<Vec<_>>(), [("a".into(), "b".into())]);
    }
}
