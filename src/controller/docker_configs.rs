//! The Secrets whose docker configs are merged into ours.

use std::fmt::Display;
use std::sync::Arc;

use super::cluster_state::ClusterState;
use super::reader::Watched;
use crate::api::status::Reason;
use crate::apply::{Found, Writer};
use crate::plan::SpecError;
use crate::plan::outputs::include_not_readable;
use crate::plan::scopes::{Reference, SecretKey};
use crate::secret::docker_config::DATA_KEY;
use crate::secret::include::{IncludeError, IncludedConfig};

/// One Secret whose docker config is merged into ours, which `writer` reads.
pub(super) struct WatchedInclude {
    pub(super) writer: Writer,
    pub(super) secret: SecretKey,
}

impl WatchedInclude {
    fn failed(&self, why: impl Display) -> SpecError {
        SpecError {
            reason: Reason::IncludeFailed,
            message: format!("the Secret {} cannot be included: {why}", self.secret),
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

    fn secret(&self) -> &SecretKey {
        &self.secret
    }

    fn reference(&self) -> Reference {
        Reference::Include(self.secret.clone())
    }

    async fn read(&self) -> Result<Option<Self::Record>, SpecError> {
        match self.writer.read(&self.secret.namespace, &self.secret.name).await {
            Ok(found) => Ok(found.map(|found| parse(&found))),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Err(include_not_readable(&self.secret)),
            Err(error) => {
                let message = format!("the Secret {} could not be read: {error}", self.secret);
                Err(SpecError { reason: Reason::ApiError, message })
            }
        }
    }

    fn seen(&self, state: &mut ClusterState, record: Option<Self::Record>) -> bool {
        match record {
            Some(Err(IncludeError::Ours)) => state.includes.refuse(&self.secret, self.failed(IncludeError::Ours)),
            Some(config) => state.includes.set(&self.secret, config.map_err(|error| self.failed(error))),
            None => {
                let missing = self.failed("it does not exist: create it, or correct spec.include");
                state.includes.set(&self.secret, Err(missing))
            }
        }
    }

    fn unread(&self, state: &mut ClusterState, why: SpecError) -> bool {
        state.includes.set(&self.secret, Err(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_an_ecr_credential_writes_is_refused() {
        let json = br#"{"auths":{"hub.example":{"auth":"YTphYQ=="}}}"#.to_vec();
        let data = std::collections::BTreeMap::from([(DATA_KEY.to_owned(), json.into())]);
        let type_ = "kubernetes.io/dockerconfigjson".to_owned();
        let found = Found { type_, data, refreshed_at: None, is_ours: false };
        assert!(parse(&found).is_ok());
        assert_eq!(parse(&Found { is_ours: true, ..found }).unwrap_err(), IncludeError::Ours);
    }
}
