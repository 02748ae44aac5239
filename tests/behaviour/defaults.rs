//! The flags that nobody sets: what every other test makes short is as long as users have it.

use serde_json::json;
use testbed::aws::{Fault, Service};
use testbed::bed::{Bed, Launch};
use testbed::proxy::{Action, Answer, Match};

use super::demand::*;
use super::look::{at_once, failure_until, quiet, stored_in};
use super::{CRD, OWN, PUBLIC};

/// With no flag but those that tell one test from another.
fn launch() -> Launch {
    let mut launch = super::launch().env("ECO_LEASE_DURATION", "");
    launch.args.clear();
    launch
}

#[tokio::test]
async fn the_main_situations_pass_with_the_flags_that_nobody_sets() {
    let bed = Bed::new("defaults", CRD).await.unwrap();
    let (a, b) = (bed.namespace("a", &[]).await.unwrap(), bed.namespace("b", &[]).await.unwrap());
    let first = bed.operator(launch()).await.unwrap();
    let names = json!([a, b, bed.name("late*")]);
    let spec = json!({ "registries": [{ "private": {} }, { "public": {} }], "namespaces": { "names": names } });
    let name = bed.credential("x", spec).await.unwrap();
    at_once(bed.ready(&name)).await;
    at_once(bed.logins_until(&a, &[OWN, PUBLIC])).await;
    assert_eq!((fetches(&bed), bed.proxy.log().writes_to_secrets().len()), ((1, 1), 2));

    // A new namespace, a drift, a deletion by hand.
    let late = bed.namespace("late", &[]).await.unwrap();
    at_once(bed.logins_until(&late, &[OWN, PUBLIC])).await;
    bed.secrets(&b).delete(&bed.secret, &Default::default()).await.unwrap();
    at_once(bed.logins_until(&b, &[OWN, PUBLIC])).await;

    // AWS fails for a while, hanging at first: the first waits after a failure are seconds.
    let hang = bed.aws.fault(Service::Ecr, Fault::Hang).times(1);
    let fail = bed.aws.fault(Service::Ecr, Fault::Status(503)).times(2);
    demand(&bed, &name, "1").await;
    registry_until(&bed, &name, 0, "AwsUnavailable", &[]).await;
    bed.ready(&name).await.unwrap();
    served(&bed, &name, "1").await;
    assert_eq!((hang.hits(), fail.hits()), (1, 2));

    // The API server refuses in one namespace for a while.
    let answer = Action::Answer(Answer::refusal(500, "InternalError", "etcd is away"));
    let fault = bed.proxy.place(testbed::proxy::Fault::new(Match::secret_writes().namespace(&b), answer));
    demand(&bed, &name, "2").await;
    failure_until(&bed, &name, &b, "ApiError").await;
    fault.remove();
    at_once(bed.ready(&name)).await;

    // A restart costs nothing.
    quiet(&bed).await;
    let (marks, calls) = (bed.recorder.mark(), bed.aws.mark());
    first.stop().await.unwrap();
    let second = bed.operator(launch()).await.unwrap();
    page_until(&second, "/metrics", |_, text| text.contains("credentials{state=\"ready\"} 1\n")).await;
    bed.recorder.quiet_since(&marks);
    assert_eq!(bed.aws.calls_since(calls).len(), 0);

    // Deselected and deleted.
    bed.change(&name, json!({ "spec": { "namespaces": { "names": [a] } } })).await.unwrap();
    at_once(bed.secret_until(&b, "gone", |secret| secret.is_none())).await;
    let written = stored_in(&bed, Default::default(), &a);
    bed.credentials().delete(&name, &Default::default()).await.unwrap();
    bed.secret_until(&a, "collected", |secret| secret.is_none()).await.unwrap();
    assert_eq!(stored_in(&bed, Default::default(), &a), written, "the garbage collector took it");
    second.stop().await.unwrap();
    bed.finish().await.unwrap();
}
