//! What is known of the docker configs of others that are merged into ours.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::api::status::Reason;
use crate::plan::SpecError;
use crate::plan::outputs::include_not_allowed;
use crate::plan::scopes::SecretKey;
use crate::secret::include::{Included, IncludedConfig};

/// The docker configs of others, each as it was last read.
#[derive(Debug, Default)]
pub struct Includes(HashMap<SecretKey, Known>);

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
    pub fn set(&mut self, scope: &SecretKey, config: Result<Arc<IncludedConfig>, SpecError>) -> bool {
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
    pub fn refuse(&mut self, scope: &SecretKey, why: SpecError) -> bool {
        let empty = Arc::new(IncludedConfig::empty());
        let known = self.0.entry(scope.clone()).or_default();
        let before = known.config.replace(empty.clone());
        let had = before.is_none_or(|config| config.digest() != empty.digest());
        self.set(scope, Err(why)) || had
    }

    /// Notes whether a docker config changes so often that its changes wait; returns whether that is news.
    pub fn set_limited(&mut self, scope: &SecretKey, limited: bool) -> bool {
        let known = self.0.entry(scope.clone()).or_default();
        std::mem::replace(&mut known.limited, limited) != limited
    }

    /// What is merged of these, in their order, and why the first that is missing or not current is so.
    pub fn of(&self, scopes: &[SecretKey], allowed: &BTreeSet<SecretKey>) -> (Included, Option<SpecError>) {
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

fn unstable(scope: &SecretKey) -> SpecError {
    let message = format!(
        "the Secret {scope} changes too often, so changes take effect with a delay: check its managedFields to see who changes it"
    );
    SpecError { reason: Reason::IncludeFailed, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(name: &str) -> SecretKey {
        SecretKey { namespace: "ops".into(), name: name.into() }
    }

    fn config(auth: &str) -> Arc<IncludedConfig> {
        let json = format!(r#"{{"auths":{{"hub.example":{{"auth":"{auth}"}}}}}}"#);
        Arc::new(IncludedConfig::parse("kubernetes.io/dockerconfigjson", json.as_bytes()).unwrap())
    }

    fn failure(message: &str) -> SpecError {
        SpecError { reason: Reason::IncludeFailed, message: message.to_owned() }
    }

    #[test]
    fn of_one_that_is_refused_nothing_is_kept() {
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
