//! Tables of outputs: what each holds, of which token it speaks, and what is merged into docker configs.

use super::include::IncludedConfig;
use super::*;
use crate::plan::scopes::OutputScope;

/// Two registries and an output of each of these forms, with its host.
fn with_outputs(outputs: &[(&str, &str, Option<&str>)]) -> EcrCredentialSpec {
    let mut spec = two_registries();
    let output = |(name, format, host): &(&str, &str, Option<&str>)| {
        serde_json::from_value(serde_json::json!({ "name": name, "format": format, "host": host })).unwrap()
    };
    spec.outputs = outputs.iter().map(output).collect();
    spec
}

fn annotation<'a>(desired: &'a Desired, key: &str) -> Option<&'a str> {
    desired.metadata.annotations.as_ref().unwrap().get(key).map(String::as_str)
}

#[test]
fn an_output_of_one_host_speaks_of_its_own_token_alone() {
    let spec = with_outputs(&[("own", "BasicAuth", Some(OWN)), ("public", "Jenkins", Some("public.ecr.aws"))]);
    let issued = NOW - 6 * HOUR;
    let table = [
        ("both valid", NOW + 2 * HOUR, Some(NOW + HOUR), Some(NOW + 2 * HOUR), Some(NOW + HOUR)),
        ("public not fetched yet", NOW + 2 * HOUR, None, Some(NOW + 2 * HOUR), None),
        (
            "public expired: there is no login to write, and what is there is left",
            NOW + 2 * HOUR,
            Some(NOW - 1),
            Some(NOW + 2 * HOUR),
            None,
        ),
        ("private expired", NOW - 1, Some(NOW + HOUR), None, Some(NOW + HOUR)),
    ];
    for (what, private, public, own, other) in table {
        let bundle = all(&spec, &published(&spec, private, public));
        for (name, expected) in [("own", own), ("public", other)] {
            let desired = bundle.get(name);
            assert_eq!(desired.map(|desired| desired.expires_at.as_second()), expected, "{what}: {name}");
            if let Some(desired) = desired {
                assert!(desired.has_entries && !desired.incomplete, "{what}: {name}");
                assert_eq!(annotation(desired, REFRESHED_AT), Some(&*at(issued).to_string()), "{what}: {name}");
            }
        }
    }
    let both = published(&spec, NOW + 2 * HOUR, Some(NOW + HOUR));
    let bundle = all(&spec, &both);
    assert_eq!(value(&bundle["own"], "password"), b"p");
    assert_eq!(value(&bundle["public"], "password"), b"q");
    // A refresh of the one token is no news to the output of the other.
    let mut renewed = both.clone();
    let plan = planned(&spec);
    renewed.insert(plan.registries[1].token_specs[0].clone(), token("new", None, NOW, NOW + 12 * HOUR));
    let after = all(&spec, &renewed);
    assert_eq!(after["own"].digest, bundle["own"].digest);
    assert_ne!(after["public"].digest, bundle["public"].digest);
    assert_ne!(after["ecr-pull-secret"].digest, bundle["ecr-pull-secret"].digest);
}

#[test]
fn an_output_bears_our_marks_those_of_its_format_and_those_that_are_asked_for() {
    let mut spec = with_outputs(&[("argocd", "ArgoCDOCI", Some(OWN)), ("tekton", "TektonBasicAuth", Some(OWN))]);
    let forged = [("team", "a"), ("argocd.argoproj.io/secret-type", "cluster")];
    spec.outputs[0].labels = forged.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    spec.outputs[1].annotations.insert("note".to_owned(), "b".to_owned());
    spec.secret.labels.insert("pull".to_owned(), "alone".to_owned());
    let bundle = all(&spec, &published(&spec, NOW + HOUR, None));
    let labels = bundle["argocd"].metadata.labels.clone().unwrap();
    let expected = [
        ("app.kubernetes.io/managed-by", "ecr-credential-operator"),
        ("argocd.argoproj.io/secret-type", "repo-creds"),
        ("pullsecrets.dev/credential", "platform"),
        ("pullsecrets.dev/credential-uid", "me"),
        ("team", "a"),
    ];
    assert_eq!(labels, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let tekton = &bundle["tekton"];
    assert_eq!(annotation(tekton, "note"), Some("b"));
    assert_eq!(annotation(tekton, "tekton.dev/docker-0"), Some(&*format!("https://{OWN}")));
    assert_eq!(annotation(tekton, OUTPUT), Some("TektonBasicAuth"));
    assert_eq!(tekton.metadata.owner_references.as_ref().unwrap()[0].uid, "me");
    assert_eq!(annotation(&bundle["ecr-pull-secret"], OUTPUT), None, "a pull secret is no output");
    spec.secret.deletion_policy = DeletionPolicy::Retain;
    assert_eq!(all(&spec, &published(&spec, NOW + HOUR, None))["tekton"].metadata.owner_references, None);
}

#[test]
fn a_docker_config_holds_every_host_whatever_its_form() {
    let spec = with_outputs(&[("file", "DockerConfigFile", None), ("json", "DockerConfigJson", None)]);
    let bundle = all(&spec, &published(&spec, NOW + 2 * HOUR, Some(NOW + HOUR)));
    let pull = value(&bundle["ecr-pull-secret"], ".dockerconfigjson");
    assert_eq!(value(&bundle["file"], "config.json"), pull);
    assert_eq!(value(&bundle["json"], ".dockerconfigjson"), pull);
    assert_eq!(bundle["file"].expires_at, bundle["ecr-pull-secret"].expires_at);
    let empty = all(&spec, &published(&spec, NOW - 2, Some(NOW - 1)));
    assert_eq!(value(&empty["file"], "config.json"), br#"{"auths":{}}"#, "public pulls work without a login");
}

#[test]
fn an_output_that_is_refused_is_not_known_and_holds_up_no_other() {
    let spec = with_outputs(&[("good", "BasicAuth", Some(OWN)), ("bad", "Jenkins", Some(OWN))]);
    let scope = OutputScope { namespace: None, name: "good".into(), format: OutputFormat::BasicAuth };
    let limits = Limits { outputs: Some([scope].into()), ..Limits::default() };
    let plan = plan(&spec, &limits).unwrap();
    let bundle = bundle(&plan, &owner(), &published(&spec, NOW + HOUR, None), &Included::default(), at(NOW)).unwrap();
    assert_eq!(bundle.keys().map(AsRef::as_ref).collect::<Vec<&str>>(), ["ecr-pull-secret", "good"]);
}

#[test]
fn a_host_that_turns_out_to_be_anothers_is_told_of() {
    let other = "999999999999.dkr.ecr.eu-west-1.amazonaws.com";
    let spec = with_outputs(&[("own", "BasicAuth", Some(OWN)), ("other", "BasicAuth", Some(other))]);
    let plan = planned(&spec);
    let lacks = |published: &Published| {
        plan.outputs.iter().map(|output| lacks_host(&plan, output, published).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(lacks(&published(&spec, NOW + HOUR, None)), [false, false], "not all tokens are there");
    let both = published(&spec, NOW + HOUR, Some(NOW + HOUR));
    assert_eq!(lacks(&both), [false, true]);
    assert!(lacks_host(&plan, &plan.outputs[1], &both).unwrap().message.contains(other));
    assert!(!all(&spec, &both).contains_key("other"));
}

fn included(json: &str) -> Included {
    let config = IncludedConfig::parse("kubernetes.io/dockerconfigjson", json.as_bytes()).unwrap();
    Included { configs: vec![Arc::new(config)], incomplete: false }
}

#[test]
fn what_is_included_stands_in_docker_configs_and_changes_them_alone() {
    let spec = with_outputs(&[("file", "DockerConfigFile", None), ("own", "BasicAuth", Some(OWN))]);
    let published = published(&spec, NOW + HOUR, Some(NOW + HOUR));
    let with = |included: &Included| bundle(&planned(&spec), &owner(), &published, included, at(NOW)).unwrap();
    let (before, hub) = (all(&spec, &published), included(r#"{"auths":{"ghcr.io":{"auth":"eDp5"}}}"#));
    let after = with(&hub);
    let text = String::from_utf8(value(&after["file"], "config.json")).unwrap();
    assert!(text.contains(r#""ghcr.io":{"auth":"eDp5"}"#) && text.contains(OWN), "{text}");
    assert_eq!(after["own"].digest, before["own"].digest);
    for name in ["file", "ecr-pull-secret"] {
        assert_ne!(after[name].digest, before[name].digest, "{name}");
        assert_ne!(after[name].identity, before[name].identity, "{name}: an older one of others is not as good");
        assert!(!after[name].incomplete);
    }
    let missing = with(&Included { incomplete: true, ..Included::default() });
    assert!(missing["file"].incomplete && !missing["own"].incomplete);
    let record = record(after["file"].digest, Some(NOW + HOUR));
    let record = Arc::new(SecretRecord { hosts: Some(after["file"].payload.hosts), ..(*record).clone() });
    let target = target(Ownership::Owned(record), Selection::Selected);
    assert_eq!(judge(&target, Some(&missing["file"]), ConflictPolicy::Fail), "wait", "the last good state is left");
}

#[test]
fn an_output_that_does_not_fit_stops_no_other_secret_and_one_that_fits_is_written() {
    let ids = (0..60).map(|n| format!("{n:012}")).collect::<Vec<_>>();
    let output =
        serde_json::json!([{ "name": "file", "format": "DockerConfigFile", "loginFields": "AuthUsernamePassword" }]);
    let spec = spec(serde_json::json!({
        "registries": [{ "private": { "region": "eu-west-1", "accountIds": ids } }], "outputs": output,
        "namespaces": { "names": ["a"] },
    }));
    let plan = planned(&spec);
    for (length, fits) in [(2_000, true), (8_000, false)] {
        let password = "x".repeat(length);
        let token_spec = plan.registries[0].token_specs[0].clone();
        let published = Published::from([(token_spec, token(&password, Some("111122223333"), NOW, NOW + HOUR))]);
        let bundle = all(&spec, &published);
        assert_eq!(hosts(&bundle["ecr-pull-secret"]).len(), 60, "{length}");
        let entries = |desired: &Arc<Desired>| docker_config::parse(&value(desired, "config.json")).len();
        assert_eq!(bundle.get("file").map(entries), fits.then_some(60), "{length}");
        let left = left_out(&plan, &plan.outputs[0], &published, &[], at(NOW));
        let told: Vec<String> = left.iter().map(|left| SpecError::from(left).message).collect();
        assert_eq!(told.is_empty(), fits, "{told:?}");
        let names = |text: &String| text.starts_with("spec.outputs: file: spec.registries[0]: the Secret would have");
        assert!(told.iter().all(names), "{told:?}");
    }
}

#[test]
fn an_include_that_does_not_fit_is_left_out() {
    let spec = spec(serde_json::json!({
        "registries": [{ "private": {
            "region": "eu-west-1", "accountIds": (0..100).map(|n| format!("{n:012}")).collect::<Vec<_>>(),
        } }],
        "namespaces": { "names": ["a"] },
    }));
    let long = "x".repeat(7000);
    let token_spec = planned(&spec).registries[0].token_specs[0].clone();
    let published = Published::from([(token_spec, token(&long, Some("111122223333"), NOW, NOW + HOUR))]);
    let huge = included(&format!(r#"{{"auths":{{"ghcr.io":{{"email":"{}"}}}}}}"#, "x".repeat(200_000)));
    let bundle = bundle(&planned(&spec), &owner(), &published, &huge, at(NOW)).unwrap();
    let desired = &bundle["ecr-pull-secret"];
    assert!(desired.incomplete && desired.payload.bytes <= MAX_SECRET_BYTES);
    assert_eq!(hosts(desired).len(), 100);
}
