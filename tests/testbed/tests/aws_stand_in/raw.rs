//! Requests that no SDK would send, byte by byte.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, HeaderMap as Headers};
use jiff::{SignedDuration, Timestamp};
use testbed::aws::sigv4::{Authorization, SignedRequest, amz_date};
use testbed::aws::{AwsStandIn, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clients::stand_in;

const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A request under construction: signed as it is, then perhaps changed before it is sent.
struct Raw {
    service: Service,
    signing_name: &'static str,
    region: &'static str,
    headers: Headers,
    body: String,
    signed: Vec<&'static str>,
    at: Timestamp,
}

impl Raw {
    fn ecr() -> Raw {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "ecr.example.test"),
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let signed = vec!["content-type", "host", "x-amz-date", "x-amz-target"];
        let (region, body) = ("eu-west-1", "{}".to_owned());
        Raw { service: Service::Ecr, signing_name: "ecr", region, headers, body, signed, at: Timestamp::now() }
    }

    fn sign(mut self) -> Raw {
        let date = amz_date(self.at);
        self.headers.insert("x-amz-date", HeaderValue::from_str(&date).unwrap());
        let mut authorization = Authorization {
            access_key: KEY.to_owned(),
            date: date[..8].to_owned(),
            region: self.region.to_owned(),
            service: self.signing_name.to_owned(),
            signed_headers: self.signed.iter().map(|name| (*name).to_owned()).collect(),
            signature: String::new(),
        };
        let request =
            SignedRequest { method: "POST", path: "/", query: "", headers: &self.headers, body: self.body.as_bytes() };
        authorization.signature = authorization.expected_signature(SECRET, &request, &date);
        let value = format!(
            "AWS4-HMAC-SHA256 Credential={KEY}/{}/{}/{}/aws4_request, SignedHeaders={}, Signature={}",
            authorization.date,
            authorization.region,
            authorization.service,
            authorization.signed_headers.join(";"),
            authorization.signature
        );
        self.headers.insert("authorization", HeaderValue::from_str(&value).unwrap());
        self
    }

    fn set(mut self, name: &'static str, value: &str) -> Raw {
        self.headers.insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    async fn send(self, aws: &AwsStandIn) -> String {
        let mut text = "POST / HTTP/1.1\r\nconnection: close\r\n".to_owned();
        for (name, value) in &self.headers {
            text += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        text += &format!("content-length: {}\r\n\r\n{}", self.body.len(), self.body);
        send(aws, self.service, &text).await
    }
}

async fn send(aws: &AwsStandIn, service: Service, request: &str) -> String {
    let mut stream = TcpStream::connect(aws.endpoint(service).trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn with_user() -> AwsStandIn {
    let (aws, _) = stand_in();
    aws.add_user(KEY, SECRET, "123456789012");
    aws
}

#[tokio::test]
async fn a_request_must_be_sent_as_it_was_signed() {
    let aws = with_user();
    let mut tampered = Raw::ecr().sign();
    tampered.body = r#"{"registryIds":["111122223333"]}"#.to_owned();
    let mut wrong_service = Raw::ecr();
    wrong_service.signing_name = "ecr-public";
    let mut wrong_region = Raw::ecr();
    wrong_region.region = "moon";
    let mut target_unsigned = Raw::ecr();
    target_unsigned.signed = vec!["content-type", "host", "x-amz-date"];
    let mut stale = Raw::ecr();
    stale.at = Timestamp::now() - SignedDuration::from_mins(6);
    let mut early = Raw::ecr();
    early.at = Timestamp::now() + SignedDuration::from_mins(6);
    let unknown = "UnknownOperationException";
    let cases = [
        ("as signed", Raw::ecr().sign(), "200 OK"),
        ("another body", tampered, "InvalidSignatureException"),
        ("another host", Raw::ecr().sign().set("host", "evil.example.test"), "InvalidSignatureException"),
        ("a session token on top", Raw::ecr().sign().set("x-amz-security-token", "t"), "InvalidSignatureException"),
        ("signed for ECR Public", wrong_service.sign(), "Credential should be scoped to correct service: 'ecr'"),
        ("no such region", wrong_region.sign(), "Credential should be scoped to a valid region"),
        ("the target is not signed", target_unsigned.sign(), "x-amz-target"),
        ("six minutes old", stale.sign(), "Signature expired: "),
        ("six minutes early", early.sign(), "Signature not yet current: "),
        ("no signature", Raw::ecr(), "MissingAuthenticationTokenException"),
        (
            "half a signature",
            Raw::ecr().sign().set("authorization", "AWS4-HMAC-SHA256 x"),
            "IncompleteSignatureException",
        ),
        (
            "another API",
            Raw::ecr().set("x-amz-target", "AmazonEC2ContainerRegistry_V20150921.PutImage").sign(),
            unknown,
        ),
        ("not JSON 1.1", Raw::ecr().set("content-type", "application/json").sign(), unknown),
    ];
    for (name, request, expected) in cases {
        let answer = request.send(&aws).await;
        assert!(answer.contains(expected), "{name}: {answer}");
    }
}

#[tokio::test]
async fn sts_answers_its_errors_in_xml() {
    let aws = with_user();
    let post = |body: &str| {
        format!(
            "POST / HTTP/1.1\r\nhost: sts\r\nconnection: close\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let answer = send(&aws, Service::Sts, &post("Action=Nonsense&Version=2011-06-15")).await;
    assert!(answer.contains("<Code>InvalidAction</Code>") && answer.contains("<Type>Sender</Type>"), "{answer}");
    let answer = send(&aws, Service::Sts, &post("Action=GetCallerIdentity&Version=2011-06-15")).await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("<Code>MissingAuthenticationToken</Code>"),
        "{answer}"
    );
    assert!(answer.contains("<RequestId>"), "{answer}");
}
