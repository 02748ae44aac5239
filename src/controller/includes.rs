//! What is known of the docker configs of others that are merged into ours.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;

use super::Shared;
use super::reader::Watched;
use crate::api::status::Reason;
use crate::apply::{Found, Writer};
use crate::plan::SpecError;
use crate::plan::outputs::{include_not_allowed, include_not_readable};
use crate::plan::scopes::{IncludeScope, Reference};
use crate::secret::docker_config::DATA_KEY;
use crate::secret::include::{IncludeError, Included, IncludedConfig};

/// The docker configs of others, each as it was last read.
#[derive(Debug, Default)]
pub struct Includes(HashMap<IncludeScope, Known>);

#[derive(Debug, Default)]
struct Known {
    /// The last one that was good.
    config: Option<Arc<IncludedConfig>>,
    /// Why there is no newer one, if there should be.
    failure: Option<SpecError>,
    /// Whether it has changed so often that its changes wait.
    limited: bool,
}

impl Includes {
    /// Takes a docker config as it is now, or why it cannot be had; returns whether that is news. The last good one stays.
    pub fn set(&mut self, scope: &IncludeScope, config: Result<Arc<IncludedConfig>, SpecError>) -> bool {
        let known = self.0.entry(scope.clone()).or_default();
        match config {
            Ok(config) => {
                let same = known.config.as_ref().is_some_and(|known| known.digest() == config.digest());
                let recovered = known.failure.take().is_some();
                known.config = Some(config);
                !same || recovered
            }
            Err(failure) => known.failure.replace(failure.clone()) != Some(failure),
        }
    }

    /// Takes that a docker config is refused, and keeps nothing of it; returns whether that is news.
    pub fn refuse(&mut self, scope: &IncludeScope, why: SpecError) -> bool {
        let empty = Arc::new(IncludedConfig::empty());
        let known = self.0.entry(scope.clone()).or_default();
        let before = known.config.replace(empty.clone());
        let had = before.is_none_or(|config| config.digest() != empty.digest());
        self.set(scope, Err(why)) || had
    }

    /// Notes whether a docker config changes so often that its changes wait; returns whether that is news.
    pub fn set_limited(&mut self, scope: &IncludeScope, limited: bool) -> bool {
        let known = self.0.entry(scope.clone()).or_default();
        std::mem::replace(&mut known.limited, limited) != limited
    }

    /// What is merged of these, in their order, and why the first that is missing or not current is so.
    pub fn of(&self, scopes: &[IncludeScope], allowed: &BTreeSet<IncludeScope>) -> (Included, Option<SpecError>) {
        let mut included = Included::default();
        let mut failure = None;
        for scope in scopes {
            let known = self.0.get(scope).filter(|_| allowed.contains(scope));
            let config = known.and_then(|known| known.config.clone());
            included.incomplete |= config.is_none();
            included.configs.extend(config);
            let why = || match allowed.contains(scope) {
                true => {
                    known.and_then(|known| known.failure.clone().or_else(|| known.limited.then(|| unstable(scope))))
                }
                false => Some(include_not_allowed(scope)),
            };
            failure = failure.or_else(why);
        }
        (included, failure)
    }
}

fn unstable(scope: &IncludeScope) -> SpecError {
    let message = format!(
        "the Secret {scope} changes too often, so changes take effect with a delay: check its managedFields to see who changes it"
    );
    SpecError { reason: Reason::IncludeFailed, message }
}

/// One Secret whose docker config is merged into ours, which `writer` reads.
pub(super) struct WatchedInclude {
    pub(super) writer: Writer,
    pub(super) scope: IncludeScope,
}

impl WatchedInclude {
    fn failed(&self, why: impl Display) -> SpecError {
        SpecError {
            reason: Reason::IncludeFailed,
            message: format!("the Secret {} cannot be included: {why}", self.scope),
        }
    }
}

fn parse(found: &Found) -> Result<Arc<IncludedConfig>, IncludeError> {
    if found.is_ours {
        return Err(IncludeError::Ours);
    }
    let json: &[u8] = found.data.get(DATA_KEY).map_or(&[], |json| json);
    IncludedConfig::parse(&found.type_, json).map(Arc::new)
}

impl Watched for WatchedInclude {
    type Record = Result<Arc<IncludedConfig>, IncludeError>;

    fn name(&self) -> String {
        self.scope.to_string()
    }

    fn reference(&self) -> Reference {
        Reference::Include(self.scope.clone())
    }

    async fn read(&self) -> Result<Option<Self::Record>, SpecError> {
        match self.writer.read(&self.scope.namespace, &self.scope.name).await {
            Ok(found) => Ok(found.map(|found| parse(&found))),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Err(include_not_readable(&self.scope)),
            Err(error) => {
                let message = format!("the Secret {} could not be read: {error}", self.scope);
                Err(SpecError { reason: Reason::ApiError, message })
            }
        }
    }

    fn seen(&self, shared: &Shared, record: Option<Self::Record>) -> bool {
        match record {
            Some(Err(IncludeError::Ours)) => shared.include_refused(&self.scope, self.failed(IncludeError::Ours)),
            Some(config) => shared.include_seen(&self.scope, config.map_err(|error| self.failed(error))),
            None => {
                let missing = self.failed("it does not exist: create it, or correct spec.include");
                shared.include_seen(&self.scope, Err(missing))
            }
        }
    }

    fn unread(&self, shared: &Shared, why: SpecError) {
        shared.include_seen(&self.scope, Err(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(name: &str) -> IncludeScope {
        IncludeScope { namespace: "ops".into(), name: name.into() }
    }

    fn config(auth: &str) -> Arc<IncludedConfig> {
        let json = format!(r#"{{"auths":{{"hub.example":{{"auth":"{auth}"}}}}}}"#);
        Arc::new(IncludedConfig::parse("kubernetes.io/dockerconfigjson", json.as_bytes()).unwrap())
    }

    fn failure(message: &str) -> SpecError {
        SpecError { reason: Reason::IncludeFailed, message: message.to_owned() }
    }

    #[test]
    fn a_secret_that_an_ecr_credential_writes_is_refused_and_nothing_of_it_is_kept() {
        let json = br#"{"auths":{"hub.example":{"auth":"YTphYQ=="}}}"#.to_vec();
        let data = std::collections::BTreeMap::from([(DATA_KEY.to_owned(), json.into())]);
        let type_ = "kubernetes.io/dockerconfigjson".to_owned();
        let found = Found { type_, data, refreshed_at: None, is_ours: false };
        assert!(parse(&found).is_ok());
        assert_eq!(parse(&Found { is_ours: true, ..found }).unwrap_err(), IncludeError::Ours);

        let (hub, allowed) = (scope("hub"), BTreeSet::from([scope("hub")]));
        let mut includes = Includes::default();
        includes.set(&hub, Ok(config("YTphYQ==")));
        assert!(includes.refuse(&hub, failure("ours")));
        assert!(!includes.refuse(&hub, failure("ours")));
        let (included, why) = includes.of(std::slice::from_ref(&hub), &allowed);
        assert!(included.beside(&std::collections::BTreeMap::<_, ()>::new()).is_empty());
        assert!(!included.incomplete, "entries of it that were written are removed");
        assert_eq!(why, Some(failure("ours")));
    }

    #[test]
    fn the_last_good_one_stays_and_only_news_are_news() {
        let (hub, allowed) = (scope("hub"), BTreeSet::from([scope("hub")]));
        let mut includes = Includes::default();
        let seen = |includes: &Includes| {
            let (included, failure) = includes.of(std::slice::from_ref(&hub), &allowed);
            (included.configs.len(), included.incomplete, failure.map(|error| error.message))
        };
        assert!(includes.set(&hub, Err(failure("missing"))));
        assert!(!includes.set(&hub, Err(failure("missing"))));
        assert_eq!(seen(&includes), (0, true, Some("missing".to_owned())));
        assert!(includes.set(&hub, Ok(config("YTphYQ=="))));
        assert!(!includes.set(&hub, Ok(config("YTphYQ=="))), "a label of the Secret has changed");
        assert_eq!(seen(&includes), (1, false, None));
        assert!(includes.set(&hub, Err(failure("invalid"))));
        assert_eq!(seen(&includes), (1, false, Some("invalid".to_owned())));
        assert!(includes.set(&hub, Ok(config("YTphYQ=="))), "it is good again");
        assert!(includes.set(&hub, Ok(config("YjpiYg=="))));
        let (included, why) = includes.of(&[hub.clone(), scope("other")], &allowed);
        assert_eq!((included.configs.len(), included.incomplete), (1, true));
        assert!(why.is_some_and(|error| error.message.contains("include.secrets")));
    }
}
