//! What the flags are when nobody sets them, and what the environment decides.

use std::collections::BTreeSet;

use super::*;

fn run(arguments: &[&str]) -> RunArgs {
    let all = ["ecr-credential-operator", "run"].iter().chain(arguments);
    let Command::Run(args) = Cli::try_parse_from(all).unwrap().command else { panic!("it is to run") };
    *args
}

#[test]
fn the_defaults_are_those_that_the_documentation_gives() {
    let args = run(&[]);
    let seconds = |duration: Duration| duration.as_secs();
    let waits = [args.retry_initial, args.retry_max, args.aws.aws_timeout, args.minimum_token_life];
    assert_eq!(waits.map(seconds), [1, 300, 10, 300]);
    assert_eq!([args.lease_duration, args.grace_period].map(seconds), [15, 20]);
    assert_eq!((args.concurrency, args.aws_rate), (32, 10));
    assert_eq!(args.scope.secret_names, ["ecr-pull-secret"]);
    assert!(args.scope.is_default() && !args.scope.all_secret_names && !args.scope.attach_pods);
    assert!(args.scope.limits().namespaces.is_none(), "all namespaces may be written");
    assert!(!args.lease.no_leader_election && !args.aws.require_workload_identity);
    assert_eq!((&*args.lease.lease_name, &*args.log), ("ecr-credential-operator", "info"));
    assert_eq!(args.http_address.to_string(), "[::]:8080");
}

#[test]
fn whatever_chooses_another_identity_is_among_the_hints() {
    // As the SDK names them. A misspelt one would let tokens of one role stand for those of another after a restart.
    let hints = identity_hints();
    let names: BTreeSet<&str> = hints.iter().map(|hint| hint.split_once('=').unwrap().0).collect();
    let known = [
        "AWS_ACCESS_KEY_ID",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_PROFILE",
        "AWS_ROLE_ARN",
    ];
    assert_eq!(names, known.into());
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for wrong in [
        ["--retry-max", "0s"],
        ["--aws-rate", "0"],
        ["--concurrency", "0"],
        ["--lease-duration", "4s"],
        ["--lease-duration", "7500ms"],
        ["--secret-name", "Upper"],
        ["--namespace", "a.b"],
        ["--service-account", "nowhere"],
        ["--credentials-secret", "*/keys"],
        ["--aws-endpoint-url-ecr", "ecr.example"],
    ] {
        let all = ["ecr-credential-operator", "run"].iter().chain(&wrong);
        assert!(Cli::try_parse_from(all).is_err(), "{wrong:?}");
    }
}

#[test]
fn allowed_names_and_namespaces_are_those_of_the_flags() {
    let args =
        run(&["--secret-name", "a,b", "--namespace", "n1", "--namespace", "n2", "--service-account", "*/puller"]);
    let limits = args.scope.limits();
    assert_eq!(limits.secret_names, Some(["a".into(), "b".into()].into()));
    assert_eq!(limits.namespaces.unwrap().len(), 2);
    let allowed = limits.identities;
    assert!(allowed.keys.is_empty() && allowed.accounts.iter().all(|scope| scope.namespace.is_none()));
    assert!(run(&["--all-secret-names"]).scope.limits().secret_names.is_none());
}

#[test]
fn an_output_is_read_as_namespace_name_and_format() {
    let scope = |namespace: Option<&str>, name: &str, format| {
        Ok(OutputScope { namespace: namespace.map(Into::into), name: name.into(), format })
    };
    assert_eq!(output_scope("argocd/ecr=ArgoCDHelm"), scope(Some("argocd"), "ecr", OutputFormat::ArgoCDHelm));
    assert_eq!(output_scope("*/ecr.x=DockerConfigFile"), scope(None, "ecr.x", OutputFormat::DockerConfigFile));
    for wrong in ["", "ecr=Jenkins", "a/ecr", "a/ecr=jenkins", "a/ecr=", "A/ecr=Jenkins", "a/=Jenkins", "a/b=Jenkins=x"]
    {
        assert!(output_scope(wrong).unwrap_err().contains("TektonBasicAuth"), "{wrong}");
    }
    assert_eq!(secret_key("ops/hub").unwrap(), SecretKey { namespace: "ops".into(), name: "hub".into() });
    assert!(secret_key("*/hub").is_err());
}

#[test]
fn flags_that_cannot_work_together_are_refused_with_their_names() {
    assert_eq!(run(&[]).consistent(), Ok(()));
    let good: [&[&str]; 4] = [
        &["--retry-initial", "5m"],
        &["--minimum-token-life", "11h59m"],
        &["--retry-max", "11h", "--aws-timeout", "1h"],
        &["--lease-duration", "24h", "--no-leader-election"],
    ];
    for flags in good {
        assert_eq!(run(flags).consistent(), Ok(()), "{flags:?}");
    }
    let bad: [(&[&str], &[&str]); 5] = [
        (&["--retry-initial", "6m"], &["--retry-initial (360s)", "--retry-max (300s)"]),
        (&["--minimum-token-life", "12h"], &["--minimum-token-life", "every new token would be rejected"]),
        (&["--retry-max", "12h"], &["--retry-max", "before the next attempt"]),
        (&["--aws-timeout", "13h"], &["--aws-timeout", "while a call waits"]),
        (&["--lease-duration", "12h"], &["--lease-duration", "when a leader fails"]),
    ];
    for (flags, words) in bad {
        let why = run(flags).consistent().unwrap_err();
        assert!(words.iter().all(|word| why.contains(word)), "{flags:?}: {why}");
    }
}
