//! The credential chain of the operator's own identity: one provider after the other.

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
#[allow(deprecated, reason = "the type that it is an alias of is in a crate that nothing else here needs")]
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::{Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use parking_lot::Mutex;

use super::TokenError;
use super::errors::{NO_WORKLOAD_IDENTITY, of_source};
use super::provider::{CredentialSource, Provider};
use super::sdk::{sts, time_of, timeouts};
use super::settings::{AwsSettings, Endpoints, Origin};
use super::web_identity::{TokenFrom, WebIdentity};

/// The HTTP clients of the chain.
pub(super) struct Clients {
    /// To AWS.
    pub(super) http: SharedHttpClient,
    /// To the node and its agents, without a proxy: their responses contain credentials.
    pub(super) near: SharedHttpClient,
}

/// Called when the origin of the identity changes.
type Found = Box<dyn Fn(Origin) + Send + Sync>;

/// Tries each provider in turn.
pub(super) struct ProviderChain {
    sources: Vec<(Origin, SharedCredentialsProvider)>,
    workload_only: bool,
    last: Mutex<Option<Origin>>,
    found: Found,
}

impl ProviderChain {
    pub(super) fn new(
        settings: &AwsSettings,
        bare: &SdkConfig,
        endpoints: &Endpoints,
        Clients { http, near }: Clients,
        found: Found,
    ) -> Self {
        let far = ProviderConfig::default()
            .with_http_client(http)
            .with_time_source(time_of(bare))
            .with_region(bare.region().cloned())
            // As in every client that has a URL: see `sts`.
            .with_use_fips(bare.use_fips().filter(|_| endpoints.sts.is_none()).or(Some(false)))
            .with_use_dual_stack(bare.use_dual_stack().filter(|_| endpoints.sts.is_none()).or(Some(false)))
            .with_retry_config(RetryConfig::disabled())
            .with_timeout_config(timeouts(settings.timeout, 1));
        let near = far.clone().with_http_client(near);
        let node = SharedCredentialsProvider::new(ImdsCredentialsProvider::builder().configure(&near).build());
        let container = SharedCredentialsProvider::new(EcsCredentialsProvider::builder().configure(&near).build());
        let files = profile_files(settings.profile.as_deref(), endpoints.sts.as_deref());
        let profile = Profile { config: far, files, node: node.clone(), container: container.clone() };
        let environment = SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new());
        let mut sources = vec![
            (Origin::Environment, environment),
            (Origin::Profile, SharedCredentialsProvider::new(Provider(profile))),
        ];
        if let Some(file) = &settings.web_identity {
            let region = bare.region().cloned().unwrap_or_else(|| Region::from_static(first_region(&file.role_arn)));
            let sts = sts(bare, Some(region), endpoints);
            let own = WebIdentity { sts, from: TokenFrom::File(file.clone()) };
            sources.push((Origin::WebIdentity, SharedCredentialsProvider::new(Provider(own))));
        }
        sources.extend([(Origin::Container, container), (Origin::Node, node)]);
        let workload_only = settings.workload_identity_only;
        sources.retain(|(origin, _)| !workload_only || origin.is_workloads());
        Self { sources, workload_only, last: Mutex::default(), found }
    }
}

impl CredentialSource for ProviderChain {
    async fn credentials(&self) -> provider::Result {
        for (origin, source) in &self.sources {
            match source.provide_credentials().await {
                Err(CredentialsError::CredentialsNotLoaded(_)) => {}
                Err(error) => return Err(of_source(*origin, &error).into()),
                Ok(credentials) => {
                    if self.last.lock().replace(*origin) != Some(*origin) {
                        (self.found)(*origin);
                    }
                    return Ok(credentials);
                }
            }
        }
        if self.workload_only {
            return Err(TokenError::NoCredentials(NO_WORKLOAD_IDENTITY.to_owned()).into());
        }
        Err(CredentialsError::not_loaded_no_source())
    }
}

/// The region whose STS is called if no region is set: it serves every role of its partition.
fn first_region(role: &str) -> &'static str {
    match role.split(':').nth(1) {
        Some("aws-cn") => "cn-north-1",
        Some("aws-us-gov") => "us-gov-west-1",
        Some("aws-eusc") => "eusc-de-east-1",
        Some("aws-iso") => "us-iso-east-1",
        Some("aws-iso-b") => "us-isob-east-1",
        Some("aws-iso-e") => "eu-isoe-west-1",
        Some("aws-iso-f") => "us-isof-south-1",
        _ => "us-east-1",
    }
}

/// A profile of the shared configuration files.
struct Profile {
    config: ProviderConfig,
    #[allow(deprecated, reason = "see above")]
    files: ProfileFiles,
    node: SharedCredentialsProvider,
    container: SharedCredentialsProvider,
}

impl CredentialSource for Profile {
    /// The SDK's provider reads the files once. Each session has a provider of its own, so that corrected files are
    /// noticed.
    async fn credentials(&self) -> provider::Result {
        let provider = ProfileFileCredentialsProvider::builder()
            .configure(&self.config)
            .profile_files(self.files.clone())
            .with_custom_provider("Ec2InstanceMetadata", self.node.clone())
            .with_custom_provider("EcsContainer", self.container.clone());
        provider.build().provide_credentials().await
    }
}

/// The usual files. The SDK's provider takes the endpoint of STS from the environment and the profile, so this adds it to the profile.
/// A profile with nothing else has no credentials, like a missing one.
#[allow(deprecated, reason = "see above")]
fn profile_files(profile: Option<&str>, sts: Option<&str>) -> ProfileFiles {
    let files = ProfileFiles::builder().include_default_config_file(true).include_default_credentials_file(true);
    let Some(url) = sts else { return files.build() };
    let profile = profile.unwrap_or("default");
    files.with_contents(ProfileFileKind::Config, format!("[profile {profile}]\nendpoint_url = {url}\n")).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::arn::RoleArn;

    #[test]
    fn without_a_region_sts_is_asked_in_the_partition_of_the_role() {
        for partition in ["aws", "aws-cn", "aws-us-gov", "aws-eusc", "aws-iso", "aws-iso-b", "aws-iso-e", "aws-iso-f"] {
            let role = format!("arn:{partition}:iam::111122223333:role/own");
            let region = crate::api::registry::Region::parse(first_region(&role)).unwrap();
            assert!(RoleArn::parse(&role).unwrap().is_in_partition_of(&region), "{partition}: {region}");
        }
    }
}
