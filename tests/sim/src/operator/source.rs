//! The scripted AWS as the operator sees it: whose session a token is fetched with, and what its answers are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ecr_credential_operator::api::registry::AccountId;
use ecr_credential_operator::clock::{Clock, Server};
use ecr_credential_operator::plan::auth::{Account, IdentitySource};
use ecr_credential_operator::plan::{Identity, Service, TokenKey};
use ecr_credential_operator::token::{Cluster, Prepared, RawToken, StaticKeys, TokenError, TokenSource};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use k8s_openapi::jiff::SignedDuration;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::aws::{Aws, Caller, Failure};
use crate::clock;

/// How long STS and ECR take.
const CALL: Duration = Duration::from_millis(50);

/// How long the session of a role lasts, and that of keys, which the AWS SDK reads again after this time.
const SESSION: Duration = Duration::from_secs(3600);
const KEYS: Duration = Duration::from_secs(900);

/// What is left of a session when the next is prepared, and for how long fetches share one request to the API server.
const BUFFER: Duration = Duration::from_secs(300);

/// See the file's first line.
pub(super) struct Source {
    pub(super) aws: Aws,
    pub(super) process: u32,
    /// The operator's own identity.
    pub(super) identity: String,
    pub(super) clock: Clock,
    pub(super) timeout: Duration,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) sessions: Mutex<HashMap<Identity, Arc<Session>>>,
}

/// What a session begins with, from the cluster.
#[derive(Clone)]
enum Proof {
    Token(Account, SecretString),
    Keys(StaticKeys),
}

type Answer = BoxFuture<'static, Result<Proof, TokenError>>;
type Request = Shared<Answer>;

/// The session of an identity that is not the operator's own.
#[derive(Default)]
pub(super) struct Session {
    /// The last request to the API server and when it was sent, as long as a fetch uses it.
    request: Mutex<Option<(Instant, WeakShared<Answer>)>>,
    /// Whose it is, and until when.
    lasts: Mutex<Option<(Caller, Instant)>>,
}

impl Session {
    fn is_good_for(&self, time: Duration) -> Option<Caller> {
        self.lasts.lock().clone().filter(|(_, end)| Instant::now() + time < *end).map(|(caller, _)| caller)
    }
}

impl Source {
    fn session(&self, identity: &Identity) -> Arc<Session> {
        self.sessions.lock().entry(identity.clone()).or_default().clone()
    }

    /// What the session begins with, as the operator itself takes it from the API server.
    fn proof(&self, identity: &Identity, session: &Session) -> Option<Request> {
        let (cluster, source) = (self.cluster.clone(), identity.source().clone());
        if matches!(source, IdentitySource::Operator | IdentitySource::Unresolved) {
            return None;
        }
        let mut last = session.request.lock();
        let known =
            last.as_ref().filter(|(sent, _)| sent.elapsed() < BUFFER).and_then(|(_, request)| request.upgrade());
        Some(known.unwrap_or_else(|| {
            let request = async move {
                match source {
                    IdentitySource::Account(account) => {
                        let token = cluster.web_identity(&account).await?;
                        Ok(Proof::Token(account, token))
                    }
                    IdentitySource::Keys { keys, material } => {
                        cluster.static_keys(&keys, &material).await.map(Proof::Keys)
                    }
                    IdentitySource::Operator | IdentitySource::Unresolved => {
                        Err(TokenError::NoCredentials("nothing to read".to_owned()))
                    }
                }
            };
            let request = request.boxed().shared();
            *last = request.downgrade().map(|weak| (Instant::now(), weak));
            request
        }))
    }

    /// Whose session the call for a token is made with.
    async fn caller(&self, identity: &Identity, key: &str) -> Result<Result<Caller, Failure>, TokenError> {
        let session = self.session(identity);
        let Some(proof) = self.proof(identity, &session) else {
            return match identity.is_unresolved() {
                true => Err(TokenError::NoCredentials("a former identity".to_owned())),
                false => Ok(Ok(Caller::operator())),
            };
        };
        if let Some(caller) = session.is_good_for(Duration::ZERO) {
            return Ok(Ok(caller));
        }
        let (caller, life) = match proof.await? {
            Proof::Token(account, token) => {
                tokio::time::sleep(CALL).await;
                let caller = self.aws.assume(self.process, account.role.as_str(), token.expose_secret(), key);
                (caller, SESSION)
            }
            Proof::Keys(keys) => {
                let [id, secret] = [&keys.access_key_id, &keys.secret_access_key].map(ExposeSecret::expose_secret);
                (self.aws.user(self.process, id, secret, key), KEYS)
            }
        };
        *session.lasts.lock() = caller.as_ref().ok().map(|caller| (caller.clone(), Instant::now() + life));
        Ok(caller)
    }

    async fn tokens(&self, key: &TokenKey) -> Result<Vec<RawToken>, TokenError> {
        let (sent, name) = (self.clock.uptime(), name(key));
        let caller = self.caller(&key.identity, &name).await?;
        tokio::time::sleep(CALL).await;
        let called = caller.map(|caller| (self.aws.call(self.process, &caller, &name), caller));
        let failure = called.as_ref().map_or_else(|failure| Some(*failure), |((_, failure), _)| *failure);
        if failure.is_none_or(Failure::is_answered) {
            self.clock.hear(Server::Aws, &clock::aws_date(), sent);
        }
        let mut tokens = called.map_or_else(
            |_| vec![],
            |((issued, _), caller)| {
                let accounts = match &key.service {
                    Service::Private { registry_ids, .. } if registry_ids.is_empty() => {
                        vec![AccountId::parse(caller.account()).ok()]
                    }
                    Service::Private { registry_ids, .. } => registry_ids.iter().cloned().map(Some).collect(),
                    Service::Public => vec![None],
                };
                let token = |account| RawToken {
                    token: Some(SecretString::from(issued.text.clone())),
                    expires_at: Some(issued.expires_at),
                    account,
                };
                accounts.into_iter().map(token).collect()
            },
        );
        if let Some(failure) = failure {
            spoil(failure, &mut tokens, self.timeout).await?;
        }
        Ok(tokens)
    }
}

/// A key as the script names it: `ecr/eu-west-1` or `public`.
fn name(key: &TokenKey) -> String {
    match &key.service {
        Service::Private { region, registry_ids, .. } => {
            let ids: Vec<&str> = registry_ids.iter().map(AccountId::as_str).collect();
            let ids = if ids.is_empty() { String::new() } else { format!("/{}", ids.join("+")) };
            format!("ecr/{region}{ids}")
        }
        Service::Public => "public".to_owned(),
    }
}

impl TokenSource for Source {
    fn prepare<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Prepared, TokenError>> {
        async move {
            let session = self.session(&key.identity);
            let proof = if session.is_good_for(BUFFER).is_none() { self.proof(&key.identity, &session) } else { None };
            let Some(proof) = proof else { return Ok(None) };
            proof.clone().await?;
            Ok(Some(Box::new(proof) as Box<dyn Send>))
        }
        .boxed()
    }

    fn fetch<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Vec<RawToken>, TokenError>> {
        async move {
            let tokens = self.tokens(key).await;
            if let Err(TokenError::Denied(_)) = &tokens {
                self.forget(&key.identity);
            }
            tokens
        }
        .boxed()
    }

    fn fingerprint(&self, identity: &Identity) -> String {
        let own = if *identity.source() == IdentitySource::Operator { self.identity.as_str() } else { "" };
        format!("{} {own}", identity.digest())
    }

    fn forget(&self, identity: &Identity) {
        self.sessions.lock().remove(identity);
    }
}

async fn spoil(failure: Failure, tokens: &mut Vec<RawToken>, timeout: Duration) -> Result<(), TokenError> {
    let text = |tokens: &mut Vec<RawToken>, text: String| {
        tokens.iter_mut().for_each(|token| token.token = Some(SecretString::from(text.clone())));
    };
    let coded = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let at = |seconds: i64| {
        clock::true_now().checked_add(SignedDuration::from_secs(seconds)).expect("a time within the run")
    };
    let expiry = |tokens: &mut Vec<RawToken>, at| tokens.iter_mut().for_each(|token| token.expires_at = at);
    match failure {
        Failure::NoCredentials => return Err(TokenError::NoCredentials("no provider".to_owned())),
        Failure::Denied => return Err(TokenError::Denied("AccessDenied".to_owned().into())),
        Failure::Throttled => return Err(TokenError::Throttled("ThrottlingException".to_owned())),
        Failure::Unavailable => return Err(TokenError::Unavailable("connection refused".to_owned())),
        Failure::Unreadable => return Err(TokenError::Unreadable("html".to_owned())),
        Failure::Hangs => {
            tokio::time::sleep(timeout).await;
            return Err(TokenError::Unavailable("timed out".to_owned()));
        }
        Failure::Panics => std::panic::resume_unwind(Box::new("a dependency panics")),
        Failure::Empty => tokens.clear(),
        Failure::NoToken => tokens.iter_mut().for_each(|token| token.token = None),
        Failure::NoExpiry => expiry(tokens, None),
        // ECR Public names none anyway: there it fails as if it were away.
        Failure::NoAccount if tokens.iter().all(|token| token.account.is_none()) => {
            return Err(TokenError::Unavailable("connection refused".to_owned()));
        }
        Failure::NoAccount => tokens.iter_mut().for_each(|token| token.account = None),
        Failure::NotBase64 => text(tokens, "%%%".to_owned()),
        Failure::NotUtf8 => text(tokens, coded(&[0xff, 0xfe])),
        Failure::NoColon => text(tokens, coded(b"AWSpassword")),
        Failure::WrongUser => text(tokens, coded(b"root:password")),
        Failure::EmptyPassword => text(tokens, coded(b"AWS:")),
        Failure::Huge => text(tokens, coded(&[b"AWS:".as_slice(), &[b'x'; 1 << 20]].concat())),
        Failure::Expired => expiry(tokens, Some(at(-60))),
        Failure::NearlyExpired => expiry(tokens, Some(at(30))),
        Failure::TwoTokens => tokens.extend(tokens.first().cloned()),
        Failure::TenYears => expiry(tokens, Some(at(10 * 365 * 86_400))),
    }
    Ok(())
}
