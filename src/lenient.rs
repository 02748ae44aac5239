//! Objects of the API server, parsed tolerantly: a value of an unexpected type counts as absent, and nothing else is lost.
//!
//! Anyone who may create an object decides what it contains, and one object that cannot be parsed would fail its whole list. So each
//! value is first kept as raw JSON, which `serde_json` skips without a depth limit, and then parsed on its own.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

/// Reads a field of any JSON; none where it is not a `T`. For `#[serde(default, deserialize_with = "lenient")]`.
///
/// # Errors
/// The text is no JSON.
pub fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?;
    Ok(read(raw))
}

/// Reads a value; none where it is not a `T`.
pub fn read<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

/// A list without the items that cannot be read.
#[derive(Clone, Debug)]
pub struct Items<T>(pub Vec<T>);

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw: Vec<&RawValue> = lenient(deserializer)?.unwrap_or_default();
        Ok(Self(raw.into_iter().filter_map(read).collect()))
    }
}

/// A string, copied only where it has escapes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<Text<'_>> for String {
    fn from(text: Text<'_>) -> Self {
        text.0.into_owned()
    }
}

/// The members of a JSON object that can be parsed, sorted by key for binary search.
#[derive(Clone, Debug)]
pub struct Pairs<'a, V>(Vec<(Text<'a>, V)>);

impl<V> Default for Pairs<'_, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, V> FromIterator<(Text<'a>, V)> for Pairs<'a, V> {
    fn from_iter<I: IntoIterator<Item = (Text<'a>, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        // The API server sends them sorted.
        if !pairs.is_sorted_by(|(a, _), (b, _)| a < b) {
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            pairs.dedup_by(|(a, _), (b, _)| a == b);
        }
        Self(pairs)
    }
}

impl<V> Pairs<'_, V> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&V> {
        let at = self.0.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// All keys with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.0.iter().map(|(key, value)| (&**key, value))
    }
}

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Pairs<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Members(members) = lenient(deserializer)?.unwrap_or_default();
        Ok(members.into_iter().filter_map(|(key, raw)| Some((key, read(raw)?))).collect())
    }
}

/// The members of a JSON object, with their values unread.
#[derive(Default)]
pub struct Members<'a>(pub Vec<(Text<'a>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The value of a member, of duplicates that of the first; none where it is missing, or not a `T`.
    pub fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        self.0.iter().find(|(key, _)| **key == *name).and_then(|(_, raw)| read(raw))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for MembersVisitor<'a> {
            type Value = Members<'a>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

/// An object with its parts unread.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Object<'a> {
    /// Its metadata.
    #[serde(borrow)]
    pub metadata: Option<&'a RawValue>,
    /// Its spec.
    #[serde(borrow)]
    pub spec: Option<&'a RawValue>,
    /// Its status.
    #[serde(borrow)]
    pub status: Option<&'a RawValue>,
}

impl<'a> Object<'a> {
    /// Splits an object into its parts. Any other value has none.
    pub fn of(object: &'a RawValue) -> Self {
        read(object).unwrap_or_default()
    }

    /// The metadata as far as it is read: without `managedFields`, owners and finalizers. An object without a name is to be skipped.
    pub fn head(&self) -> ObjectMeta {
        let metadata: Members<'_> = self.metadata.and_then(read).unwrap_or_default();
        let map = |name: &str| {
            let Pairs(pairs) = metadata.get::<Pairs<'_, String>>(name).unwrap_or_default();
            (!pairs.is_empty()).then(|| pairs.into_iter().map(|(key, value)| (key.into(), value)).collect())
        };
        // Only the presence of a deletion time matters.
        let deletion = |raw: &RawValue| read(raw).unwrap_or(Time(Timestamp::UNIX_EPOCH));
        ObjectMeta {
            name: metadata.get("name"),
            namespace: metadata.get("namespace"),
            uid: metadata.get("uid"),
            // A watch resumes from here.
            resource_version: metadata.get("resourceVersion"),
            generation: metadata.get("generation"),
            creation_timestamp: metadata.get("creationTimestamp"),
            deletion_timestamp: metadata.get::<Option<&RawValue>>("deletionTimestamp").flatten().map(deletion),
            labels: map("labels"),
            annotations: map("annotations"),
            ..ObjectMeta::default()
        }
    }
}

/// What is kept of an object.
pub trait Extract: Sized {
    /// Whether the metadata is enough, so that the API server is not asked for more.
    const METADATA_ONLY: bool;

    /// Reads an object: its name, namespace, uid and resourceVersion at least, and what is kept besides.
    fn extract(object: &RawValue) -> (ObjectMeta, Self);
}

impl Extract for () {
    const METADATA_ONLY: bool = true;

    fn extract(object: &RawValue) -> (ObjectMeta, Self) {
        (Object::of(object).head(), ())
    }
}

/// An object of kind `K` as an [`Api`](kube::Api) of it returns it. Reading one never fails, whatever it contains.
#[derive(Clone, Debug)]
pub struct Observed<K, T = ()> {
    metadata: ObjectMeta,
    /// What is kept of it.
    pub content: T,
    kind: PhantomData<K>,
}

impl<K, T> Observed<K, T> {
    /// An object that is to be written.
    pub const fn new(metadata: ObjectMeta, content: T) -> Self {
        Self { metadata, content, kind: PhantomData }
    }
}

/// What is kept is the whole object, where it is written.
impl<K, T: Serialize> Serialize for Observed<K, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.content.serialize(serializer)
    }
}

impl<'de, K, T: Extract> Deserialize<'de> for Observed<K, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (metadata, content) = T::extract(<&RawValue>::deserialize(deserializer)?);
        Ok(Self::new(metadata, content))
    }
}

impl<K: Resource<DynamicType = ()>, T: Extract> Resource for Observed<K, T> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn metadata_api() -> bool {
        T::METADATA_ONLY
    }
    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }
    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }
    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }
    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::{Items, Members};

    #[test]
    fn an_item_that_cannot_be_read_is_left_out_alone() {
        let items: Items<u8> = serde_json::from_str(r#"[1, "x", 300, null, [], 2]"#).unwrap();
        assert_eq!(items.0, [1, 2]);
        let items: Items<u8> = serde_json::from_str(r#"{"0": 1}"#).unwrap();
        assert!(items.0.is_empty());
    }

    #[test]
    fn a_member_is_read_by_itself_whatever_the_others_are() {
        let members: Members<'_> =
            serde_json::from_str(r#"{"a": 1, "a": 2, "b": [[]], "\u0063": "x", "d": null}"#).unwrap();
        assert_eq!(members.get::<u8>("a"), Some(1));
        assert_eq!((members.get::<u8>("b"), members.get::<u8>("missing")), (None, None));
        assert_eq!(members.get::<String>("c").as_deref(), Some("x"));
        assert_eq!((members.get::<u8>("d"), members.get::<Option<u8>>("d")), (None, Some(None)));
        assert!(serde_json::from_str::<Members<'_>>("[]").is_err());
    }
}
