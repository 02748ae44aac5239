//! Credentials by AssumeRole, one step of a chain of roles.

use aws_credential_types::provider;
use aws_sdk_sts::Client;
use aws_sdk_sts::types::Tag;

use super::TokenError;
use super::errors::{Call, classify};
use super::provider::{CredentialSource, credentials};
use crate::plan::auth::RoleStep;

/// The credentials of one role, assumed with the identity before it. The SDK's own provider supports neither transitive tag keys
/// nor a source identity.
pub(super) struct AssumedRole {
    /// A client with the identity before it.
    pub(super) sts: Client,
    pub(super) step: RoleStep,
}

impl CredentialSource for AssumedRole {
    async fn credentials(&self) -> provider::Result {
        let step = &self.step;
        let tags: Vec<Tag> = step
            .tags
            .iter()
            .map(|(key, value)| Tag::builder().key(key).value(value).build())
            .collect::<Result<_, _>>()
            .map_err(|_| TokenError::Denied("a session tag lacks its key or value".to_owned().into()))?;
        let keys = &step.transitive_tag_keys;
        let request = self
            .sts
            .assume_role()
            .role_arn(step.role.as_str())
            .role_session_name(&step.session_name)
            .set_external_id(step.external_id.clone())
            .set_duration_seconds(step.seconds)
            .set_tags((!tags.is_empty()).then_some(tags))
            .set_transitive_tag_keys((!keys.is_empty()).then(|| keys.clone()))
            .set_source_identity(step.source_identity.clone())
            .set_policy(step.policy.clone());
        let endpoint = format!("STS for {}", step.role);
        let answer = request.send().await.map_err(|error| classify(&error, Call::AssumeRole, &endpoint))?;
        Ok(credentials(answer.credentials, "AssumeRole")?)
    }
}
