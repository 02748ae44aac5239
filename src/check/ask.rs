//! The calls to AWS: the caller behind each identity, and whether tokens are issued, which are discarded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use parking_lot::Mutex;

use super::CheckError;
use super::facts::Answers;
use crate::clock::Clock;
use crate::cluster::ApiServer;
use crate::plan::{Identity, TokenKey};
use crate::token::ecr::Ecr;
use crate::token::identity::{self, OperatorIdentity};
use crate::token::settings::{AwsSettings, Origin};
use crate::token::{TokenError, TokenSource, check};

/// How many identities are checked at a time.
const AT_A_TIME: usize = 4;

/// The identity of this process, and its origin once it has been used.
pub(super) struct Own {
    pub(super) identity: OperatorIdentity,
    clock: Clock,
    origin: Arc<Mutex<Option<Origin>>>,
}

/// Loads the identity of this process.
pub(super) async fn own(settings: &AwsSettings, clock: Clock) -> Result<Own, CheckError> {
    let origin = Arc::new(Mutex::new(None));
    let found = origin.clone();
    let identity = identity::load(settings, &clock, move |origin| *found.lock() = Some(origin), |_| ()).await;
    Ok(Own { identity: identity.map_err(CheckError::Settings)?, clock, origin })
}

/// Requests each of these tokens from AWS, and the caller behind each identity.
pub(super) async fn ask(own: Own, client: Client, wanted: BTreeSet<TokenKey>) -> Answers {
    let ecr = Ecr::new(own.identity, Arc::new(ApiServer::new(client)));
    let mut by_identity: BTreeMap<Identity, Vec<TokenKey>> = BTreeMap::new();
    for key in wanted {
        by_identity.entry(key.identity.clone()).or_default().push(key);
    }
    let asked = stream::iter(by_identity).map(|(identity, keys)| one(&ecr, &own.clock, identity, keys));
    let mut answers = Answers::default();
    let mut asked = std::pin::pin!(asked.buffer_unordered(AT_A_TIME));
    while let Some((identity, caller, tokens)) = asked.next().await {
        answers.callers.insert(identity, caller);
        answers.tokens.extend(tokens);
    }
    answers.origin = own.origin.lock().map(Origin::as_str);
    answers
}

type Answer = (Identity, Result<String, TokenError>, Vec<(TokenKey, Result<Timestamp, TokenError>)>);

async fn one(ecr: &Ecr, clock: &Clock, identity: Identity, keys: Vec<TokenKey>) -> Answer {
    let caller = ecr.caller(&identity).await;
    let mut tokens = Vec::with_capacity(keys.len());
    for key in keys {
        // The session is that of the caller, unless there is none.
        let answer = match ecr.prepare(&key).await {
            Ok(_prepared) => ecr.fetch(&key).await,
            Err(error) => Err(error),
        };
        let expires_at = match answer {
            Ok(raw) => check(raw, &key, clock.now(), Duration::ZERO)
                .map(|token| token.life.expires_at)
                .map_err(TokenError::from),
            Err(error) => Err(error),
        };
        tokens.push((key, expires_at));
    }
    (identity, caller, tokens)
}
