//! The stand-in beside moto: two imitations by different hands give the SDKs answers of the same shape.

use aws_credential_types::Credentials;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use testbed::aws::Service;
use testbed::moto::Moto;

use crate::clients::*;

/// What the SDKs made of the answers, without what must differ.
#[derive(Debug, PartialEq)]
struct Shape {
    arn: Option<String>,
    access_key_prefix: String,
    session_expires: bool,
    entries: usize,
    user: Option<String>,
    endpoint: Option<String>,
    token_expires: bool,
}

async fn shape(sts_endpoint: &str, ecr_endpoint: &str, token: &str) -> Shape {
    let sts = aws_sdk_sts::Client::new(&config("eu-west-1", sts_endpoint.to_owned(), None).await);
    let call =
        sts.assume_role_with_web_identity().role_arn("arn:aws:iam::123456789012:role/pull").role_session_name("twins");
    let session = call.web_identity_token(token).send().await.unwrap();
    let credentials: Credentials = credentials(session.credentials());
    let expires = session.credentials().unwrap().expiration().secs() > jiff::Timestamp::now().as_second();
    let prefix = credentials.access_key_id()[..4].to_owned();
    let ecr = aws_sdk_ecr::Client::new(&config("eu-west-1", ecr_endpoint.to_owned(), Some(credentials)).await);
    let answer = ecr.get_authorization_token().send().await.unwrap();
    let data = &answer.authorization_data()[0];
    let decoded = String::from_utf8(BASE64.decode(data.authorization_token().unwrap()).unwrap()).unwrap();
    Shape {
        arn: session.assumed_role_user().map(|user| user.arn().to_owned()),
        access_key_prefix: prefix,
        session_expires: expires,
        entries: answer.authorization_data().len(),
        user: decoded.split_once(':').map(|(user, _)| user.to_owned()),
        endpoint: data.proxy_endpoint().map(str::to_owned),
        token_expires: data.expires_at().is_some(),
    }
}

#[tokio::test]
async fn moto_and_the_stand_in_answer_in_the_same_shape() {
    let moto = Moto::start().await.unwrap();
    let (aws, issuer) = stand_in();
    aws.add_role(
        testbed::aws::Role::new("arn:aws:iam::123456789012:role/pull")
            .trusting(testbed::aws::Trust::web_identity(ISSUER, SUBJECT, AUDIENCE)),
    );
    let token = good_token(&issuer);
    let of_moto = shape(moto.endpoint(), moto.endpoint(), &token).await;
    let of_ours = shape(&aws.endpoint(Service::Sts), &aws.endpoint(Service::Ecr), &token).await;
    assert_eq!(of_moto, of_ours);
    assert!(moto.log().contains("POST / HTTP/1.1"));
}

#[tokio::test]
async fn motos_token_expired_in_2015() {
    let moto = Moto::start().await.unwrap();
    let key = Credentials::new("AKIAIOSFODNN7EXAMPLE", "secret", None, None, "testbed");
    let ecr = aws_sdk_ecr::Client::new(&config("eu-west-1", moto.endpoint().to_owned(), Some(key)).await);
    let answer = ecr.get_authorization_token().send().await.unwrap();
    let expires = answer.authorization_data()[0].expires_at().unwrap();
    assert!(expires.to_string().starts_with("2015-"), "{expires}");
}
