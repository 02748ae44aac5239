//! A Secret's metadata as the API server sends it, parsed without copies and only as far as it is used: `managedFields` alone would
//! otherwise take dozens of allocations for each response and each watch event.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;
use serde::de::Deserializer;
use serde_json::value::RawValue;

use crate::lenient::{Items, Members, Object, Pairs, Text, lenient, read};

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

/// `managedFields`: who has written which fields.
#[derive(Clone, Debug, Default)]
pub(super) struct ManagedFields<'a> {
    pub(super) entries: Vec<FieldsEntry<'a>>,
    /// A hash over all of it, as the API server writes it; none where there is no entry.
    pub(super) hash: Option<NonZeroU64>,
}

impl<'de: 'a, 'a> Deserialize<'de> for ManagedFields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let Items(entries) = read(raw).unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        raw.get().hash(&mut hasher);
        let hash = NonZeroU64::new(hasher.finish()).filter(|_| !entries.is_empty());
        Ok(Self { entries, hash })
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
    /// The annotations by key.
    #[serde(borrow)]
    pub annotations: Pairs<'a, Text<'a>>,
    #[serde(borrow)]
    pub(super) owner_references: Items<OwnerRef<'a>>,
    #[serde(borrow)]
    pub(super) managed_fields: ManagedFields<'a>,
    #[serde(borrow, deserialize_with = "lenient")]
    pub(super) deletion_timestamp: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) finalizers: Items<Text<'a>>,
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
}

fn string(text: Option<&Text<'_>>) -> Option<String> {
    text.map(|text| (**text).to_owned())
}
