//! The wall clock of the operator's node is wrong or jumps: every identity serves, and no good login is taken away.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use testbed::aws::Fault;
use testbed::bed::{Launch, Operator};

use super::super::demand::*;
use super::super::look::{at_once, version};
use super::*;

const HOUR: i64 = 3600;

/// A wall clock that a test may set while an operator runs.
struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    fn new(bed: &Bed) -> Self {
        let (library, file) = (bed.dir().join("skewed_clock.so"), bed.dir().join("clock-ahead"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/behaviour/skewed_clock.c");
        let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status().unwrap();
        assert!(status.success(), "the C compiler that the operator's dependencies are built with");
        std::fs::write(&file, 0_i64.to_ne_bytes()).unwrap();
        Self { library, file }
    }

    /// From now on the clock is ahead by so many seconds; negative is behind.
    fn set(&self, ahead: i64) {
        // In place: the operator has the file mapped.
        let file = std::fs::OpenOptions::new().write(true).open(&self.file).unwrap();
        file.write_all_at(&ahead.to_ne_bytes(), 0).unwrap();
    }

    fn of(&self, launch: Launch) -> Launch {
        launch.env("LD_PRELOAD", self.library.to_str().unwrap()).env("CLOCK_AHEAD_FILE", self.file.to_str().unwrap())
    }
}

#[tokio::test]
async fn no_wall_clock_is_wrong_enough_to_keep_an_identity_from_a_service() {
    let bed = bed("wrong-clock").await;
    let ops = bed.namespace("ops", &[]).await.unwrap();
    let clock = WallClock::new(&bed);
    let puller = account_with_role(&bed, ONE, &ops, "puller").await;
    let assumed = role_trusting(&bed, TWO, "assumed", Trust::principal(&bed.role));
    let (user, key) = user_with_key(&bed, ONE, "keys");
    bed.keys_secret(&ops, "keys", &key).await.unwrap();
    let (own_user, own_key) = user_with_key(&bed, ACCOUNT, "own");
    for ahead in [13 * HOUR, -13 * HOUR, HOUR / 6, -HOUR / 6] {
        clock.set(ahead);
        let lent = || launch().service_account("*/pull").service_account(&format!("{ops}/puller"));
        let web_identity = || clock.of(lent().credentials_secret(&format!("{ops}/keys")));
        let keys = web_identity()
            .env("AWS_ROLE_ARN", "")
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", "")
            .env("AWS_ACCESS_KEY_ID", &own_key.id)
            .env("AWS_SECRET_ACCESS_KEY", &own_key.secret);
        for (kind, launch) in [("irsa", web_identity()), ("keys", keys)] {
            let mark = bed.aws.mark();
            let name = |what: &str| format!("{what}-{kind}-{}", ahead + 13 * HOUR);
            let tenant = bed.tenant(&name("tenant"), ONE, "pull").await.unwrap();
            let mut cases = vec![
                ("own", json!({}), if kind == "irsa" { bed.role.clone() } else { own_user.clone() }, None),
                ("account", as_account(&ops, "puller"), puller.clone(), None),
                ("secret", as_keys(&ops, "keys"), user.clone(), None),
                ("each", as_each("pull"), tenant.role.clone(), Some(tenant.namespace.clone())),
            ];
            if kind == "irsa" {
                cases.push(("role", as_roles(json!([{ "roleArn": assumed }])), assumed.clone(), None));
            }
            let operator = bed.operator(launch).await.unwrap();
            let mut made = Vec::new();
            for (what, auth, who, namespace) in cases {
                let namespace = match namespace {
                    Some(namespace) => namespace,
                    None => bed.namespace(&name(what), &[]).await.unwrap(),
                };
                let mut spec = spec(json!([{ "private": {} }, { "public": {} }]), &[&namespace]);
                spec["auth"] = auth;
                made.push((bed.credential(&name(what), spec).await.unwrap(), namespace, who));
            }
            for (credential, namespace, who) in &made {
                bed.ready(credential).await.unwrap();
                token_of(&bed, namespace, who).await;
                bed.credentials().delete(credential, &Default::default()).await.unwrap();
            }
            operator.stop().await.unwrap();
            let refused: Vec<_> = bed.aws.calls_since(mark).into_iter().filter(|call| call.code != "OK").collect();
            assert!(refused.is_empty(), "{kind} {ahead}: the API server has told the time: {refused:?}");
        }
    }
    bed.finish().await.unwrap();
}

#[tokio::test]
async fn a_wall_clock_that_jumps_while_aws_is_away_takes_no_good_login_away_also_across_a_restart() {
    let bed = bed("clock-jumps").await;
    let clock = WallClock::new(&bed);
    let a = bed.namespace("a", &[(&bed.prefix, "yes")]).await.unwrap();
    // A leader whose clock jumps gives up; its successor is played by the restart.
    let start =
        async || -> Operator { bed.operator(clock.of(launch()).args(&["--no-leader-election"])).await.unwrap() };
    let mut operator = start().await;
    let mut spec = spec(json!([{ "private": {} }, { "public": {} }]), &[]);
    spec["namespaces"] = json!({ "selector": { "matchLabels": { (bed.prefix.clone()): "yes" } } });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let secret = bed.secret(&a).await.unwrap().unwrap();
    bed.recorder.aws_fails();
    let faults =
        [Service::Ecr, Service::EcrPublic].map(|service| bed.aws.fault(service, Fault::Refused).until_cleared());
    for (number, ahead) in [13 * HOUR, -13 * HOUR, 13 * HOUR, 0].into_iter().enumerate() {
        clock.set(ahead);
        if number == 2 {
            operator.stop().await.unwrap();
            operator = start().await;
        }
        let late = bed.namespace(&format!("late{number}"), &[(&bed.prefix, "yes")]).await.unwrap();
        at_once(bed.logins_until(&late, &[OWN, PUBLIC])).await;
        assert_eq!(logins(&bed.secret(&late).await.unwrap().unwrap()).unwrap(), logins(&secret).unwrap());
        assert_eq!(version(&bed.secret(&a).await.unwrap().unwrap()), version(&secret), "{ahead} s ahead");
    }
    bed.recorder.aws_recovers();
    faults.into_iter().for_each(|fault| fault.clear());
    clock.set(13 * HOUR);
    demand(&bed, &name, "1").await;
    served(&bed, &name, "1").await;
    bed.ready(&name).await.unwrap();
    let token = own_token(&bed, &a).await;
    let renewed = bed.secret(&a).await.unwrap().unwrap();
    assert!(bed.aws.is_valid(&token.auth) && version(&renewed) != version(&secret));
    let left = expiry(&renewed).duration_since(bed.aws.clock().now());
    assert!(
        left.as_hours() == 11 || left.as_hours() == 12,
        "the expiry is recorded as AWS has told it: {left:?} are left"
    );
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}
