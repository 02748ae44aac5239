//! The encoding of what outlives the process: SHA-256 over length-prefixed fields under a versioned name.
//!
//! Hashes in annotations and in the status are compared with those of the next process, which may be a newer build. They
//! must depend on values alone, never on names in the code, on the order of declarations or on the standard library. Each
//! name, such as `identity/v1`, stands for a fixed sequence of fields. A change of the sequence needs a new version, and causes
//! one refresh and one write of every Secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest. It is shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes as they are, as `sha256sum` prints it.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The first 8 bytes, for comparisons where a collision is harmless.
    pub fn short(&self) -> u64 {
        self.0.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A sequence of fields. No two different sequences of the same kinds of fields have the same bytes.
#[derive(Clone)]
pub struct Fields(Sha256);

impl Fields {
    /// No field yet. `name` says what the fields are, and which version of them.
    pub fn new(name: &'static str) -> Self {
        Self(Sha256::new()).text(name)
    }

    /// A text: its length in bytes as 8 bytes, the first the most significant, then the text in UTF-8.
    pub fn text(self, text: &str) -> Self {
        self.count(text.len()).bytes(text.as_bytes())
    }

    /// A number as 8 bytes, the first the most significant.
    pub fn number(self, number: i64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    /// A text that may be missing: the list of none or one.
    pub fn optional(self, text: Option<&str>) -> Self {
        self.list(text, Self::text)
    }

    /// Texts in their order.
    pub fn texts(self, texts: &[String]) -> Self {
        self.list(texts, |fields, text| fields.text(text))
    }

    /// Texts by key, in the order of the keys.
    pub fn map(self, texts: &BTreeMap<String, String>) -> Self {
        self.list(texts, |fields, (key, value)| fields.text(key).text(value))
    }

    /// Digests in their order.
    pub fn digests(self, digests: &BTreeSet<Digest>) -> Self {
        self.list(digests, |fields, digest| fields.digest(*digest))
    }

    /// A digest: its 32 bytes.
    pub fn digest(self, digest: Digest) -> Self {
        self.bytes(&digest.0)
    }

    /// How many items there are, as a number, then each item's fields.
    pub fn list<T>(self, items: impl IntoIterator<Item = T>, item: impl Fn(Self, T) -> Self) -> Self {
        let items: Vec<T> = items.into_iter().collect();
        let counted = self.count(items.len());
        items.into_iter().fold(counted, item)
    }

    /// The digest over all fields.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }

    fn count(self, count: usize) -> Self {
        self.bytes(&(count as u64).to_be_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes);
        self
    }
}

/// Lower case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_field_has_the_bytes_that_its_description_says() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let map = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let eight = |number: u64| number.to_be_bytes();
        let of = |parts: &[&[u8]]| Digest::of(&parts.concat());
        let (one, two) = (eight(1), eight(2));
        let start: &[u8] = &[&two, b"t1".as_slice()].concat();
        let some = Digest::of(b"x");
        let table = [
            ("nothing", Fields::new("t1"), of(&[start])),
            ("text", Fields::new("t1").text("é"), of(&[start, &two, "é".as_bytes()])),
            ("number", Fields::new("t1").number(-2), of(&[start, &[255, 255, 255, 255, 255, 255, 255, 254]])),
            ("missing", Fields::new("t1").optional(None), of(&[start, &eight(0)])),
            ("there", Fields::new("t1").optional(Some("a")), of(&[start, &one, &one, b"a"])),
            ("texts", Fields::new("t1").texts(&texts(&["a", ""])), of(&[start, &two, &one, b"a", &eight(0)])),
            ("map", Fields::new("t1").map(&map), of(&[start, &one, &one, b"k", &one, b"v"])),
            ("digest", Fields::new("t1").digest(some), of(&[start, &some.0])),
            ("digests", Fields::new("t1").digests(&BTreeSet::from([some])), of(&[start, &one, &some.0])),
        ];
        for (name, fields, expected) in table {
            assert_eq!(fields.finish(), expected, "{name}");
        }
    }

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        let digest = Digest::of(b"hello");
        assert_eq!(digest.to_string(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(digest.short(), 0x2cf2_4dba_5fb0_a30e);
    }

    #[test]
    fn text_cannot_move_from_one_field_to_the_next() {
        let pairs = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")];
        let digests: BTreeSet<Digest> = pairs.map(|(a, b)| Fields::new("t1").text(a).text(b).finish()).into();
        assert_eq!(digests.len(), pairs.len());
    }
}
