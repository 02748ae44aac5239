//! An answer of AWS as fields: a grant is made of it only if every token is good, and lives no longer than AWS can mean.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ecr_credential_operator::api::HostVariant;
use ecr_credential_operator::api::registry::{AccountId, Region};
use ecr_credential_operator::plan::schedule::later;
use ecr_credential_operator::plan::{Identity, Service, TokenKey};
use ecr_credential_operator::token::{AuthorizationToken, RawToken, check};
use k8s_openapi::jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use crate::material::{self, ACCOUNTS, HOUR};

pub fn run(bytes: &[u8]) {
    let _ = parts(&mut Unstructured::new(bytes));
}

fn parts(u: &mut Unstructured<'_>) -> Result<()> {
    let now = material::moment(u)?;
    let min_life = Duration::from_secs(*u.choose(&[0, 60, 300, 13 * 3600, u64::MAX])?);
    let ids = material::some(u, &ACCOUNTS[..4])?.into_iter().map(material::account).collect();
    let region = Region::parse("eu-west-1").expect("a region");
    let private = Service::Private { region, endpoint: HostVariant::Standard, registry_ids: ids };
    let service = if u.ratio(1, 5)? { Service::Public } else { private };
    let number = u.int_in_range(0..=5)?;
    let raw = (0..number).map(|_| entry(u)).collect::<Result<Vec<RawToken>>>()?;
    judge(raw, &TokenKey { identity: Identity::operator(), service }, now, min_life);
    Ok(())
}

fn entry(u: &mut Unstructured<'_>) -> Result<RawToken> {
    let text = match u.int_in_range(0..=9)? {
        0 => None,
        1 => Some(u.arbitrary::<&str>()?.to_owned()),
        2 => Some(STANDARD.encode(u.arbitrary::<&[u8]>()?)),
        _ => Some(STANDARD.encode(format!("AWS:{}", u.int_in_range(0..=999)?))),
    };
    let expires_at = u.ratio(11, 12)?.then(|| material::moment(u)).transpose()?;
    let account = AccountId::parse(u.choose(&ACCOUNTS)?).ok();
    Ok(RawToken { token: text.map(SecretString::from), expires_at, account })
}

/// What a grant of these entries must be; none may come of bad ones.
pub fn judge(raw: Vec<RawToken>, key: &TokenKey, now: Timestamp, min_life: Duration) {
    let Ok(grant) = check(raw.clone(), key, now, min_life) else { return };
    assert!(!grant.tokens.is_empty() && grant.identity == key.identity);
    let given: Vec<&str> = raw.iter().filter_map(|raw| Some(raw.token.as_ref()?.expose_secret())).collect();
    assert_eq!(given.len(), raw.len(), "every entry has a token");
    for token in &grant.tokens {
        assert!(given.contains(&token.auth.expose()), "no token is made up");
        let decoded = STANDARD.decode(token.auth.expose()).expect("base64");
        assert!(decoded.strip_prefix(b"AWS:").is_some_and(|password| !password.is_empty()));
    }
    lives(&grant, &raw, now, min_life);
    match &key.service {
        Service::Public => {}
        Service::Private { registry_ids, .. } if registry_ids.is_empty() => {
            assert_eq!(grant.tokens.len(), 1);
            assert_eq!(grant.caller(), raw[0].account.as_ref(), "the first is the caller's own");
            assert!(grant.caller().is_some());
        }
        Service::Private { registry_ids, .. } => {
            for id in registry_ids {
                let token = grant.token_for(Some(id)).expect("a token for each id");
                assert_eq!(token.account.as_ref(), Some(id), "and for no other");
            }
        }
    }
}

fn lives(grant: &AuthorizationToken, raw: &[RawToken], now: Timestamp, min_life: Duration) {
    let life = grant.life;
    assert!(life.is_valid(now), "an expired token is no token");
    assert!(later(now, min_life) <= life.expires_at, "{life:?} at {now} is too short");
    assert!(
        raw.iter().all(|entry| entry.expires_at.is_some_and(|at| life.expires_at <= at)),
        "no longer than AWS says"
    );
    assert!(life.expires_at.duration_since(now).as_secs() <= 12 * HOUR, "{life:?} at {now} is too long");
    for at in [life.issued_at, life.expires_at] {
        assert_eq!(at.subsec_nanosecond(), 0, "it survives being written and read");
    }
    assert!(life.issued_at.duration_since(now).as_secs().abs() <= 1);
}
