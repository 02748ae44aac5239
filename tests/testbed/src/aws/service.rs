//! The three services that the stand-in plays, and the names by which SDKs know them.

/// The three services, each on a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    Sts,
    Ecr,
    EcrPublic,
}

impl Service {
    pub const ALL: [Service; 3] = [Service::Sts, Service::Ecr, Service::EcrPublic];

    /// The service's name in the scope of a signature.
    pub fn signing_name(self) -> &'static str {
        match self {
            Service::Sts => "sts",
            Service::Ecr => "ecr",
            Service::EcrPublic => "ecr-public",
        }
    }

    pub(super) fn apis(self) -> &'static [&'static str] {
        match self {
            Service::Sts => &["AssumeRoleWithWebIdentity", "AssumeRole", "GetCallerIdentity"],
            Service::Ecr | Service::EcrPublic => &["GetAuthorizationToken"],
        }
    }

    /// The SDK's variable for the endpoint of this service alone.
    pub(crate) fn endpoint_variable(self) -> &'static str {
        match self {
            Service::Sts => "AWS_ENDPOINT_URL_STS",
            Service::Ecr => "AWS_ENDPOINT_URL_ECR",
            Service::EcrPublic => "AWS_ENDPOINT_URL_ECR_PUBLIC",
        }
    }
}
