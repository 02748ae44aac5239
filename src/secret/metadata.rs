//! A Secret's metadata as the API server sends it, read as far as we look at it and without copies: `managedFields` alone would
//! otherwise become dozens of small pieces in memory, for each answer and each watch event.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::ownership::SecretRecord;
use crate::plan::targets::Labels;

/// A text of the JSON that is being read, copied only where it has escapes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<'a>(Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a String> for Text<'a> {
    fn from(text: &'a String) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Cow<'de, str>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }
        deserializer.deserialize_str(TextVisitor).map(Self)
    }
}

/// A JSON object in the order in which it stands; empty for anything that is no object.
#[derive(Clone, Debug)]
pub struct Pairs<'a, V>(Vec<(Text<'a>, V)>);

impl<V> Default for Pairs<'_, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, V> Pairs<'a, V> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&V> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// All keys with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.0.iter().map(|(key, value)| (&**key, value))
    }
}

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Pairs<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<'a, V>(PhantomData<(&'a (), V)>);
        impl<'de: 'a, 'a, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<'a, V> {
            type Value = Pairs<'a, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Pairs::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Pairs::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Pairs::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Pairs::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Pairs::default())
            }
            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(Pairs::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Pairs::default())
            }
        }
        deserializer.deserialize_any(PairsVisitor(PhantomData))
    }
}

/// A set of fields as `managedFields` writes it (`FieldsV1`): names with the fields below them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Fields<'a>(#[serde(borrow)] Pairs<'a, Fields<'a>>);

impl Fields<'_> {
    /// The fields below a path such as `["f:metadata", "f:labels"]`.
    pub fn find(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |fields, name| fields.0.get(name))
    }

    /// The names of the fields right below this one, without their `f:`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|(name, _)| name.strip_prefix("f:"))
    }
}

/// An entry of `managedFields`: who owns what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry<'a> {
    #[serde(borrow)]
    pub(super) manager: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) operation: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) subresource: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) fields_v1: Option<Fields<'a>>,
}

impl<'a> Entry<'a> {
    fn of(entry: &'a ManagedFieldsEntry) -> Self {
        let text = |text: &'a Option<String>| text.as_ref().map(Text::from);
        Self {
            manager: text(&entry.manager),
            operation: text(&entry.operation),
            subresource: text(&entry.subresource),
            fields_v1: entry.fields_v1.as_ref().and_then(|fields| Fields::deserialize(&fields.0).ok()),
        }
    }
}

/// An owner reference.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner<'a> {
    #[serde(borrow)]
    pub(super) api_version: Text<'a>,
    #[serde(borrow)]
    pub(super) kind: Text<'a>,
    #[serde(borrow)]
    pub(super) uid: Text<'a>,
    pub(super) controller: Option<bool>,
}

impl<'a> Owner<'a> {
    fn of(owner: &'a OwnerReference) -> Self {
        Self {
            api_version: (&owner.api_version).into(),
            kind: (&owner.kind).into(),
            uid: (&owner.uid).into(),
            controller: owner.controller,
        }
    }
}

/// What we look at of a Secret's metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) namespace: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) uid: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) resource_version: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub(super) labels: Pairs<'a, Text<'a>>,
    #[serde(borrow, default)]
    pub(super) annotations: Pairs<'a, Text<'a>>,
    #[serde(borrow)]
    pub(super) owner_references: Option<Vec<Owner<'a>>>,
    #[serde(borrow)]
    pub(super) managed_fields: Option<Vec<Entry<'a>>>,
}

impl<'a> From<&'a ObjectMeta> for Metadata<'a> {
    fn from(metadata: &'a ObjectMeta) -> Self {
        let text = |text: &'a Option<String>| text.as_ref().map(Text::from);
        let pairs = |map: &'a Option<Labels>| {
            Pairs(map.iter().flatten().map(|(key, value)| (key.into(), value.into())).collect())
        };
        Self {
            name: text(&metadata.name),
            namespace: text(&metadata.namespace),
            uid: text(&metadata.uid),
            resource_version: text(&metadata.resource_version),
            labels: pairs(&metadata.labels),
            annotations: pairs(&metadata.annotations),
            owner_references: metadata.owner_references.as_ref().map(|list| list.iter().map(Owner::of).collect()),
            managed_fields: metadata.managed_fields.as_ref().map(|list| list.iter().map(Entry::of).collect()),
        }
    }
}

/// A Secret as an [`Api`](kube::Api) of its metadata returns it: its name, its namespace, and what we keep of it.
#[derive(Clone, Debug)]
pub struct SecretMetadata {
    metadata: ObjectMeta,
    record: Option<Arc<SecretRecord>>,
}

impl SecretMetadata {
    /// What we keep of it; none without uid and resourceVersion, which no stored object lacks.
    pub const fn record(&self) -> Option<&Arc<SecretRecord>> {
        self.record.as_ref()
    }
}

#[derive(Deserialize)]
struct Object<M> {
    metadata: M,
}

impl<'de> Deserialize<'de> for SecretMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Object { metadata } = Object::<Metadata<'de>>::deserialize(deserializer)?;
        let record = SecretRecord::of(&metadata).map(Arc::new);
        let text = |text: Option<Text<'_>>| text.map(|text| text.0.into_owned());
        let metadata = ObjectMeta {
            name: text(metadata.name),
            namespace: text(metadata.namespace),
            // A watch goes on from here.
            resource_version: text(metadata.resource_version),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, record })
    }
}

/// A namespace as an [`Api`](kube::Api) of its metadata returns it, with what we look at and no more.
#[derive(Clone, Debug)]
pub struct NamespaceMetadata(ObjectMeta);

impl<'de> Deserialize<'de> for NamespaceMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wanted {
            name: Option<String>,
            uid: Option<String>,
            /// A watch goes on from here.
            resource_version: Option<String>,
            creation_timestamp: Option<Time>,
            deletion_timestamp: Option<Time>,
            labels: Option<Labels>,
        }
        let Object { metadata } = Object::<Wanted>::deserialize(deserializer)?;
        Ok(Self(ObjectMeta {
            name: metadata.name,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            labels: metadata.labels,
            ..ObjectMeta::default()
        }))
    }
}

/// Makes `$type` an object of the metadata API, named as `$of` is.
macro_rules! metadata_of {
    ($type:ty, $of:ty, $scope:ty, $field:tt) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn metadata_api() -> bool {
                true
            }
            fn kind((): &()) -> Cow<'_, str> {
                <$of as Resource>::kind(&())
            }
            fn group((): &()) -> Cow<'_, str> {
                <$of as Resource>::group(&())
            }
            fn version((): &()) -> Cow<'_, str> {
                <$of as Resource>::version(&())
            }
            fn plural((): &()) -> Cow<'_, str> {
                <$of as Resource>::plural(&())
            }
            fn meta(&self) -> &ObjectMeta {
                &self.$field
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.$field
            }
        }
    };
}

metadata_of!(SecretMetadata, Secret, NamespaceResourceScope, metadata);
metadata_of!(NamespaceMetadata, Namespace, ClusterResourceScope, 0);

#[cfg(test)]
mod tests {
    use super::*;
    use kube::ResourceExt;
    use serde_json::json;

    /// A Secret's metadata as the metadata API shows it (1.36).
    fn answer() -> serde_json::Value {
        json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": {
                "annotations": { "pullsecrets.dev/expires-at": "2026-01-01T12:00:00Z" },
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "app.kubernetes.io/managed-by": "ecr-credential-operator" },
                "managedFields": [{
                    "apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "ecr-credential-operator", "operation": "Apply",
                    "time": "2026-01-01T00:00:00Z",
                    "fieldsV1": {
                        "f:data": { "f:.dockerconfigjson": {}, "f:extra": {} },
                        "f:metadata": {
                            "f:annotations": { "f:pullsecrets.dev/expires-at": {} },
                            "f:labels": { "f:app.kubernetes.io/managed-by": {} },
                            "f:ownerReferences": { "k:{\"uid\":\"u\"}": {} },
                        },
                        "f:type": {},
                    },
                }],
                "name": "pull", "namespace": "a",
                "ownerReferences": [
                    { "apiVersion": "pullsecrets.dev/v1alpha1", "kind": "EcrCredential", "name": "x", "uid": "u", "controller": true },
                ],
                "resourceVersion": "7", "uid": "s",
            },
        })
    }

    #[test]
    fn what_is_read_without_copies_is_what_is_read_with_them() {
        let text = answer().to_string();
        let lean: SecretMetadata = serde_json::from_str(&text).unwrap();
        let whole: kube::core::PartialObjectMeta<Secret> = serde_json::from_str(&text).unwrap();
        let record = SecretRecord::read(&whole.metadata).unwrap();
        assert_eq!(**lean.record().unwrap(), record);
        assert_eq!((lean.name_any(), lean.namespace()), (whole.name_any(), whole.namespace()));
        assert_eq!(lean.resource_version(), whole.resource_version());
        assert!(record.expires_at.is_some() && record.owner.is_some() && record.has_additions());
    }

    #[test]
    fn a_watch_event_is_read_in_either_order() {
        let object = answer();
        for text in
            [format!(r#"{{"type":"ADDED","object":{object}}}"#), format!(r#"{{"object":{object},"type":"ADDED"}}"#)]
        {
            let event: kube::core::WatchEvent<SecretMetadata> = serde_json::from_str(&text).unwrap();
            let kube::core::WatchEvent::Added(object) = event else { panic!("{event:?}") };
            assert!(object.record().is_some());
        }
    }

    #[test]
    fn a_text_with_escapes_is_read() {
        let mut answer = answer();
        answer["metadata"]["annotations"]["pullsecrets.dev/expires-at"] = "\"\n".into();
        let lean: SecretMetadata = serde_json::from_str(&answer.to_string()).unwrap();
        assert_eq!(lean.record().unwrap().expires_at, None);
    }

    #[test]
    fn what_is_no_object_has_no_fields() {
        for odd in [json!(null), json!(true), json!(-1), json!(1), json!(1.5), json!("x"), json!([{ "f:data": {} }])] {
            let mut answer = answer();
            answer["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"] = odd.clone();
            answer["metadata"]["labels"] = odd;
            let lean: SecretMetadata = serde_json::from_str(&answer.to_string()).unwrap();
            assert!(lean.record().unwrap().has_additions());
        }
    }

    #[test]
    fn both_are_read_through_the_metadata_api() {
        assert!(SecretMetadata::metadata_api() && NamespaceMetadata::metadata_api());
        assert_eq!(SecretMetadata::url_path(&(), Some("a")), "/api/v1/namespaces/a/secrets");
        assert_eq!(NamespaceMetadata::url_path(&(), None), "/api/v1/namespaces");
    }

    #[test]
    fn a_namespace_is_read_without_its_managed_fields() {
        let answer = json!({ "metadata": {
            "name": "a", "uid": "u", "resourceVersion": "7", "labels": { "pull": "ecr" }, "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": "2026-01-02T00:00:00Z", "managedFields": [{ "fieldsV1": { "f:metadata": {} } }],
        }});
        let lean: NamespaceMetadata = serde_json::from_value(answer.clone()).unwrap();
        let mut whole: kube::core::PartialObjectMeta<Namespace> = serde_json::from_value(answer).unwrap();
        whole.metadata.managed_fields = None;
        assert_eq!(*lean.meta(), whole.metadata);
    }
}
