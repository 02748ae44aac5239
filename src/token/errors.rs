//! The errors of AWS and its SDK, by category, and what to do about each.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::dates::REQUEST_ID;
use super::settings::Origin;
use super::{Refusal, TokenError};

/// The error codes by which ECR and STS ask to slow down; the SDK knows only some of them.
const THROTTLING: [&str; 6] = [
    "ThrottlingException",
    "ThrottleException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "LimitExceededException",
];

/// The error codes of a signature that is not accepted.
const BAD_SIGNATURE: [&str; 3] = ["InvalidSignatureException", "SignatureDoesNotMatch", "RequestTimeTooSkewed"];

/// The longest error code in a message, in characters. AWS's own have 20 to 40.
const LONGEST_CODE: usize = 64;

/// The longest quote of AWS in a message, in bytes. A refusal with two ARNs has about 400.
const LONGEST_TEXT: usize = 600;

/// A word with more letters and digits in a row is not quoted: no name in an ARN has so many, and every session or web identity
/// token has.
const LONGEST_NAME: usize = 64;

/// How the identity cache's own error begins, whose type is not public (aws-smithy-runtime, identity/cache/lazy.rs).
const IDENTITY_TIMED_OUT: &str = "identity resolver timed out";

const LATE_CREDENTIALS: &str =
    "the source of AWS credentials did not answer in time: check that STS can be reached from the cluster";

const NO_IDENTITY: &str = "no AWS identity was found: annotate the ServiceAccount with eks.amazonaws.com/role-arn (IRSA), create an EKS Pod Identity association, or, outside EKS, set the chart's aws.webIdentity or aws.existingSecret";

/// The same if only the identity of the workload may be used.
pub(super) const NO_WORKLOAD_IDENTITY: &str = "no AWS identity was found: annotate the ServiceAccount with eks.amazonaws.com/role-arn (IRSA), create an EKS Pod Identity association, or, outside EKS, set the chart's aws.webIdentity or aws.existingSecret; keys in the environment, AWS profiles and the role of the node are not used with --require-workload-identity (chart: auth.requireWorkloadIdentity)";

/// Which call has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// GetAuthorizationToken of ECR.
    Ecr,
    /// GetAuthorizationToken of ECR Public.
    EcrPublic,
    /// AssumeRoleWithWebIdentity with the operator's own token.
    OwnWebIdentity,
    /// AssumeRoleWithWebIdentity with another ServiceAccount's token.
    WebIdentity,
    /// AssumeRole.
    AssumeRole,
    /// GetCallerIdentity.
    CallerIdentity,
}

/// Maps an SDK error to our categories. The SDK's own text is not used: it can contain the whole response. `endpoint` is the API
/// with its region or the role, for people.
pub(super) fn classify<E>(error: &SdkError<E, HttpResponse>, call: Call, endpoint: &str) -> TokenError
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    let status = error.raw_response().map(|r| r.status().as_u16());
    match error {
        SdkError::ServiceError(context) => {
            let (code, message) = (context.err().code(), context.err().message().unwrap_or_default());
            let text = code.and_then(|code| quoted(code, message));
            tracing::debug!(endpoint, code = code.map(shown), text, "AWS answered with an error");
            let request_id = error.raw_response().and_then(request_id);
            by_code(code, message, status, call, endpoint).with(request_id)
        }
        SdkError::TimeoutError(_) => TokenError::Unavailable(format!("{endpoint} did not answer in time")),
        SdkError::ResponseError(_) => match status {
            Some(429) => TokenError::Throttled("HTTP status 429".to_owned()),
            Some(status) if status >= 500 => TokenError::Unavailable(format!("{endpoint}: HTTP status {status}")),
            _ => TokenError::Unreadable(format!("the response of {endpoint} does not follow the protocol")),
        },
        _ => from_identity(error).unwrap_or_else(|| {
            TokenError::Unavailable(format!(
                "no connection to {endpoint}: check that this region exists and has it, and DNS, proxies, NetworkPolicies and VPC endpoints"
            ))
        }),
    }
}

fn by_code(code: Option<&str>, message: &str, status: Option<u16>, call: Call, endpoint: &str) -> TokenError {
    let status = status.unwrap_or_default();
    let code = code.map(shown).filter(|code| !code.is_empty());
    match code.as_deref() {
        Some(code) if THROTTLING.contains(&code) => TokenError::Throttled(format!("{code} from {endpoint}")),
        _ if status == 429 => TokenError::Throttled(format!("HTTP status 429 from {endpoint}")),
        _ if status >= 500 => {
            TokenError::Unavailable(format!("{endpoint}: {}", code.unwrap_or_else(|| format!("HTTP status {status}"))))
        }
        // The OIDC issuer is unavailable, which is transient.
        Some("IDPCommunicationError") => {
            TokenError::Unavailable(format!("{endpoint} could not reach the cluster's OIDC issuer"))
        }
        Some(code) => {
            let mut told = format!("{code} from {endpoint}: {}", advice(code, message, call));
            if BAD_SIGNATURE.contains(&code) {
                return TokenError::BadSignature(told.into());
            }
            if let Some(text) = quoted(code, message) {
                told = format!("{told}; AWS says: {text}");
            }
            TokenError::Denied(told.into())
        }
        None if status < 400 => {
            TokenError::Unreadable(format!("the response of {endpoint} does not follow the protocol"))
        }
        None => TokenError::Unreadable(format!("HTTP status {status} from {endpoint} without an error code")),
    }
}

/// An error code, sanitized for a status: a proxy in front of AWS can send any text.
fn shown(code: &str) -> String {
    code.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')).take(LONGEST_CODE).collect()
}

/// AWS's own text, if it names who may not do what to which resource. Other texts are not quoted: some repeat the request, such
/// as a malformed web identity token, or the headers that were signed.
fn quoted(code: &str, message: &str) -> Option<String> {
    let told = matches!(code, "AccessDeniedException" | "AccessDenied" | "InvalidIdentityToken");
    let words = message.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let is_long = |word: &str| word.split(|c: char| !c.is_alphanumeric()).any(|name| name.len() > LONGEST_NAME);
    let words = words.map(|word| if is_long(word) { "…" } else { word });
    let mut text = words.collect::<Vec<_>>().join(" ");
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.push('…');
    }
    (told && !text.is_empty()).then_some(text)
}

/// The id of a request, sanitized for a status.
fn request_id(answer: &HttpResponse) -> Option<String> {
    let id = REQUEST_ID.iter().find_map(|name| answer.headers().get(*name))?;
    Some(shown(id)).filter(|id| !id.is_empty())
}

impl TokenError {
    /// Adds the request id to a refusal.
    fn with(self, request_id: Option<String>) -> Self {
        match self {
            Self::Denied(refusal) => Self::Denied(Refusal { request_id, ..refusal }),
            Self::BadSignature(refusal) => Self::BadSignature(Refusal { request_id, ..refusal }),
            other => other,
        }
    }
}

/// Parts of AWS's messages about refusals that the usual policies do not solve, with advice; the first match counts. A policy that
/// lacks an Allow is reported as "no ... policy allows", one with a Deny as "an explicit deny in a ... policy"
/// (IAM User Guide, Troubleshoot access denied error messages).
const REFUSED_BY: [(&str, &str); 7] = [
    ("session policy", "the session's policy does not allow it: check sessionPolicy of assumeRoles"),
    (
        "service control policy",
        "a service control policy of the AWS organization denies it: ask the administrator of the organization",
    ),
    (
        "resource control policy",
        "a resource control policy of the AWS organization denies it: ask the administrator of the organization",
    ),
    ("VPC endpoint policy", "the policy of the VPC endpoint denies it: allow this identity and action there"),
    ("permissions boundary", "the permissions boundary of the role or user denies it: allow this action there"),
    ("explicit deny in a resource-based policy", "a Deny in the role's trust policy applies: check its conditions"),
    (
        "explicit deny",
        "an explicit Deny in the policies of the role or user applies, and overrides any Allow: check its conditions, and whether the sessions of the role were revoked",
    ),
];

/// What to do about an error code of AWS.
fn advice(code: &str, message: &str, call: Call) -> &'static str {
    if let "AccessDeniedException" | "AccessDenied" = code
        && let Some((_, advice)) = REFUSED_BY.iter().find(|(words, _)| message.contains(words))
    {
        return advice;
    }
    match (code, call) {
        ("AccessDeniedException" | "AccessDenied", Call::EcrPublic) => {
            "allow ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken on Resource \"*\" (deploy/iam/policy-public.json)"
        }
        ("AccessDeniedException" | "AccessDenied", Call::Ecr) => {
            "allow ecr:GetAuthorizationToken on Resource \"*\" (deploy/iam/policy-private.json)"
        }
        ("AccessDenied", Call::AssumeRole) => assume_role_advice(message),
        ("AccessDenied", Call::OwnWebIdentity) => {
            "check that the role's trust policy allows sts:AssumeRoleWithWebIdentity and names this ServiceAccount as subject and the cluster's issuer (deploy/iam/trust-irsa.json)"
        }
        ("AccessDenied", Call::WebIdentity) => {
            "check that the role's trust policy allows sts:AssumeRoleWithWebIdentity and names that ServiceAccount as subject, the cluster's issuer and the audience (deploy/iam/trust-tenant.json)"
        }
        ("InvalidIdentityToken", _) => {
            "check the cluster's OIDC provider in IAM, and that the token's audience is sts.amazonaws.com"
        }
        ("ExpiredTokenException" | "ExpiredToken", _) => {
            "the AWS session or web identity token has expired: check that it is renewed"
        }
        ("InvalidSignatureException" | "SignatureDoesNotMatch" | "RequestTimeTooSkewed", _) => {
            "check the AWS keys and the clock of this node"
        }
        ("UnrecognizedClientException" | "InvalidClientTokenId", Call::EcrPublic) => {
            "AWS does not know these keys: ECR Public accepts only identities of the partition aws, not of China, GovCloud or other partitions; give this registry its own auth (deploy/iam/README.md)"
        }
        ("UnrecognizedClientException" | "InvalidClientTokenId", _) => {
            "AWS does not know these keys: check them, and that the region is enabled for the account"
        }
        ("RegionDisabledException", _) => "STS is not enabled for this account in the region: enable it in IAM",
        ("PackedPolicyTooLarge", _) => "make sessionPolicy or tags smaller",
        ("MalformedPolicyDocument", _) => "correct sessionPolicy",
        ("ValidationError", Call::OwnWebIdentity) => {
            "check AWS_ROLE_ARN, and that the web identity token file is not empty"
        }
        ("ValidationError", Call::AssumeRole) if message.contains("DurationSeconds") => {
            "lower durationSeconds to the role's maximum session duration, or to 3600 for role chaining"
        }
        ("ValidationError", Call::AssumeRole | Call::WebIdentity) => {
            "check the role's ARN and the options of assumeRoles"
        }
        ("UnsupportedCommandException", _) => "the API does not exist in this region",
        _ => "see the AWS documentation of this error code",
    }
}

/// AWS names the missing action in the message.
fn assume_role_advice(message: &str) -> &'static str {
    if message.contains("sts:TagSession") {
        "session tags need sts:TagSession: allow it in the role's trust policy (deploy/iam/trust-assume-role.json)"
    } else if message.contains("sts:SetSourceIdentity") {
        "allow sts:SetSourceIdentity in the role's trust policy (deploy/iam/trust-assume-role.json)"
    } else {
        "allow sts:AssumeRole on the role for the calling identity (deploy/iam/policy-assume-role.json), and check that the role's trust policy names that identity and, if it requires one, the externalId (deploy/iam/trust-assume-role.json)"
    }
}

/// The error of the credentials that the call needed for its signature.
fn from_identity(error: &(dyn StdError + 'static)) -> Option<TokenError> {
    let mut credentials = None;
    for current in sources(error).skip(1) {
        // Our own providers return our own error.
        if let Some(error) = current.downcast_ref::<TokenError>() {
            return Some(error.clone());
        }
        if current.to_string().starts_with(IDENTITY_TIMED_OUT) {
            return Some(TokenError::Unavailable(LATE_CREDENTIALS.to_owned()));
        }
        credentials = credentials.or_else(|| current.downcast_ref::<CredentialsError>());
    }
    credentials.map(|error| match error {
        CredentialsError::CredentialsNotLoaded(_) => TokenError::NoCredentials(NO_IDENTITY.to_owned()),
        CredentialsError::ProviderTimedOut(_) => TokenError::Unavailable(LATE_CREDENTIALS.to_owned()),
        _ => TokenError::Unavailable("the source of AWS credentials failed".to_owned()),
    })
}

/// Maps the error of a provider of the operator's own identity. The SDK's own text is not quoted: it can contain the output of a
/// process or an agent.
pub(super) fn of_source(origin: Origin, error: &CredentialsError) -> TokenError {
    for current in sources(error) {
        if let Some(error) = current.downcast_ref::<TokenError>() {
            return error.clone();
        }
        // The roles of a profile.
        if let Some(error) = current.downcast_ref::<SdkError<AssumeRoleError, HttpResponse>>() {
            return classify(error, Call::AssumeRole, "STS for the role of the AWS profile");
        }
        if let Some(error) = current.downcast_ref::<SdkError<AssumeRoleWithWebIdentityError, HttpResponse>>() {
            return classify(error, Call::OwnWebIdentity, "STS for the role of the AWS profile");
        }
    }
    let text = sources(error).last().map(ToString::to_string).unwrap_or_default();
    match (origin, error) {
        (_, CredentialsError::ProviderTimedOut(_)) => TokenError::Unavailable(LATE_CREDENTIALS.to_owned()),
        (Origin::Environment, _) => {
            TokenError::NoCredentials("the AWS keys in the environment are not valid UTF-8".to_owned())
        }
        (Origin::Profile, _) => of_profile(error, &text),
        (Origin::Container, _) => of_container(error, &text),
        (Origin::Node, _) => TokenError::Unavailable(
            "the instance metadata service did not return the role of the node: check that the node has one and that pods can reach the service (hop limit 2), or better, give the operator an identity of its own".to_owned(),
        ),
        (Origin::WebIdentity, _) => TokenError::Unavailable("the web identity failed".to_owned()),
    }
}

/// The texts are those of the SDK (aws-config, profile/credentials.rs and credential_process.rs).
fn of_profile(error: &CredentialsError, text: &str) -> TokenError {
    let advice = if text.contains("cargo feature") {
        "the AWS profile asks for IAM Identity Center (SSO) or a console login, which the operator does not support: use role_arn, web_identity_token_file, credential_process or keys"
    } else if text.contains("external process") {
        "credential_process of the AWS profile failed: run it manually as the operator's user"
    } else if let CredentialsError::InvalidConfiguration(_) = error {
        "the AWS profile is invalid: check AWS_PROFILE, AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE"
    } else {
        "the source of credentials in the AWS profile returned none: check source_profile, credential_source and web_identity_token_file"
    };
    TokenError::NoCredentials(advice.to_owned())
}

/// The agent of EKS Pod Identity tells of a refusal by a status alone that the SDK hands on (aws-config,
/// http_credential_provider.rs).
fn of_container(error: &CredentialsError, text: &str) -> TokenError {
    let endpoint = "the container's credentials endpoint (EKS Pod Identity)";
    let digits = text.split("StatusCode(").nth(1).and_then(|rest| rest.split(')').next());
    match (error, digits.and_then(|digits| digits.parse::<u16>().ok())) {
        (CredentialsError::InvalidConfiguration(_), _) => TokenError::NoCredentials(format!(
            "{endpoint} is misconfigured: check AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
        )),
        (_, Some(429)) => TokenError::Throttled(format!("HTTP status 429 from {endpoint}")),
        (_, Some(status)) if status < 500 => TokenError::NoCredentials(format!(
            "{endpoint} refused the request with HTTP status {status}: check that this ServiceAccount has a Pod Identity association in this cluster, that the trust policy of its role is deploy/iam/trust-pod-identity.json, and the log of eks-pod-identity-agent on this node"
        )),
        (_, Some(status)) => TokenError::Unavailable(format!(
            "HTTP status {status} from {endpoint}: check the log of eks-pod-identity-agent on this node"
        )),
        (_, None) => TokenError::Unavailable(format!(
            "no usable answer from {endpoint}: check that eks-pod-identity-agent runs on this node and can be reached from the pod"
        )),
    }
}

/// An error and everything that it was caused by.
fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use aws_smithy_types::body::SdkBody;
    use aws_smithy_types::error::ErrorMetadata;
    use parking_lot::Mutex;

    use super::*;

    const WHO: &str = "User: arn:aws:sts::111111111111:assumed-role/pull/x is not authorized to perform:";

    fn denied(call: Call, message: &str) -> String {
        let code = if call == Call::Ecr { "AccessDeniedException" } else { "AccessDenied" };
        by_code(Some(code), message, Some(400), call, "AWS").to_string()
    }

    /// What is logged at the finest level.
    fn logged(log: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_aws_repeats_of_a_request_is_not_logged() {
        let secret = "IQoJb3JpZ2luX2VjEHoaCWV1LXdlc3QtMSJHMEUCIQDsessiontoken";
        let message = format!("The canonical string should have been 'x-amz-security-token:{secret}'");
        let metadata = ErrorMetadata::builder().code("InvalidSignatureException").message(message).build();
        let error = AssumeRoleError::generic(metadata);
        let answer = HttpResponse::new(403.try_into().unwrap(), SdkBody::empty());
        let error = SdkError::service_error(error, answer);
        let lines = logged(|| drop(classify(&error, Call::AssumeRole, "STS in eu-west-1")));
        assert!(lines.contains("InvalidSignatureException") && !lines.contains(secret), "{lines}");
    }

    #[test]
    fn the_policy_that_aws_names_is_the_one_that_is_advised_about() {
        let action = "ecr:GetAuthorizationToken on resource: *";
        let table = [
            ("because no identity-based policy allows the ecr:GetAuthorizationToken action", "policy-private.json"),
            ("because no session policy allows the ecr:GetAuthorizationToken action", "sessionPolicy"),
            ("with an explicit deny in a session policy", "sessionPolicy"),
            ("with an explicit deny in a service control policy", "service control policy"),
            ("because no service control policy allows the action", "service control policy"),
            ("with an explicit deny in a resource control policy", "resource control policy"),
            ("because no VPC endpoint policy allows the action", "VPC endpoint"),
            ("with an explicit deny in a VPC endpoint policy", "VPC endpoint"),
            ("because no permissions boundary allows the action", "permissions boundary"),
            ("with an explicit deny in an identity-based policy", "revoked"),
        ];
        for (reason, words) in table {
            let told = denied(Call::Ecr, &format!("{WHO} {action} {reason}"));
            assert!(told.contains(words), "{reason}: {told}");
            for words in [WHO, action, reason] {
                assert!(told.contains(words), "who may not do what to which resource: {told}");
            }
            assert_eq!(told.contains("deploy/"), words.contains(".json"), "{told}");
        }
    }

    #[test]
    fn of_aws_texts_only_those_are_told_that_repeat_nothing_that_was_sent_and_none_is_long() {
        let token = format!("Fwo/{}", "x".repeat(LONGEST_NAME + 1));
        let long = format!("{WHO} ecr:GetAuthorizationToken {}", "on resource: * ".repeat(100));
        for (code, message, tells) in [
            ("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", true),
            ("InvalidIdentityToken", "No OpenIDConnect provider found in your account for https://x", true),
            ("ValidationError", "Value 'sent' at 'webIdentityToken' failed to satisfy constraint", false),
            ("SignatureDoesNotMatch", "The Canonical String should have been 'x-amz-security-token:sent'", false),
            ("InvalidClientTokenId", "The security token included in the request is invalid", false),
            ("ExpiredTokenException", "Token expired: sent", false),
        ] {
            let told = by_code(Some(code), message, Some(400), Call::WebIdentity, "STS").to_string();
            assert_eq!(told.contains(message), tells, "{told}");
        }
        assert!(!denied(Call::Ecr, &format!("no {token} here")).contains(&token));
        assert!(denied(Call::Ecr, &long).len() < LONGEST_TEXT + 200);
        assert!(denied(Call::Ecr, "a\n\u{7}b").ends_with("a b"));
    }

    #[test]
    fn a_refusal_is_the_same_with_another_request_id_which_is_told() {
        let with = |id: &str| by_code(Some("AccessDenied"), WHO, Some(400), Call::Ecr, "AWS").with(Some(id.to_owned()));
        assert_eq!(with("one"), with("other"));
        assert!(with("one").to_string().ends_with("(request id one)"), "{}", with("one"));
    }

    #[test]
    fn a_refused_role_is_told_by_what_refuses_it() {
        let table = [
            ("sts:AssumeRole on resource: arn:aws:iam::1:role/x", "policy-assume-role.json"),
            ("sts:TagSession on resource: arn:aws:iam::1:role/x", "sts:TagSession"),
            ("sts:AssumeRole on resource: x with an explicit deny in a resource-based policy", "trust policy"),
            (
                "sts:TagSession on resource: x with an explicit deny in a service control policy",
                "service control policy",
            ),
        ];
        for (message, words) in table {
            let told = denied(Call::AssumeRole, &format!("{WHO} {message}"));
            assert!(told.contains(words), "{message}: {told}");
        }
    }
}
