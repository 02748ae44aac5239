//! Roles assumed one after the other: what each call of STS carries, how long the sessions live, where a chain breaks.

use std::collections::BTreeMap;
use std::sync::Arc;

use testbed::aws::{Credential, Role};

use super::super::demand::*;
use super::*;

const POLICY: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecr:GetAuthorizationToken","ecr:BatchGetImage"],"Resource":"*"}]}"#;

/// Three roles of three accounts, of which each trusts the one before it under conditions.
struct Chain {
    roles: [String; 3],
}

impl Chain {
    fn new(bed: &Bed) -> Self {
        let first = Trust::principal(&bed.role).external_id("tenant:a/1").require_tag("team", "a");
        let first = role_trusting(bed, ONE, "first", first.require_source_identity("ops@example.com"));
        let second = Trust::principal(&first).require_tag("team", "a").require_tag("stage", "prod");
        let second = role_trusting(bed, TWO, "second", second.require_source_identity("ops@example.com"));
        let third = Trust::principal(&second).require_tag("team", "a").allow_source_identity();
        let third = role_trusting(bed, "333333333333", "third", third);
        Self { roles: [first, second, third] }
    }

    fn auth(&self) -> Value {
        let [first, second, third] = &self.roles;
        as_roles(json!([
            { "roleArn": first, "externalId": "tenant:a/1", "sessionName": "hop-1", "durationSeconds": 900,
              "tags": { "team": "a", "cost center": "7" }, "transitiveTagKeys": ["team"], "sourceIdentity": "ops@example.com" },
            { "roleArn": second, "sessionName": "hop-2", "tags": { "stage": "prod" } },
            { "roleArn": third, "durationSeconds": 3600, "sessionPolicy": POLICY },
        ]))
    }
}

fn session_of(bed: &Bed, role: &str) -> Arc<Credential> {
    let mut sessions = bed.aws.sessions();
    sessions.retain(|session| session.principal.role.as_deref() == Some(role));
    assert_eq!(sessions.len(), 1, "sessions of {role}");
    sessions.remove(0)
}

fn tags(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn three_roles_get_what_the_spec_says_and_hand_it_on() {
    let bed = bed("chain").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let chain = Chain::new(&bed);
    let operator = bed.operator(launch()).await.unwrap();
    let name = bed.credential("x", spec_as(chain.auth(), &[&a])).await.unwrap();
    let [first, second, third] = &chain.roles;
    let token = token_of(&bed, &a, third).await;
    bed.logins_until(&a, &[&host_of("333333333333")]).await.unwrap();
    bed.ready(&name).await.unwrap();
    assert_eq!(token.source_identity.as_deref(), Some("ops@example.com"));
    assert_eq!(token.tags, tags(&[("team", "a")]));

    let hop = session_of(&bed, first);
    assert_eq!(hop.principal.session_name.as_deref(), Some("hop-1"));
    assert_eq!(hop.external_id.as_deref(), Some("tenant:a/1"));
    assert_eq!(hop.tags, tags(&[("team", "a"), ("cost center", "7")]));
    assert_eq!(hop.transitive_tags, ["team".to_owned()].into());
    assert_eq!(hop.source_identity.as_deref(), Some("ops@example.com"));
    // STS gives whole seconds.
    let life = hop.expires.unwrap().duration_since(hop.issued).as_secs_f64().ceil();
    assert_eq!(life, 900.0);
    let hop = session_of(&bed, second);
    assert_eq!(hop.principal.session_name.as_deref(), Some("hop-2"));
    assert_eq!((hop.external_id.as_deref(), hop.session_policy()), (None, None));
    assert_eq!(hop.tags, tags(&[("stage", "prod"), ("team", "a")]));
    assert_eq!(hop.transitive_tags, ["team".to_owned()].into());
    let hop = session_of(&bed, third);
    assert_eq!(hop.principal.session_name.as_deref(), Some("ecr-credential-operator"));
    assert_eq!(hop.session_policy(), Some(POLICY));
    assert_eq!(hop.tags, tags(&[("team", "a")]));
    assert_eq!(hop.chain.len(), 3, "{:?}", hop.chain);
    assert_eq!(hop.source_identity.as_deref(), Some("ops@example.com"));
    operator.stop().await.unwrap();
    assert_eq!(bed.aws.calls(Service::Sts).len(), 4, "one session for each role");
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn sessions_serve_many_refreshes_and_are_renewed_before_they_end() {
    let bed = bed("renewal").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let chain = Chain::new(&bed);
    let operator = bed.operator(launch()).await.unwrap();
    let name = bed.credential("x", spec_as(chain.auth(), &[&a])).await.unwrap();
    token_of(&bed, &a, &chain.roles[2]).await;
    bed.ready(&name).await.unwrap();
    for value in ["1", "2"] {
        demand(&bed, &name, value).await;
        served(&bed, &name, value).await;
    }
    assert_eq!(bed.aws.calls(Service::Sts).len(), 4, "the sessions are kept");
    operator.stop().await.unwrap();

    // The sessions end sooner than they are renewed before their end: each refresh makes new ones.
    bed.aws.set_session_life(Some(SHORT_SESSION));
    let operator = bed.operator(launch()).await.unwrap();
    for value in ["3", "4"] {
        let mark = bed.aws.mark();
        demand(&bed, &name, value).await;
        served(&bed, &name, value).await;
        let calls = bed.aws.calls_since(mark);
        assert!(calls.iter().all(|call| call.code == "OK"), "{calls:#?}");
        let asked: Vec<_> = calls.iter().filter_map(|call| call.assumes.as_deref()).collect();
        assert!(chain.roles.iter().all(|role| asked.contains(&role.as_str())), "{value}: {calls:#?}");
        token_of(&bed, &a, &chain.roles[2]).await;
    }
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn an_identity_is_another_one_with_another_session_policy_or_tag() {
    let bed = bed("distinct").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let role = role_trusting(&bed, ONE, "role", Trust::principal(&bed.role).allow_tags());
    let operator = bed.operator(launch()).await.unwrap();
    let step = |more: Value| {
        let mut step = json!({ "roleArn": role });
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        as_roles(json!([step]))
    };
    let name = bed.credential("x", spec_as(step(json!({})), &[&a])).await.unwrap();
    let mut seen = vec![token_of(&bed, &a, &role).await.auth];
    for more in
        [json!({ "tags": { "team": "a" } }), json!({ "sessionPolicy": POLICY }), json!({ "sessionName": "other" })]
    {
        bed.change(&name, json!({ "spec": { "auth": step(more) } })).await.unwrap();
        let new = |secret: Option<&k8s_openapi::api::core::v1::Secret>| {
            let logins = secret.and_then(|secret| logins(secret).ok()).unwrap_or_default();
            logins.values().all(|auth| !seen.contains(auth)) && !logins.is_empty()
        };
        bed.secret_until(&a, "a new login", new).await.unwrap();
        seen.push(token_of(&bed, &a, &role).await.auth);
    }
    bed.ready(&name).await.unwrap();
    let tokens: Vec<_> = seen.iter().map(|auth| bed.aws.token_of(auth).unwrap()).collect();
    assert_eq!(tokens[1].tags, tags(&[("team", "a")]));
    assert_eq!(tokens[3].session_name.as_deref(), Some("other"));
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_chain_that_breaks_in_the_middle_names_the_role_and_heals() {
    let bed = bed("broken").await;
    let a = bed.namespace("a", &[]).await.unwrap();
    let chain = Chain::new(&bed);
    let [_, second, third] = &chain.roles;
    let operator = bed.operator(launch()).await.unwrap();
    let name = bed.credential("x", spec_as(chain.auth(), &[&a])).await.unwrap();
    token_of(&bed, &a, third).await;
    bed.ready(&name).await.unwrap();
    operator.stop().await.unwrap();

    // Sessions too short to be kept, so that the next refresh goes through the whole chain.
    bed.aws.set_session_life(Some(SHORT_SESSION));
    bed.aws.add_role(Role::new(second).trusting(Trust::principal("arn:aws:iam::444444444444:root")));
    let operator = bed.operator(launch()).await.unwrap();
    let before = login(&bed, &a, &host_of("333333333333")).await;
    demand(&bed, &name, "1").await;
    let object = registry_until(&bed, &name, 0, "AccessDenied", &["sts:AssumeRole", second]).await;
    names_a_file(object.data["status"]["registries"][0]["message"].as_str().unwrap());
    bed.ready(&name).await.unwrap();
    assert_eq!(login(&bed, &a, &host_of("333333333333")).await, before, "what is there serves on");
    assert!(
        bed.aws
            .calls(Service::Sts)
            .iter()
            .filter(|call| call.code != "OK")
            .all(|call| call.assumes.as_ref() == Some(second))
    );
    Chain::new(&bed);
    served(&bed, &name, "1").await;
    assert_ne!(login(&bed, &a, &host_of("333333333333")).await, before);
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
