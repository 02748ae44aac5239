//! `authorizationToken`: what is accepted is base64 of `AWS:` and a password, and is kept as it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ecr_credential_operator::token::{DockerAuth, InvalidToken};

/// More is refused: it would not fit into a Secret (in bytes).
const LARGEST: usize = 512 * 1024;

pub fn run(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        raw(text);
    }
    decoded(bytes);
    decoded(&[b"AWS:", bytes].concat());
}

/// A text as AWS might send it.
fn raw(text: &str) {
    let Ok(auth) = DockerAuth::parse(text.to_owned()) else { return };
    assert_eq!(auth.expose(), text, "the token is kept as it is");
    assert!(text.len() <= LARGEST);
    let decoded = STANDARD.decode(text).expect("what is accepted is base64");
    assert_eq!(STANDARD.encode(&decoded), text, "one password has one form");
    let decoded = String::from_utf8(decoded).expect("what is accepted is text");
    assert!(decoded.strip_prefix("AWS:").is_some_and(|password| !password.is_empty()), "{decoded:?}");
    assert_eq!(format!("{auth:?}"), format!("{:?}", DockerAuth::parse("QVdTOng=".to_owned()).expect("AWS:x")));
}

/// What the base64 of some bytes must be taken for.
fn decoded(bytes: &[u8]) {
    let encoded = STANDARD.encode(bytes);
    let expected = match std::str::from_utf8(bytes) {
        _ if encoded.len() > LARGEST => Err(InvalidToken::TooLarge(encoded.len())),
        Err(_) => Err(InvalidToken::NotUtf8),
        Ok(text) => match text.find(':') {
            None => Err(InvalidToken::NoColon),
            Some(3) if text.starts_with("AWS") && text.len() > 4 => Ok(encoded.clone()),
            Some(3) if text.starts_with("AWS") => Err(InvalidToken::EmptyPassword),
            Some(_) => Err(InvalidToken::WrongUser),
        },
    };
    assert_eq!(DockerAuth::parse(encoded).map(|auth| auth.expose().to_owned()), expected);
}
