//! STS over the Query protocol: form bodies in, XML out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::Inner;
use super::assume;
use super::auth::Caller;
use super::credentials::{Credential, Principal, new_session_keys, partition_and_account, upper_id};
use super::error::{ApiError, escape};
use super::fault::Effect;
use super::form::Form;
use super::iam::Role;
use super::policy::{SessionPolicy, packed_size};

const XMLNS: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// An answer, and the session that it handed out.
pub(super) struct Answer {
    pub(super) xml: String,
    pub(super) session: Option<Arc<Credential>>,
}

/// AssumeRoleWithWebIdentity is the one call without a signature: the token is the proof.
pub(super) async fn assume_role_with_web_identity(
    inner: &Inner,
    form: &Form,
    region: Option<&str>,
    effect: &Effect,
    request_id: &str,
) -> Result<Answer, ApiError> {
    let token = form.required("WebIdentityToken")?;
    inner.web_identity_tokens.lock().insert(token.to_owned());
    let request = SessionRequest::read(form, region)?;
    let claims = inner.providers.verify(token, inner.clock.now()).await?;
    let role = assume::by_web_identity(inner, &request.role_arn, &claims)?;
    let extras = Extras { source_identity: claims.source_identity.clone(), ..Extras::default() };
    let (session, packed) = request.grant(inner, &role, extras, effect)?;
    let subject = format!(
        "<SubjectFromWebIdentityToken>{}</SubjectFromWebIdentityToken><Provider>{}</Provider><Audience>{}</Audience>",
        escape(&claims.sub),
        escape(&claims.iss),
        escape(claims.aud.all().first().map_or("", String::as_str))
    );
    let xml = envelope("AssumeRoleWithWebIdentity", &(session_xml(&session) + &packed + &subject), request_id);
    Ok(Answer { xml, session: Some(session) })
}

pub(super) fn assume_role(
    inner: &Inner,
    form: &Form,
    caller: &Caller,
    effect: &Effect,
    request_id: &str,
) -> Result<Answer, ApiError> {
    let request = SessionRequest::read(form, Some(&caller.region))?;
    let asked = assume::Asked::read(form)?;
    let (role, extras) = assume::by_principal(inner, &request.role_arn, caller, asked)?;
    let (session, packed) = request.grant(inner, &role, extras, effect)?;
    let source = session.source_identity.iter().map(|id| format!("<SourceIdentity>{}</SourceIdentity>", escape(id)));
    let xml = envelope("AssumeRole", &(session_xml(&session) + &packed + &source.collect::<String>()), request_id);
    Ok(Answer { xml, session: Some(session) })
}

/// Needs no permission, as in IAM.
pub(super) fn get_caller_identity(caller: &Caller, request_id: &str) -> Answer {
    let principal = &caller.credential.principal;
    let result = format!(
        "<Arn>{}</Arn><UserId>{}</UserId><Account>{}</Account>",
        escape(&principal.arn),
        escape(&principal.user_id),
        principal.account
    );
    Answer { xml: envelope("GetCallerIdentity", &result, request_id), session: None }
}

/// The parameters that both ways to assume a role have.
struct SessionRequest {
    role_arn: String,
    session_name: String,
    duration: Option<i64>,
    policy: Option<SessionPolicy>,
}

impl SessionRequest {
    fn read(form: &Form, region: Option<&str>) -> Result<Self, ApiError> {
        let role_arn = form.required("RoleArn")?.to_owned();
        check_role_arn(&role_arn, region)?;
        let duration = form.get("DurationSeconds").map(str::parse::<i64>).transpose();
        let duration = duration.map_err(|_| form.invalid("durationSeconds", "Member must be a number"))?;
        // 900 s to 12 h: the limits of `DurationSeconds` in STS's API reference.
        if duration.is_some_and(|seconds| !(900..=43200).contains(&seconds)) {
            return Err(form.invalid("durationSeconds", "Member must have value between 900 and 43200"));
        }
        let session_name = form.name("RoleSessionName")?;
        let policy = SessionPolicy::read(form)?;
        Ok(SessionRequest { role_arn, session_name, duration, policy })
    }

    /// The session that was asked for, and the element that says how much room its policy and tags take.
    fn grant(
        &self,
        inner: &Inner,
        role: &Role,
        extras: Extras,
        effect: &Effect,
    ) -> Result<(Arc<Credential>, String), ApiError> {
        let asked = self.life(role, extras.is_chained)?;
        let size = packed_size(self.policy.as_ref(), &extras.tags)?;
        let life = effect.claimed_life.or(inner.settings.lock().session_life).unwrap_or(asked);
        let (name, policy) = (self.session_name.as_str(), self.policy.clone());
        let session = start_session(inner, NewSession { role, name, life, policy, extras })?;
        let size = size.map(|size| format!("<PackedPolicySize>{size}</PackedPolicySize>"));
        Ok((session, size.unwrap_or_default()))
    }

    /// How long the session lives; role chaining caps it at one hour.
    fn life(&self, role: &Role, is_chained: bool) -> Result<SignedDuration, ApiError> {
        let seconds = self.duration.unwrap_or(3600);
        let longest = role.max_session.as_secs() as i64;
        let problem = match self.duration {
            Some(seconds) if is_chained && seconds > 3600 => "1 hour session limit for roles assumed by role chaining",
            Some(seconds) if seconds > longest => "MaxSessionDuration set for this role.",
            _ => return Ok(SignedDuration::from_secs(seconds)),
        };
        Err(ApiError::bad("ValidationError", format!("The requested DurationSeconds exceeds the {problem}")))
    }
}

/// A role's ARN in the partition of the STS that is called.
fn check_role_arn(arn: &str, region: Option<&str>) -> Result<(), ApiError> {
    let invalid = |message: String| Err(ApiError::bad("ValidationError", message));
    let Some((partition, account)) = partition_and_account(arn) else { return invalid(format!("{arn} is invalid")) };
    if !arn.starts_with(&format!("arn:{partition}:iam::{account}:role/")) || arn.ends_with('/') {
        return invalid(format!("{arn} is invalid"));
    }
    match region.is_some_and(|region| super::region::partition(region).name != partition) {
        true => invalid("Request ARN is invalid".to_owned()),
        false => Ok(()),
    }
}

/// What a session carries on top of its role.
#[derive(Default)]
pub(super) struct Extras {
    pub(super) tags: BTreeMap<String, String>,
    pub(super) transitive_tags: BTreeSet<String>,
    pub(super) source_identity: Option<String>,
    pub(super) external_id: Option<String>,
    /// The ARNs of the callers before it.
    pub(super) chain: Vec<String>,
    /// Whether the caller is a session itself.
    pub(super) is_chained: bool,
}

/// A session about to be started.
pub(super) struct NewSession<'a> {
    pub(super) role: &'a Role,
    pub(super) name: &'a str,
    pub(super) life: SignedDuration,
    pub(super) policy: Option<SessionPolicy>,
    pub(super) extras: Extras,
}

pub(super) fn start_session(inner: &Inner, new: NewSession<'_>) -> Result<Arc<Credential>, ApiError> {
    let NewSession { role, name, life, policy, extras } = new;
    let invalid = || ApiError::bad("ValidationError", format!("{} is invalid", role.arn));
    let (partition, account) = partition_and_account(&role.arn).ok_or_else(invalid)?;
    // A role's path is not part of its sessions' ARNs.
    let role_name = role.arn.rsplit('/').next().unwrap_or_default();
    let (access_key, secret_key, session_token) = new_session_keys();
    let now = inner.clock.now();
    Ok(inner.credentials.add(Credential {
        access_key,
        secret_key,
        session_token: Some(session_token),
        issued: now,
        // STS writes whole seconds.
        expires: Timestamp::from_second((now + life).as_second()).ok(),
        principal: Principal {
            arn: format!("arn:{partition}:sts::{account}:assumed-role/{role_name}/{name}"),
            account,
            partition,
            user_id: format!("AROA{}:{name}", upper_id(17)),
            role: Some(role.arn.clone()),
            session_name: Some(name.to_owned()),
        },
        policy,
        chain: extras.chain,
        external_id: extras.external_id,
        tags: extras.tags,
        transitive_tags: extras.transitive_tags,
        source_identity: extras.source_identity,
    }))
}

fn session_xml(session: &Credential) -> String {
    let expires = session.expires.map(|at| at.to_string()).unwrap_or_default();
    format!(
        "<AssumedRoleUser><Arn>{}</Arn><AssumedRoleId>{}</AssumedRoleId></AssumedRoleUser>\
         <Credentials><AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
         <SessionToken>{}</SessionToken><Expiration>{expires}</Expiration></Credentials>",
        escape(&session.principal.arn),
        escape(&session.principal.user_id),
        session.access_key,
        session.secret_key,
        session.session_token.as_deref().unwrap_or_default(),
    )
}

fn envelope(api: &str, result: &str, request_id: &str) -> String {
    format!(
        "<{api}Response xmlns=\"{XMLNS}\"><{api}Result>{result}</{api}Result>\
         <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{api}Response>"
    )
}
