//! Signature Version 4, from the verifying side: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.

use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// A request as it came over the wire.
pub struct SignedRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

/// What the `Authorization` header claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    pub access_key: String,
    /// `YYYYMMDD`.
    pub date: String,
    pub region: String,
    pub service: String,
    pub signed_headers: Vec<String>,
    pub signature: String,
}

impl Authorization {
    /// Reads the header; `Ok(None)` when there is none.
    pub fn parse(headers: &HeaderMap) -> Result<Option<Self>, String> {
        let Some(value) = headers.get("authorization") else { return Ok(None) };
        let value = value.to_str().map_err(|_| "Authorization header is not ASCII".to_owned())?;
        let rest = value.strip_prefix(ALGORITHM).ok_or_else(|| format!("Unsupported AWS 'algorithm': '{value}'"))?;
        let field = |name: &str| {
            let parts = rest.split(',').map(str::trim);
            let mut found = parts.filter_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            found
                .next()
                .ok_or_else(|| format!("Authorization header requires '{name}' parameter. Authorization={value}"))
        };
        let scope: Vec<&str> = field("Credential")?.split('/').collect();
        let [access_key, date, region, service, "aws4_request"] = scope[..] else {
            return Err(format!("Credential must have exactly 5 slash-delimited elements, got '{}'", scope.join("/")));
        };
        Ok(Some(Authorization {
            access_key: access_key.to_owned(),
            date: date.to_owned(),
            region: region.to_owned(),
            service: service.to_owned(),
            signed_headers: field("SignedHeaders")?.split(';').map(str::to_owned).collect(),
            signature: field("Signature")?.to_owned(),
        }))
    }

    /// The signature that `secret` gives for this request at `amz_date` under this scope and these signed headers.
    pub fn expected_signature(&self, secret: &str, request: &SignedRequest<'_>, amz_date: &str) -> String {
        let scope = format!("{}/{}/{}/aws4_request", self.date, self.region, self.service);
        let canonical = canonical_request(request, &self.signed_headers);
        let to_sign = format!("{ALGORITHM}\n{amz_date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [self.date.as_str(), &self.region, &self.service, "aws4_request", &to_sign] {
            key = hmac(&key, part.as_bytes());
        }
        hex::encode(key)
    }

    /// The headers that must be signed but are not: `host`, `content-type` if sent, and every `x-amz-*` that was sent.
    pub fn unsigned_headers(&self, headers: &HeaderMap) -> Vec<String> {
        let mut missing: Vec<String> = headers
            .keys()
            .map(|name| name.as_str())
            .chain(["host", "x-amz-date"])
            .filter(|name| *name == "host" || *name == "content-type" || name.starts_with("x-amz-"))
            .filter(|name| !self.signed_headers.iter().any(|signed| signed == name))
            .map(str::to_owned)
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }
}

/// The form of a request that both sides sign.
pub fn canonical_request(request: &SignedRequest<'_>, signed_headers: &[String]) -> String {
    let headers: String =
        signed_headers.iter().map(|name| format!("{name}:{}\n", header_value(request.headers, name))).collect();
    format!(
        "{}\n{}\n{}\n{headers}\n{}\n{}",
        request.method,
        canonical_path(request.path),
        canonical_query(request.query),
        signed_headers.join(";"),
        sha256_hex(request.body)
    )
}

/// `20150830T123600Z`, the only form of `X-Amz-Date`.
pub fn amz_date(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The time in an `X-Amz-Date` header.
pub fn parse_amz_date(text: &str) -> Option<Timestamp> {
    let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// Lower-case hex of SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// All values of a header, each trimmed and with runs of spaces made one, joined by commas.
fn header_value(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let squeezed: Vec<String> = values.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    squeezed.join(",")
}

/// Dot segments removed and, as for every service but S3, each segment encoded once more than on the wire.
fn canonical_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    let slash = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{slash}", segments.iter().map(|segment| encode(segment.as_bytes())).collect::<Vec<_>>().join("/"))
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encode(&decode(name)), encode(&decode(value))))
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Percent-encoding of all but the unreserved characters of RFC 3986.
fn encode(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (*byte as char).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes[at] == b'%';
        let hex = bytes.get(at + 1..at + 3).filter(|_| escape);
        match hex.and_then(|hex| hex::decode(hex).ok()) {
            Some(byte) => (decoded.extend(byte), at += 3).1,
            None => (decoded.push(bytes[at]), at += 1).1,
        }
    }
    decoded
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    // HMAC takes keys of any length, so this cannot fail.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes any key"));
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}
