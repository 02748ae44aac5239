//! The verifier against AWS's published test suite for Signature Version 4, as shipped with `aws-c-auth` and the SDKs.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use testbed::aws::sigv4::{Authorization, SignedRequest, amz_date, parse_amz_date};

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const DATE: (&str, &str) = ("x-amz-date", "20150830T123600Z");
const HOST: (&str, &str) = ("host", "example.amazonaws.com");
const FORM_HASH: &str = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e";
const TOKEN: &str = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";

/// (name in the suite, method, path, query, headers beside host and date, body, signed headers, signature)
type Vector = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
    &'static str,
);

const VECTORS: [Vector; 9] = [
    (
        "get-vanilla",
        "GET",
        "/",
        "",
        &[],
        "",
        "host;x-amz-date",
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    (
        "get-vanilla-query-order-encoded",
        "GET",
        "/",
        "Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
        &[],
        "",
        "host;x-amz-date",
        "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
    ),
    (
        "get-vanilla-utf8-query",
        "GET",
        "/",
        "ሴ=bar",
        &[],
        "",
        "host;x-amz-date",
        "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04",
    ),
    (
        "get-slash-dot-slash-normalized",
        "GET",
        "/./",
        "",
        &[],
        "",
        "host;x-amz-date",
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    (
        "get-utf8",
        "GET",
        "/ሴ",
        "",
        &[],
        "",
        "host;x-amz-date",
        "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
    ),
    (
        "get-header-value-trim",
        "GET",
        "/",
        "",
        &[("my-header1", " value1"), ("my-header2", " \"a   b   c\"")],
        "",
        "host;my-header1;my-header2;x-amz-date",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    (
        "get-header-key-duplicate",
        "GET",
        "/",
        "",
        &[("my-header1", "value2"), ("my-header1", "value2"), ("my-header1", "value1")],
        "",
        "host;my-header1;x-amz-date",
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    ),
    (
        "get-vanilla-with-session-token",
        "GET",
        "/",
        "",
        &[("x-amz-security-token", TOKEN)],
        "",
        "host;x-amz-date;x-amz-security-token",
        "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
    ),
    (
        "post-x-www-form-urlencoded-parameters",
        "POST",
        "/",
        "",
        &[
            ("content-length", "13"),
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("x-amz-content-sha256", FORM_HASH),
        ],
        "Param1=value1",
        "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
        "328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422",
    ),
];

#[test]
fn the_published_vectors_give_their_published_signatures() {
    for (name, method, path, query, extra, body, signed, signature) in VECTORS {
        let mut headers = HeaderMap::new();
        for (header, value) in [DATE, HOST].iter().chain(extra) {
            headers.append(HeaderName::from_static(header), HeaderValue::from_str(value).unwrap());
        }
        let scope = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";
        let sent = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={signed}, Signature={signature}");
        headers.insert("authorization", HeaderValue::from_str(&sent).unwrap());
        let authorization = Authorization::parse(&headers).unwrap().unwrap();
        let request = SignedRequest { method, path, query, headers: &headers, body: body.as_bytes() };
        assert_eq!(authorization.expected_signature(SECRET, &request, DATE.1), signature, "{name}");
        assert!(authorization.unsigned_headers(&headers).is_empty(), "{name}");
    }
}

#[test]
fn times_are_read_and_written_in_the_basic_form_of_iso_8601() {
    assert_eq!(amz_date(parse_amz_date("20150830T123600Z").unwrap()), "20150830T123600Z");
    assert_eq!(parse_amz_date("2015-08-30T12:36:00Z"), None);
}
