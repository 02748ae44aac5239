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

/// What the SDK made of the answers to AssumeRole and GetCallerIdentity, without what must differ. moto knows no source
/// identity.
#[derive(Debug, PartialEq)]
struct Chained {
    arn: Option<String>,
    assumed_role_id: Option<String>,
    access_key: String,
    session_token: bool,
    seconds: i64,
    /// ARN and account.
    caller: (Option<String>, Option<String>),
    caller_id: Option<String>,
}

/// Letters and digits as `A` and `9`, so that ids of the same form are the same.
fn form(id: &str) -> String {
    let (letters, name) = id.split_once(':').map_or((id, ""), |(letters, name)| (letters, name));
    let random = letters.get(4..).unwrap_or_default();
    let all_upper = random.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    format!("{}+{} {all_upper} {name}", letters.get(..4).unwrap_or_default(), random.len())
}

async fn chained(sts_endpoint: &str, key: Credentials, role: &str) -> Chained {
    let sts = aws_sdk_sts::Client::new(&config("eu-west-1", sts_endpoint.to_owned(), Some(key)).await);
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecr:*","Resource":"*"}]}"#;
    let tag = aws_sdk_sts::types::Tag::builder().key("team").value("a").build().unwrap();
    let call = sts.assume_role().role_arn(role).role_session_name("twins").external_id("tenant-7").policy(policy);
    let call = call.duration_seconds(900).tags(tag).transitive_tag_keys("team").source_identity("ops");
    let answer = call.send().await.unwrap();
    let session = credentials(answer.credentials());
    let expires = answer.credentials().unwrap().expiration().secs() - jiff::Timestamp::now().as_second();
    let user = answer.assumed_role_user();
    let (key_id, token) = (session.access_key_id().to_owned(), session.session_token().map(str::to_owned));
    let sts = aws_sdk_sts::Client::new(&config("eu-west-1", sts_endpoint.to_owned(), Some(session)).await);
    let caller = sts.get_caller_identity().send().await.unwrap();
    Chained {
        arn: user.map(|user| user.arn().to_owned()),
        assumed_role_id: user.map(|user| form(user.assumed_role_id())),
        access_key: form(&key_id),
        session_token: token.is_some_and(|token| token.len() > 100),
        // Within a second or two of what was asked for.
        seconds: (expires + 5) / 10 * 10,
        caller: (caller.arn().map(str::to_owned), caller.account().map(str::to_owned)),
        caller_id: caller.user_id().map(form),
    }
}

#[tokio::test]
async fn moto_and_the_stand_in_chain_roles_in_the_same_shape() {
    use testbed::aws::{Permissions, Role, Trust};
    let moto = Moto::start().await.unwrap();
    let (aws, _) = stand_in();
    let (user, target) = ("arn:aws:iam::123456789012:user/puller", "arn:aws:iam::123456789012:role/images");
    aws.create_user(user, Permissions::pull());
    let key = aws.create_access_key(user).unwrap();
    let trust = Trust::principal(user).external_id("tenant-7").require_tag("team", "a").require_source_identity("ops");
    aws.add_role(Role::new(target).trusting(trust));
    let key = Credentials::new(key.id, key.secret, None, None, "testbed");
    let of_moto = chained(moto.endpoint(), key.clone(), target).await;
    let of_ours = chained(&aws.endpoint(Service::Sts), key, target).await;
    assert_eq!(of_moto, of_ours);
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
