//! A Secret's metadata as the API server sends it, parsed without copies and only as far as it is used: `managedFields` alone would
//! otherwise take dozens of allocations for each response and each watch event.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta, OwnerReference, Time};
use serde::Deserialize;
use serde::de::Deserializer;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::lenient::{Items, Members, Object, Pairs, Text, lenient, read};
use crate::plan::namespaces::Labels;

/// How deep a set of fields is parsed: to single labels. Deeper levels are skipped, since an object may nest them without limit.
const DEPTH: usize = 3;

/// A set of fields as `managedFields` writes it (`FieldsV1`): names with the fields below them.
#[derive(Clone, Debug, Default)]
pub struct Fields<'a>(Pairs<'a, Fields<'a>>);

impl<'a> Fields<'a> {
    fn read(raw: &'a RawValue, depth: usize) -> Self {
        let Some(below) = depth.checked_sub(1) else { return Self::default() };
        let Members(members) = read(raw).unwrap_or_default();
        Self(members.into_iter().map(|(name, raw)| (name, Self::read(raw, below))).collect())
    }

    fn of(value: &'a Value, depth: usize) -> Self {
        let Some(below) = depth.checked_sub(1) else { return Self::default() };
        let members = value.as_object().into_iter().flatten();
        Self(members.map(|(name, value)| (name.as_str().into(), Self::of(value, below))).collect())
    }

    fn to_value(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, fields)| (name.to_owned(), fields.to_value())).collect())
    }

    /// The fields below a path such as `["f:metadata", "f:labels"]`.
    pub fn find(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |fields, name| fields.0.get(name))
    }

    /// The names of the fields right below this one, without their `f:`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|(name, _)| name.strip_prefix("f:"))
    }
}

fn fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Fields<'de>>, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    Ok(Some(Fields::read(raw, DEPTH)))
}

/// An entry of `managedFields`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FieldsEntry<'a> {
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) manager: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) operation: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) subresource: Option<Text<'a>>,
    #[serde(deserialize_with = "lenient")]
    pub(super) time: Option<Time>,
    #[serde(borrow, deserialize_with = "fields")]
    pub(super) fields_v1: Option<Fields<'a>>,
}

impl<'a> FieldsEntry<'a> {
    fn of(entry: &'a ManagedFieldsEntry) -> Self {
        Self {
            manager: text(entry.manager.as_ref()),
            operation: text(entry.operation.as_ref()),
            subresource: text(entry.subresource.as_ref()),
            time: entry.time.clone(),
            fields_v1: entry.fields_v1.as_ref().map(|fields| Fields::of(&fields.0, DEPTH)),
        }
    }

    fn to_entry(&self) -> ManagedFieldsEntry {
        ManagedFieldsEntry {
            manager: string(self.manager.as_ref()),
            operation: string(self.operation.as_ref()),
            subresource: string(self.subresource.as_ref()),
            time: self.time.clone(),
            fields_v1: self.fields_v1.as_ref().map(|fields| FieldsV1(fields.to_value())),
            ..ManagedFieldsEntry::default()
        }
    }
}

/// An owner reference.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerRef<'a> {
    #[serde(borrow)]
    pub(super) api_version: Text<'a>,
    #[serde(borrow)]
    pub(super) kind: Text<'a>,
    #[serde(borrow)]
    pub(super) uid: Text<'a>,
    #[serde(default, deserialize_with = "lenient")]
    pub(super) controller: Option<bool>,
}

impl<'a> OwnerRef<'a> {
    fn of(owner: &'a OwnerReference) -> Self {
        Self {
            api_version: owner.api_version.as_str().into(),
            kind: owner.kind.as_str().into(),
            uid: owner.uid.as_str().into(),
            controller: owner.controller,
        }
    }

    fn to_reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: (*self.api_version).to_owned(),
            kind: (*self.kind).to_owned(),
            uid: (*self.uid).to_owned(),
            controller: self.controller,
            ..OwnerReference::default()
        }
    }
}

/// The metadata of a Secret that is used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata<'a> {
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) namespace: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) uid: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) resource_version: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) labels: Pairs<'a, Text<'a>>,
    #[serde(borrow)]
    pub(super) annotations: Pairs<'a, Text<'a>>,
    #[serde(borrow)]
    pub(super) owner_references: Items<OwnerRef<'a>>,
    #[serde(borrow)]
    pub(super) managed_fields: Items<FieldsEntry<'a>>,
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) deletion_timestamp: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) finalizers: Items<Text<'a>>,
}

impl<'a> From<&'a ObjectMeta> for Metadata<'a> {
    fn from(metadata: &'a ObjectMeta) -> Self {
        let pairs = |map: &'a Option<Labels>| {
            map.iter().flatten().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
        };
        Self {
            name: text(metadata.name.as_ref()),
            namespace: text(metadata.namespace.as_ref()),
            uid: text(metadata.uid.as_ref()),
            resource_version: text(metadata.resource_version.as_ref()),
            labels: pairs(&metadata.labels),
            annotations: pairs(&metadata.annotations),
            owner_references: Items(metadata.owner_references.iter().flatten().map(OwnerRef::of).collect()),
            managed_fields: Items(metadata.managed_fields.iter().flatten().map(FieldsEntry::of).collect()),
            // Only its presence matters.
            deletion_timestamp: metadata.deletion_timestamp.as_ref().map(|_| "".into()),
            finalizers: Items(metadata.finalizers.iter().flatten().map(|name| name.as_str().into()).collect()),
        }
    }
}

impl<'a> Metadata<'a> {
    pub(super) fn of(object: &'a RawValue) -> Self {
        Object::of(object).metadata.and_then(read).unwrap_or_default()
    }

    /// The fields that a watch needs.
    pub(super) fn head(&self) -> ObjectMeta {
        ObjectMeta {
            name: string(self.name.as_ref()),
            namespace: string(self.namespace.as_ref()),
            // A watch resumes from here.
            resource_version: string(self.resource_version.as_ref()),
            ..ObjectMeta::default()
        }
    }

    pub(super) fn to_object_meta(&self) -> ObjectMeta {
        let map = |pairs: &Pairs<'_, Text<'_>>| -> Option<Labels> {
            Some(pairs.iter().map(|(key, value)| (key.to_owned(), (**value).to_owned())).collect())
        };
        ObjectMeta {
            uid: string(self.uid.as_ref()),
            labels: map(&self.labels),
            annotations: map(&self.annotations),
            owner_references: Some(self.owner_references.0.iter().map(OwnerRef::to_reference).collect()),
            managed_fields: Some(self.managed_fields.0.iter().map(FieldsEntry::to_entry).collect()),
            ..self.head()
        }
    }
}

fn text(text: Option<&String>) -> Option<Text<'_>> {
    text.map(|text| text.as_str().into())
}

fn string(text: Option<&Text<'_>>) -> Option<String> {
    text.map(|text| (**text).to_owned())
}
