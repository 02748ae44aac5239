//! I11: finds secrets in texts, in every guise that a careless program gives them.

use aho_corasick::AhoCorasick;
use anyhow::{Result, ensure};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;

use super::{Invariant, Violation};

/// A part of this length is enough to be a leak.
const PART: usize = 12;

/// Secrets that must not appear.
#[derive(Clone, Debug, Default)]
pub(super) struct Canaries(Vec<Needle>);

#[derive(Clone, Debug)]
struct Needle {
    /// Says which canary and which guise, without the value.
    name: String,
    bytes: Vec<u8>,
}

impl Canaries {
    /// A secret and what to call it in a violation. Too short ones would be found by chance.
    pub(super) fn add(&mut self, name: &str, secret: &[u8]) -> Result<()> {
        ensure!(secret.len() >= 8, "the canary {name} has fewer than 8 bytes and would be found by chance");
        let length = secret.len().min(PART);
        // Whatever contains all of it contains its beginning, in the same guise.
        for (part, bytes) in [("beginning", &secret[..length]), ("end", &secret[secret.len() - length..])] {
            self.0.extend(
                guises(bytes)
                    .into_iter()
                    .map(|(guise, bytes)| Needle { name: format!("the {part} of {name}, {guise}"), bytes }),
            );
        }
        Ok(())
    }

    pub(super) fn search<'a>(
        &self,
        texts: impl IntoIterator<Item = (&'a str, &'a [u8])>,
        at: Timestamp,
    ) -> Result<Vec<Violation>> {
        let searcher = AhoCorasick::new(self.0.iter().map(|needle| &needle.bytes))?;
        let mut violations = vec![];
        for (place, text) in texts {
            let mut found: Vec<usize> =
                searcher.find_overlapping_iter(text).map(|found| found.pattern().as_usize()).collect();
            found.sort_unstable();
            found.dedup();
            let leaks = found.into_iter().map(|index| format!("contains {}", self.0[index].name));
            violations.extend(leaks.map(|leak| Violation::new(Invariant::I11Secrecy, place, at, leak)));
        }
        Ok(violations)
    }
}

fn guises(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex = hex::encode(bytes);
    let list: Vec<String> = bytes.iter().map(u8::to_string).collect();
    let percent = |upper: bool| -> String {
        let encode = |byte: &u8| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(*byte).to_string(),
            _ if upper => format!("%{byte:02X}"),
            _ => format!("%{byte:02x}"),
        };
        bytes.iter().map(encode).collect()
    };
    let mut guises = vec![
        ("raw", bytes.to_vec()),
        ("as hexadecimal", hex.to_uppercase().into_bytes()),
        ("as hexadecimal", hex.into_bytes()),
        ("as url-encoded", percent(true).into_bytes()),
        ("as url-encoded", percent(false).into_bytes()),
        ("as a list of bytes", list.join(", ").into_bytes()),
    ];
    for offset in 0..3 {
        guises.push(("as base64", base64_within(bytes, offset, &BASE64_STANDARD_NO_PAD)));
        guises.push(("as base64url", base64_within(bytes, offset, &BASE64_URL_SAFE_NO_PAD)));
    }
    guises
}

/// The characters that encode these bytes whatever stands around them, when they begin `offset` bytes after a group of three.
fn base64_within(bytes: &[u8], offset: usize, engine: &impl Engine) -> Vec<u8> {
    let padded = [&vec![0; offset][..], bytes].concat();
    let encoded = engine.encode(&padded).into_bytes();
    let first = [0, 2, 3][offset];
    let shared_last = usize::from(!padded.len().is_multiple_of(3));
    encoded[first..encoded.len() - shared_last].to_vec()
}

#[cfg(test)]
mod tests {
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    const SECRET: &str = "s3cr/et+Tok?en~that=must not leak";

    fn finds(text: &str) -> bool {
        let mut canaries = Canaries::default();
        canaries.add("token", SECRET.as_bytes()).unwrap();
        !canaries.search([("log", text.as_bytes())], Timestamp::UNIX_EPOCH).unwrap().is_empty()
    }

    #[test]
    fn each_guise_is_found_wherever_it_stands() {
        let debug = format!("{:?}", SECRET.as_bytes());
        let url: String = url::form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
        for text in [
            SECRET.into(),
            hex::encode(SECRET),
            hex::encode_upper(SECRET),
            debug,
            url,
            SECRET[..12].into(),
            SECRET[21..].into(),
        ] {
            assert!(finds(&format!("token={text};")), "{text}");
        }
        for before in ["", "A", "AW", "AWS", "AWS:"] {
            for after in ["", "x", "xy"] {
                let text = format!("{before}{SECRET}{after}");
                assert!(finds(&BASE64_STANDARD.encode(&text)), "{text}");
                assert!(finds(&BASE64_URL_SAFE_NO_PAD.encode(&text)), "{text}");
            }
        }
    }

    #[test]
    fn other_texts_and_short_parts_are_no_leak() {
        for text in ["", "refreshed 3 Secrets", &SECRET[..11], &SECRET[5..20]] {
            assert!(!finds(text), "{text}");
        }
    }

    #[test]
    fn a_violation_does_not_repeat_the_secret() {
        let mut canaries = Canaries::default();
        canaries.add("token", SECRET.as_bytes()).unwrap();
        let violations = canaries.search([("log", SECRET.as_bytes())], Timestamp::UNIX_EPOCH).unwrap();
        assert!(!violations.iter().any(|violation| violation.to_string().contains(&SECRET[..5])), "{violations:?}");
    }

    #[test]
    fn a_short_canary_is_refused() {
        assert!(Canaries::default().add("account", b"1234567").is_err());
    }
}
